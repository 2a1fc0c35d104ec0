// SPDX-License-Identifier: GPL-2.0

//! A TPM chip whose driver carries out a whole command in one call, and its registration.
//!
//! C headers: [`include/linux/tpm.h`](srctree/include/linux/tpm.h),
//! [`drivers/char/tpm/tpm.h`](srctree/drivers/char/tpm/tpm.h)

use super::{
    attribute::RawAttribute,
    event_log::{
        EventLog,
        EventLogDir, //
    },
};
use crate::{
    protocol::{
        epoch::Version,
        quirks::Quirk, //
    },
    xen_sys, //
};
use core::{
    marker::PhantomData,
    ptr::{
        self,
        from_ref,
        NonNull, //
    },
    slice,
};
use kernel::{
    bindings,
    device,
    error::{
        from_err_ptr,
        from_result,
        to_result, //
    },
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    },
    time::Jiffies,
    ThisModule, //
};

/// Tag of a TPM 1.2 response without authorisation (TPM_TAG_RSP_COMMAND; TPM Main Specification
/// 1.2, part 2, section 6). A TPM 1.2 gives it to a TPM 2.0 command, with TPM_BADTAG.
const TAG_TPM12: u16 = 0x00c4;

/// Tag of a TPM 2.0 response without sessions (TPM_ST_NO_SESSIONS; TPM 2.0 Library, part 2,
/// section 6.9).
const TAG_TPM20: u16 = 0x8001;

/// What a driver does for its chip.
pub(crate) trait ChipOps: Send + Sync + Sized + 'static {
    /// The driver's module.
    const MODULE: &'static ThisModule;

    /// The driver's own attributes.
    const ATTRIBUTES: &'static [RawAttribute<Self>];

    /// Carries out one command. The first `length` bytes of `packet` are the request, and the
    /// response is written over it. `duration` is the core's timeout for the command.
    ///
    /// Returns the response's length. The core logs all errors but [`EPIPE`].
    fn send(self: &Arc<Self>, packet: &mut [u8], length: usize, duration: Jiffies)
        -> Result<usize>;

    /// Cancels the running command, if there is one. May be called at any time.
    fn cancel(&self);
}

/// The driver data of a chip's device, for the chip's callbacks.
pub(super) struct ChipData<T: ChipOps> {
    pub(super) ops: Arc<T>,
    /// The last response's tag, or the negative errno of the last command.
    last_result: Atomic<i32>,
    /// The last negative errno.
    last_error: Atomic<i32>,
}

impl<T: ChipOps> ChipData<T> {
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
/// parent is `_parent`, its driver data is `data`, and its operations are those of `Callbacks<T>`.
pub(crate) struct Chip<T: ChipOps> {
    // Dropped after `drop()` has put the chip, in this order.
    raw: NonNull<xen_sys::tpm_chip>,
    data: KBox<ChipData<T>>,
    // An unregistered device does not hold a reference to its parent.
    _parent: ARef<device::Device>,
}

// SAFETY: Chips may be used from any thread; what has to be serialised is behind `&mut` or `self`.
unsafe impl<T: ChipOps> Send for Chip<T> {}

impl<T: ChipOps> Chip<T> {
    /// Allocates a chip, with the lowest number that is free, as a child of `parent`.
    pub(crate) fn new(parent: &device::Device, ops: Arc<T>) -> Result<Self> {
        let data = KBox::new(
            ChipData {
                ops,
                last_result: Atomic::new(0),
                last_error: Atomic::new(0),
            },
            GFP_KERNEL,
        )?;

        // Not `tpmm_chip_alloc()`: it would overwrite the parent's driver data.
        // SAFETY: `parent` is a valid device, and the operations are never freed.
        let raw = from_err_ptr(unsafe {
            // CAST: `device::Device` is a transparent wrapper of it.
            xen_sys::tpm_chip_alloc(from_ref(parent).cast_mut().cast(), Callbacks::<T>::OPS)
        })?;
        let raw = NonNull::new(raw).ok_or(ENOMEM)?;

        // SAFETY: The chip is valid and nobody else knows it.
        unsafe {
            bindings::dev_set_drvdata(
                &raw mut (*raw.as_ptr()).dev,
                from_ref(&*data).cast_mut().cast(),
            );
            (*raw.as_ptr()).flags |= xen_sys::tpm_chip_flags_TPM_CHIP_FLAG_SYNC;
        }

        // INVARIANT: `raw` was just allocated as a child of `parent` and given `data`.
        Ok(Self {
            raw,
            data,
            _parent: parent.into(),
        })
    }

    /// Detects the TPM's version, by one command.
    ///
    /// The core's own `tpm2_probe()` takes a command that failed for a TPM 1.2. Here it is an
    /// error: that of the command, or [`ENODEV`] when the response is none of a TPM's.
    pub(crate) fn detect_version(&mut self) -> Result<Version> {
        let chip = self.raw.as_ptr();

        self.data.last_result.store(0, Relaxed);
        // SAFETY: The chip is valid, and not registered, so that nobody else uses it.
        unsafe {
            to_result(xen_sys::tpm_chip_start(chip))?;
            let result = to_result(xen_sys::tpm2_probe(chip));
            xen_sys::tpm_chip_stop(chip);
            result?;
        }

        let last = self.data.last_result.load(Relaxed);
        match u16::try_from(last) {
            Ok(TAG_TPM12) => Ok(Version::V1_2),
            Ok(TAG_TPM20) => Ok(Version::V2_0),
            Ok(_) => Err(ENODEV),
            Err(_) => Err(Error::from_errno(last)),
        }
    }

    /// Initialises the TPM and registers the chip. Without memory for its log it has none.
    #[inline]
    pub(super) fn register(self, log: Option<Arc<EventLog>>) -> Result<Registration<T>> {
        let chip = self.raw.as_ptr();

        self.data.last_error.store(0, Relaxed);
        // SAFETY: The chip is valid and not registered, so that nobody else uses it.
        let flags = unsafe {
            to_result_of_tpm(xen_sys::tpm_chip_bootstrap(chip))?;
            (*chip).flags
        };
        // The core (as of 7.3) takes a command that could not be carried out for the sign of a TPM
        // that needs new firmware, and would register a chip that is of no use.
        if flags & xen_sys::tpm_chip_flags_TPM_CHIP_FLAG_FIRMWARE_UPGRADE != 0 {
            to_result(self.data.last_error.load(Relaxed))?;
        }
        // SAFETY: As above.
        to_result_of_tpm(unsafe { xen_sys::tpm_chip_register(chip) })?;

        // INVARIANT: The registration succeeded; no attribute was created.
        let mut registration = Registration {
            log: None,
            chip: self,
            created: 0,
        };
        if let Some(log) = log {
            registration.log = EventLogDir::new(registration.name(), log).ok();
        }
        registration.create_attributes();
        Ok(registration)
    }

    /// The chip's own device: tpmN in sysfs.
    #[inline]
    fn device(&self) -> *mut bindings::device {
        // SAFETY: The chip is valid by the type invariants.
        unsafe { &raw mut (*self.raw.as_ptr()).dev }
    }

    #[inline]
    fn kobject(&self) -> *mut bindings::kobject {
        // SAFETY: As in `device()`.
        unsafe { &raw mut (*self.device()).kobj }
    }

    #[inline]
    fn parent_kobject(&self) -> *mut bindings::kobject {
        // SAFETY: As in `device()`; by the type invariants the parent is valid, too.
        unsafe { &raw mut (*(*self.device()).parent).kobj }
    }
}

impl<T: ChipOps> Drop for Chip<T> {
    #[inline]
    fn drop(&mut self) {
        // Open files may keep the chip for longer, but no callback runs any more that could look
        // for `data`: either the chip was never registered, or it is no longer.
        // SAFETY: By the type invariants this object has a reference to give back.
        unsafe { bindings::put_device(self.device()) };
    }
}

/// As `to_result()`, for functions of the core that may let a TPM's own, positive error through.
fn to_result_of_tpm(result: c_int) -> Result {
    match result {
        1.. => Err(EIO),
        result => to_result(result),
    }
}

/// A registered chip.
///
/// # Invariants
///
/// `chip` is registered, and of the driver's attributes those were created whose bit is set in
/// `created`.
pub(crate) struct Registration<T: ChipOps> {
    // Dropped while the chip is registered: its name is the chip's.
    log: Option<EventLogDir<T>>,
    chip: Chip<T>,
    created: u32,
}

impl<T: ChipOps> Registration<T> {
    /// The chip's name, `tpmN`.
    pub(crate) fn name(&self) -> &CStr {
        // SAFETY: The chip's device is valid, and its name is terminated and does not change.
        unsafe { CStr::from_char_ptr(bindings::dev_name(self.chip.device())) }
    }

    /// Tells user space that the chip is another one in a way: a `change` uevent with `variable`,
    /// `NAME=value`.
    pub(crate) fn uevent(&self, variable: &'static CStr) {
        let mut variables = [variable.as_char_ptr().cast_mut(), ptr::null_mut()];

        // SAFETY: The chip's device is registered; the list of variables is terminated, and they
        // are only read.
        unsafe {
            xen_sys::kobject_uevent_env(
                self.chip.kobject(),
                bindings::kobject_action_KOBJ_CHANGE,
                variables.as_mut_ptr(),
            )
        };
    }

    /// Lets the core use the TPM again after it disabled the chip since it could not load its null
    /// key: there was no connection for a moment, or the TPM was `reset`, and gets another null
    /// key. Returns whether the chip had been disabled.
    #[cfg(CONFIG_TCG_TPM2_HMAC)]
    pub(crate) fn enable(&self, reset: bool) -> Result<bool> {
        let chip = self.chip.raw.as_ptr();
        let disable = xen_sys::tpm_chip_flags_TPM_CHIP_FLAG_DISABLE;

        // SAFETY: The chip is valid, and its flags are changed under this mutex.
        let disabled = unsafe {
            bindings::mutex_lock(&raw mut (*chip).tpm_mutex);
            let disabled = (*chip).flags & disable != 0;
            (*chip).flags &= !disable;
            if reset {
                (*chip).flags &= !xen_sys::tpm_chip_flags_TPM_CHIP_FLAG_BOOTSTRAPPED;
            }
            bindings::mutex_unlock(&raw mut (*chip).tpm_mutex);
            disabled
        };
        if reset {
            // SAFETY: The chip is valid; between the two calls its operations are there and nobody
            // else sends a command.
            unsafe {
                to_result(xen_sys::tpm_try_get_ops(chip))?;
                let result = xen_sys::tpm_chip_bootstrap(chip);
                xen_sys::tpm_put_ops(chip);
                to_result_of_tpm(result)?;
            }
        }
        Ok(disabled)
    }

    /// Creates the driver's attributes in the chip's directory, and links to them in the parent's,
    /// where the links to all of a TPM 1.2's attributes are. The TPM works without them.
    fn create_attributes(&mut self) {
        const { assert!(T::ATTRIBUTES.len() <= 32) };
        for (i, attribute) in T::ATTRIBUTES.iter().enumerate() {
            match self.create_attribute(attribute) {
                // INVARIANT: It was just created.
                Ok(()) => self.created |= 1 << i,
                Err(e) => {
                    // SAFETY: The chip's device is valid for as long as `self` is.
                    let dev = unsafe { device::Device::from_raw(self.chip.device()) };
                    let dev: &device::Device = dev;
                    dev_warn!(dev, "an attribute is missing ({:?})\n", e);
                }
            }
        }
    }

    #[inline(never)]
    fn create_attribute(&self, attribute: &RawAttribute<T>) -> Result {
        let (dev, raw) = (self.chip.device(), attribute.raw);
        let (parent, name) = (self.chip.parent_kobject(), raw.attr.name);

        // SAFETY: The chip's device and its parent are registered; attributes are never freed. What
        // is removed by name is the core's attribute that this one replaces, and the link to it;
        // where there is none nothing happens.
        unsafe {
            if attribute.replaces {
                bindings::device_remove_file(dev, raw);
                xen_sys::sysfs_remove_link(parent, name);
            }
            to_result(bindings::device_create_file(dev, raw))?;
            to_result(xen_sys::compat_only_sysfs_link_entry_to_kobj(
                parent,
                self.chip.kobject(),
                name,
                ptr::null(),
            ))
            .inspect_err(|_| bindings::device_remove_file(dev, raw))
        }
    }
}

impl<T: ChipOps> Drop for Registration<T> {
    #[inline]
    fn drop(&mut self) {
        self.log = None;
        for (i, attribute) in T::ATTRIBUTES.iter().enumerate() {
            if self.created & 1 << i != 0 {
                // The file itself goes with the chip's directory.
                // SAFETY: By the type invariants this link is the driver's own; the parent is
                // valid.
                unsafe {
                    xen_sys::sysfs_remove_link(self.chip.parent_kobject(), attribute.raw.attr.name)
                };
            }
        }
        // SAFETY: By the type invariants. When it returns no callback runs, and none will start;
        // only then `self.chip` is dropped.
        unsafe { xen_sys::tpm_chip_unregister(self.chip.raw.as_ptr()) };
    }
}

/// The C callbacks for [`ChipOps`].
struct Callbacks<T>(PhantomData<T>);

impl<T: ChipOps> Callbacks<T> {
    const OPS: &'static xen_sys::tpm_class_ops = &xen_sys::tpm_class_ops {
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
        let data = unsafe { ChipData::<T>::of_device(&raw const (*chip).dev) };
        // SAFETY: The core gives a buffer of `size` bytes for this call alone. It is memory of C's,
        // from its page allocator: bytes that C did not write have unknown values, but have values.
        let packet = unsafe { slice::from_raw_parts_mut(packet, size) };

        let result = from_result(|| {
            let ordinal = packet.get(6..10).and_then(|bytes| bytes.try_into().ok());
            let ordinal = u32::from_be_bytes(ordinal.ok_or(EINVAL)?);
            // SAFETY: The chip is valid.
            let duration = unsafe { xen_sys::tpm_calc_ordinal_duration(chip, ordinal) };

            let quirk = packet.get(..length).and_then(Quirk::of);
            let length = data.ops.send(packet, length, duration)?;
            if let (Some(quirk), Some(response)) = (quirk, packet.get(..length)) {
                if !quirk.is_survived(response) {
                    return Err(EIO);
                }
            }
            Ok(c_int::try_from(length)?)
        });

        let tag = packet.get(..2).and_then(|bytes| bytes.try_into().ok());
        let tag = i32::from(u16::from_be_bytes(tag.unwrap_or_default()));
        if result < 0 {
            data.last_error.store(result, Relaxed);
        }
        data.last_result
            .store(if result < 0 { result } else { tag }, Relaxed);
        result
    }

    extern "C" fn cancel(chip: *mut xen_sys::tpm_chip) {
        // SAFETY: As in `send()`.
        unsafe { ChipData::<T>::of_device(&raw const (*chip).dev) }
            .ops
            .cancel();
    }
}
