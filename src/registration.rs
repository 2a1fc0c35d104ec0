// SPDX-License-Identifier: GPL-2.0

//! Registers the TPM behind a device with the core, in `probe()` or in a thread of its own, and
//! unregisters it.

use crate::{
    pace::Pace,
    tpm::chip::{
        Chip,
        Registration, //
    },
    vtpm::Vtpm,
    xen::{
        bus,
        work, //
    },
};
use kernel::{
    device::Core,
    new_mutex, new_work,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        Mutex, //
    },
    workqueue::{
        Work,
        WorkItem, //
    },
};

/// The TPM behind a device, once it is registered, and the work of registering it.
///
/// A silent backend makes that work long. Where it is not done in `probe()` it has a thread of its
/// own: the one that takes xenstore's watches serves all devices of the guest.
#[pin_data]
pub(crate) struct Tpm {
    vtpm: Arc<Vtpm>,
    /// The chip that is to be registered, and the domain of its backend.
    #[pin]
    fresh: Mutex<Option<(Chip<Vtpm>, c_int)>>,
    /// Held while a chip is registered or goes.
    #[pin]
    registration: Mutex<Option<Registration<Vtpm>>>,
    /// There is a registration. For those who do not wait for it.
    registered: Atomic<bool>,
    failed: Pace,
    #[pin]
    work: Work<Tpm>,
}

kernel::impl_has_work! {
    impl HasWork<Self> for Tpm { self.work }
}

impl WorkItem for Tpm {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.register();
    }
}

impl Tpm {
    pub(crate) fn new(vtpm: Arc<Vtpm>) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                vtpm,
                fresh <- new_mutex!(None),
                registration <- new_mutex!(None),
                registered: Atomic::new(false),
                failed: Pace::new(),
                work <- new_work!("Tpm::work"),
            }),
            GFP_KERNEL,
        )
    }

    /// Has a chip ready for [`register`](Self::register), if none is registered.
    pub(crate) fn prepare(&self, dev: &bus::Device<Core<'_>>) {
        if self.registered.load(Relaxed) {
            return;
        }
        match Chip::new(dev.as_ref(), self.vtpm.clone()) {
            Ok(chip) => *self.fresh.lock() = Some((chip, dev.backend_domain())),
            Err(e) => dev_err!(dev, "no TPM registered ({:?})\n", e),
        }
    }

    /// Registers the TPM behind a connection that is up. Where that fails the next connection is
    /// the next chance. If one is registered, it finds out whether it is the same.
    pub(crate) fn register(&self) {
        let mut registration = self.registration.lock();
        let fresh = self.fresh.lock().take();
        if registration.is_some() {
            self.vtpm.compare();
            return;
        }
        let Some((mut chip, domain)) = fresh else {
            return;
        };
        let register = || {
            let version = chip.probe()?;

            Ok((version, chip.register()?))
        };

        match register() {
            Ok((version, tpm)) => {
                dev_info!(
                    self.vtpm.device(),
                    "{} is a {}, served by domain {}\n",
                    tpm.name(),
                    version.name(),
                    domain
                );
                *registration = Some(tpm);
                self.registered.store(true, Relaxed);
                self.vtpm.registered(version);
            }
            Err::<_, Error>(e) => {
                if self.failed.allows() {
                    dev_err!(
                        self.vtpm.device(),
                        "no TPM registered: domain {}'s does not work ({:?})\n",
                        domain,
                        e
                    );
                }
            }
        }
    }

    /// Takes the TPM from its users, or ends the attempt to register one.
    pub(crate) fn unregister(self: &Arc<Self>) {
        // One that is registered is unregistered while there is a connection, for the core has some
        // last words for a TPM 2.0.
        if !self.registered.load(Relaxed) {
            self.vtpm.interrupt();
        }
        work::finish(self);
        *self.fresh.lock() = None;
        *self.registration.lock() = None;
    }
}
