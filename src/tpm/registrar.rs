// SPDX-License-Identifier: GPL-2.0

//! Where a device's chip is registered, whose registration ends with the binding of the device.
//!
//! C header: [`include/linux/tpm.h`](srctree/include/linux/tpm.h)

use super::{
    chip::{
        Chip,
        ChipOps,
        Registration, //
    },
    event_log::EventLog,
};
use kernel::{
    device::{
        self,
        Bound, //
    },
    devres,
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        Mutex,
        MutexGuard, //
    }, //
};

/// What is registered for a device.
enum Slot<T: ChipOps> {
    Vacant,
    Registered(Registration<T>),
    /// The device is no longer bound.
    Unbound,
}

/// Where the one chip of a bound device is registered. It is unregistered when the device is
/// unbound, if not earlier, and none is registered after that.
#[pin_data]
pub(crate) struct Registrar<T: ChipOps> {
    #[pin]
    chip: Mutex<Slot<T>>,
}

/// Ends a registration with the binding.
struct Unregister<T: ChipOps>(Arc<Registrar<T>>);

impl<T: ChipOps> Drop for Unregister<T> {
    #[inline]
    fn drop(&mut self) {
        *self.0.chip.lock() = Slot::Unbound;
    }
}

impl<T: ChipOps> Registrar<T> {
    /// Makes the registrar of a device.
    pub(crate) fn new(dev: &device::Device<Bound>) -> Result<Arc<Self>> {
        let this = Arc::pin_init(
            pin_init!(Self { chip <- new_mutex!(Slot::Vacant) }),
            GFP_KERNEL,
        )?;

        devres::register(dev, Unregister(this.clone()), GFP_KERNEL)?;
        Ok(this)
    }

    /// Keeps others from registering and unregistering.
    pub(crate) fn lock(&self) -> RegistrarGuard<'_, T> {
        RegistrarGuard(self.chip.lock())
    }
}

/// The right to register and unregister a device's chip.
pub(crate) struct RegistrarGuard<'a, T: ChipOps>(MutexGuard<'a, Slot<T>>);

impl<T: ChipOps> RegistrarGuard<'_, T> {
    /// The chip that is registered.
    pub(crate) fn registration(&self) -> Option<&Registration<T>> {
        match &*self.0 {
            Slot::Registered(registration) => Some(registration),
            _ => None,
        }
    }

    /// Initialises the TPM and registers the chip, with the log of what was measured before, if
    /// there is one. [`ENODEV`] when the device is no longer bound, [`EBUSY`] when another chip is
    /// registered.
    pub(crate) fn register(
        &mut self,
        chip: Chip<T>,
        log: Option<Arc<EventLog>>,
    ) -> Result<&Registration<T>> {
        match &*self.0 {
            Slot::Vacant => {}
            Slot::Registered(_) => return Err(EBUSY),
            Slot::Unbound => return Err(ENODEV),
        }
        *self.0 = Slot::Registered(chip.register(log)?);
        self.registration().ok_or(ENODEV)
    }

    /// Unregisters the chip, if there is one.
    pub(crate) fn unregister(&mut self) {
        if let Slot::Registered(_) = *self.0 {
            *self.0 = Slot::Vacant;
        }
    }
}
