// SPDX-License-Identifier: GPL-2.0

//! A TPM chip whose driver carries out a whole command in one call, and its registration.
//!
//! C headers: [`include/linux/tpm.h`](srctree/include/linux/tpm.h),
//! [`drivers/char/tpm/tpm.h`](srctree/drivers/char/tpm/tpm.h)

use super::attribute::RawAttribute;
use crate::{
    protocol::{
        banks,
        life::Version, //
    },
    xen_sys, //
};
use core::{
    ptr::{
        self,
        from_ref,
        NonNull, //
    },
    slice,
};
use kernel::{
    bindings,
    device::{
        self,
        Bound, //
    },
    error::{
        from_err_ptr,
        from_result,
        to_result, //
    },
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
    },
    time::Jiffies, //
};

/// Tag of a TPM 1.2 answer without authorisation (TPM_TAG_RSP_COMMAND; TPM Main Specification 1.2,
/// part 2, section 6). A TPM 1.2 gives it to a TPM 2.0 command, with TPM_BADTAG.
const TAG_TPM12: u16 = 0x00c4;

/// Tag of a TPM 2.0 answer without sessions (TPM_ST_NO_SESSIONS; TPM 2.0 Library, part 2,
/// section 6.9).
const TAG_TPM20: u16 = 0x8001;

/// What a driver does for its chip.
pub(crate) trait Operations: Send + Sync + Sized + 'static {
    /// The driver's own attributes. One that has the name of one of the core's takes its place.
    const ATTRIBUTES: &'static [RawAttribute<Self>];

    /// Carries out one command. The first `length` bytes of `packet` are the request, and the
    /// answer is written over it. `duration` is what the core thinks that it may take.
    ///
    /// Returns the answer's length. The core logs all errors but [`EPIPE`].
    fn send(&self, packet: &mut [u8], length: usize, duration: Jiffies) -> Result<usize>;

    /// Ends the running command early, if there is one. May be called at any time.
    fn cancel(&self);
}

/// What a chip's callbacks have to do with: its device's driver data.
pub(super) struct Shared<T: Operations> {
    operations: Arc<T>,
    /// The last answer's tag, or the negative errno of the last command.
    last: Atomic<i32>,
}

impl<T: Operations> Shared<T> {
    pub(super) fn operations(&self) -> &T {
        &self.operations
    }

    /// # Safety
    ///
    /// `dev` is the device of a [`Chip<T>`] that is valid for `'a`.
    pub(super) unsafe fn of_device<'a>(dev: *const bindings::device) -> &'a Self {
        // SAFETY: `Chip::new()` has stored it there, by this function's requirements.
        unsafe { &*bindings::dev_get_drvdata(dev).cast::<Self>() }
    }
}

/// An allocated chip: it has a number, but nobody can see it.
///
/// # Invariants
///
/// `raw` is a chip from `tpm_chip_alloc()` of which this object holds a reference; its device's
/// driver data is `shared`, and its operations are those of `Callbacks<T>`.
pub(crate) struct Chip<T: Operations> {
    raw: NonNull<xen_sys::tpm_chip>,
    shared: KBox<Shared<T>>,
}

// SAFETY: Chips may be used from any thread; what has to be serialised is behind `&mut` or `self`.
unsafe impl<T: Operations> Send for Chip<T> {}

impl<T: Operations> Chip<T> {
    /// Allocates a chip, with the lowest number that is free, as a child of `parent`.
    pub(crate) fn new(parent: &device::Device<Bound>, operations: Arc<T>) -> Result<Self> {
        let shared = KBox::new(
            Shared {
                operations,
                last: Atomic::new(0),
            },
            GFP_KERNEL,
        )?;

        // `tpmm_chip_alloc()` is out of question: it would overwrite the parent's driver data.
        // SAFETY: `parent` is a valid device, and the operations are never freed.
        let raw = from_err_ptr(unsafe {
            xen_sys::tpm_chip_alloc(raw_device(parent), Callbacks::<T>::OPERATIONS)
        })?;
        let raw = NonNull::new(raw).ok_or(ENOMEM)?;

        // SAFETY: The chip is valid and nobody else knows it.
        unsafe {
            bindings::dev_set_drvdata(
                &raw mut (*raw.as_ptr()).dev,
                from_ref(&*shared).cast_mut().cast(),
            );
            (*raw.as_ptr()).flags |= xen_sys::tpm_chip_flags_TPM_CHIP_FLAG_SYNC;
        }

        // INVARIANT: `raw` was just allocated and given `shared`.
        Ok(Self { raw, shared })
    }

    /// Finds out which TPM it is, by one command.
    ///
    /// The core's own `tpm2_probe()` takes a command that failed for a TPM 1.2. Here it is an
    /// error: that of the command, or [`ENODEV`] when the answer was none of a TPM's.
    pub(crate) fn probe(&mut self) -> Result<Version> {
        let chip = self.raw.as_ptr();

        self.shared.last.store(0, Relaxed);
        // SAFETY: The chip is valid, and not registered, so that nobody else uses it.
        unsafe {
            to_result(xen_sys::tpm_chip_start(chip))?;
            let result = to_result(xen_sys::tpm2_probe(chip));
            xen_sys::tpm_chip_stop(chip);
            result?;
        }

        let last = self.shared.last.load(Relaxed);
        match u16::try_from(last) {
            Ok(TAG_TPM12) => Ok(Version::V1_2),
            Ok(TAG_TPM20) => Ok(Version::V2_0),
            Ok(_) => Err(ENODEV),
            Err(_) => Err(Error::from_errno(last)),
        }
    }

    /// Makes the TPM ready and lets everybody see it.
    pub(crate) fn register(self) -> Result<Registration<T>> {
        // SAFETY: The chip is valid and not registered.
        match unsafe { xen_sys::tpm_chip_register(self.raw.as_ptr()) } {
            0 => {}
            error if error < 0 => return Err(Error::from_errno(error)),
            // A TPM's own error code that the core let through.
            _ => return Err(EIO),
        }

        // INVARIANT: The registration succeeded.
        let registration = Registration { chip: self };
        for attribute in T::ATTRIBUTES {
            registration.add(attribute)?;
        }
        Ok(registration)
    }

    /// The chip's own device: tpmN in sysfs.
    fn device(&self) -> *mut bindings::device {
        // SAFETY: The chip is valid by the type invariants.
        unsafe { &raw mut (*self.raw.as_ptr()).dev }
    }

    fn kobject(&self) -> *mut bindings::kobject {
        // SAFETY: As in `device()`.
        unsafe { &raw mut (*self.device()).kobj }
    }

    fn parent_kobject(&self) -> *mut bindings::kobject {
        // SAFETY: As in `device()`; a device holds a reference to its parent.
        unsafe { &raw mut (*(*self.device()).parent).kobj }
    }
}

impl<T: Operations> Drop for Chip<T> {
    fn drop(&mut self) {
        // Open files may keep the chip for longer, but no callback runs any more that could look
        // for `shared`: either the chip was never registered, or it is no longer.
        // SAFETY: By the type invariants this object has a reference to give back.
        unsafe { bindings::put_device(self.device()) };
    }
}

/// A chip that everybody can see and use.
///
/// # Invariants
///
/// `chip` is registered.
pub(crate) struct Registration<T: Operations> {
    chip: Chip<T>,
}

impl<T: Operations> Registration<T> {
    /// The chip's name, `tpmN`.
    pub(crate) fn name(&self) -> &CStr {
        // SAFETY: The chip's device is valid, and its name is terminated and does not change.
        unsafe { CStr::from_char_ptr(bindings::dev_name(self.chip.device())) }
    }

    /// Adds one of the driver's attributes to the chip's folder, and a link to it to the parent's,
    /// where the links to all of a TPM 1.2's attributes are.
    fn add(&self, attribute: &RawAttribute<T>) -> Result {
        let (dev, raw) = (self.chip.device(), attribute.raw);

        // SAFETY: The chip's device and its parent are registered; attributes are never freed.
        // Removing goes by name: one of the core's makes room, and where there is none nothing
        // happens. The core will remove ours by that name, too.
        unsafe {
            bindings::device_remove_file(dev, raw);
            to_result(bindings::device_create_file(dev, raw))?;
            xen_sys::sysfs_remove_link(self.chip.parent_kobject(), raw.attr.name);
            to_result(xen_sys::compat_only_sysfs_link_entry_to_kobj(
                self.chip.parent_kobject(),
                self.chip.kobject(),
                raw.attr.name,
                ptr::null(),
            ))
        }
    }
}

impl<T: Operations> Drop for Registration<T> {
    fn drop(&mut self) {
        for attribute in T::ATTRIBUTES {
            // SAFETY: The parent is registered for as long as it has children.
            unsafe {
                xen_sys::sysfs_remove_link(self.chip.parent_kobject(), attribute.raw.attr.name);
            }
        }
        // SAFETY: By the type invariant. When it returns no callback runs, and none will start;
        // only then `self.chip` is dropped.
        unsafe { xen_sys::tpm_chip_unregister(self.chip.raw.as_ptr()) };
    }
}

/// The raw form of a device.
fn raw_device<Ctx: device::DeviceContext>(dev: &device::Device<Ctx>) -> *mut bindings::device {
    // CAST: `device::Device` is a transparent wrapper of it.
    from_ref(dev).cast_mut().cast()
}

/// The C callbacks for [`Operations`].
struct Callbacks<T>(core::marker::PhantomData<T>);

impl<T: Operations> Callbacks<T> {
    const OPERATIONS: &'static xen_sys::tpm_class_ops = &xen_sys::tpm_class_ops {
        flags: xen_sys::TPM_OPS_FLAGS_TPM_OPS_AUTO_STARTUP,
        send: Some(Self::send),
        cancel: Some(Self::cancel),
        ..pin_init::zeroed()
    };

    extern "C" fn send(
        chip: *mut xen_sys::tpm_chip,
        packet: *mut u8,
        size: usize,
        length: usize,
    ) -> c_int {
        // SAFETY: The core calls this for a valid `Chip<T>`, which is registered or being probed.
        let shared = unsafe { Shared::<T>::of_device(&raw const (*chip).dev) };
        // SAFETY: The core gives a buffer of `size` bytes for this call alone.
        let packet = unsafe { slice::from_raw_parts_mut(packet, size) };

        let result = from_result(|| {
            let ordinal = packet.get(6..10).and_then(|bytes| bytes.try_into().ok());
            let ordinal = u32::from_be_bytes(ordinal.ok_or(EINVAL)?);
            // SAFETY: The chip is valid.
            let duration = unsafe { xen_sys::tpm_calc_ordinal_duration(chip, ordinal) };

            let banks = packet.get(..length).is_some_and(banks::asked_for);
            let length = shared.operations.send(packet, length, duration)?;
            if banks && !packet.get(..length).is_some_and(banks::are_sound) {
                return Err(EIO);
            }
            Ok(c_int::try_from(length)?)
        });

        let tag = packet.get(..2).and_then(|bytes| bytes.try_into().ok());
        let tag = i32::from(u16::from_be_bytes(tag.unwrap_or_default()));
        shared
            .last
            .store(if result < 0 { result } else { tag }, Relaxed);
        result
    }

    extern "C" fn cancel(chip: *mut xen_sys::tpm_chip) {
        // SAFETY: As in `send()`.
        unsafe { Shared::<T>::of_device(&raw const (*chip).dev) }
            .operations
            .cancel();
    }
}
