// SPDX-License-Identifier: GPL-2.0

//! A driver's own sysfs attributes, beside those that the TPM core makes for a chip.
//!
//! C header: [`include/linux/device.h`](srctree/include/linux/device.h)

use super::chip::{
    ChipData,
    ChipOps, //
};
use core::marker::PhantomData;
use kernel::{
    bindings,
    error::{
        from_result,
        to_result, //
    },
    prelude::*, //
};

/// An attribute: a file in a chip's sysfs directory.
pub(crate) trait Attribute: 'static {
    /// The driver whose attribute it is.
    type Ops: ChipOps;

    /// The file's name.
    const NAME: &'static CStr;

    /// The file's permissions.
    const MODE: bindings::umode_t;

    /// Whether this takes the place of the core's attribute of the same name, which only a TPM 1.2
    /// has. Possible for `cancel` alone.
    const REPLACES: bool = false;

    /// The value, shown as a decimal number and a newline. Not called where `MODE` lets nobody
    /// read.
    fn show(ops: &Self::Ops) -> Result<u32> {
        let _ = ops;
        Err(EIO)
    }

    /// Takes what was written, the whole of it or nothing.
    fn store(ops: &Self::Ops, text: &CStr) -> Result;
}

/// The C form of an [`Attribute`], for a list of them.
pub(crate) struct RawAttribute<T: ChipOps> {
    pub(super) raw: &'static bindings::device_attribute,
    pub(super) replaces: bool,
    ops: PhantomData<T>,
}

impl<T: ChipOps> RawAttribute<T> {
    /// Makes the C form of `A`.
    pub(crate) const fn new<A: Attribute<Ops = T>>() -> Self {
        const { assert!(!A::REPLACES || matches!(A::NAME.to_bytes(), b"cancel")) };
        Self {
            raw: Callbacks::<A>::RAW,
            replaces: A::REPLACES,
            ops: PhantomData,
        }
    }
}

/// The C callbacks of an [`Attribute`]. They run only between the file's creation and its removal,
/// which waits for them; [`Chip`](super::chip::Chip) keeps its [`ChipData`] for longer than that.
struct Callbacks<A>(PhantomData<A>);

impl<A: Attribute> Callbacks<A> {
    // Kernels with lockdep have more fields, and `as_char_ptr()` is not for constants.
    #[allow(clippy::disallowed_methods, clippy::needless_update)]
    const RAW: &'static bindings::device_attribute = &bindings::device_attribute {
        attr: bindings::attribute {
            name: A::NAME.as_ptr().cast(),
            mode: A::MODE,
            ..pin_init::zeroed()
        },
        __bindgen_anon_1: bindings::device_attribute__bindgen_ty_1 {
            show: Some(Self::show),
        },
        __bindgen_anon_2: bindings::device_attribute__bindgen_ty_2 {
            store: Some(Self::store),
        },
    };

    extern "C" fn show(
        dev: *mut bindings::device,
        _attr: *mut bindings::device_attribute,
        page: *mut c_char,
    ) -> isize {
        // SAFETY: `dev` is the device of a chip whose operations are `A::Ops`, since
        // [`RawAttribute`] lets no other have this attribute.
        let data = unsafe { ChipData::<A::Ops>::of_device(dev) };

        from_result(|| {
            let value = A::show(&data.ops)?;

            // SAFETY: sysfs gives a page to write to; the format takes one unsigned integer.
            let length = unsafe { bindings::sysfs_emit(page, c"%u\n".as_char_ptr(), value) };
            // CAST: A few bytes.
            Ok(length as isize)
        })
    }

    extern "C" fn store(
        dev: *mut bindings::device,
        _attr: *mut bindings::device_attribute,
        text: *const c_char,
        count: usize,
    ) -> isize {
        // SAFETY: As in `show()`.
        let data = unsafe { ChipData::<A::Ops>::of_device(dev) };
        // SAFETY: sysfs terminates what was written.
        let text = unsafe { CStr::from_char_ptr(text) };

        from_result(|| {
            A::store(&data.ops, text)?;
            // CAST: At most a page.
            Ok(count as isize)
        })
    }
}

/// Parses a number from 0 to 255, with or without a newline, in the base that its prefix says.
/// [`EINVAL`] for what is no number, [`ERANGE`] for one that is too large.
pub(crate) fn parse_u8(text: &CStr) -> Result<u8> {
    let mut value = 0;

    // SAFETY: `text` is terminated, and `value` is valid for writing.
    to_result(unsafe { bindings::kstrtou8(text.as_char_ptr(), 0, &mut value) })?;
    Ok(value)
}
