// SPDX-License-Identifier: GPL-2.0

//! Registers the TPM behind a device with the core, in a work item, and unregisters it.
//!
//! A silent backend makes registering long: each of the core's commands has its timeout, and their
//! number is the TPM's choice. So neither `probe()` nor the thread that handles all of xenstore's
//! watches does it.

use crate::{
    event_log,
    identity::Comparison,
    protocol::epoch::Version,
    tpm::{
        chip::{
            Chip,
            Registration, //
        },
        registrar::RegistrarGuard, //
    },
    vtpm::{
        Vtpm,
        REGISTER, //
    },
    xen::{
        completion::Wait,
        work, //
    }, //
};
use kernel::{
    prelude::*,
    sync::{
        atomic::Relaxed,
        Arc, //
    },
    time::Jiffies,
    workqueue::{
        self,
        WorkItem, //
    },
};

impl WorkItem<REGISTER> for Vtpm {
    type Pointer = Arc<Self>;

    #[inline]
    fn run(this: Arc<Self>) {
        register(&this);
        this.attempted.complete();
    }
}

/// There is a new connection: verifies the TPM or, if none is registered, registers it.
pub(crate) fn start(vtpm: &Arc<Vtpm>) {
    // If it is enqueued already, it finds the new connection.
    let _ = workqueue::system_long().enqueue::<_, REGISTER>(vtpm.clone());
}

/// Waits for the end of an attempt to register the TPM. Returns false if the timeout is over.
pub(crate) fn wait(vtpm: &Vtpm, timeout: Jiffies) -> bool {
    vtpm.attempted.wait(timeout, true) != Wait::TimedOut
}

/// Verifies or registers the TPM. On failure, registration is tried again on the next connection.
fn register(vtpm: &Arc<Vtpm>) {
    let mut registrar = vtpm.registrar.lock();

    if let Some(registration) = registrar.registration() {
        verified(vtpm, registration, vtpm.verify());
        return;
    }
    match register_chip(vtpm, &mut registrar) {
        Ok(version) => vtpm.set_registered(version),
        Err(e) => {
            if vtpm.register_ratelimit.check() {
                dev_err!(
                    vtpm.dev,
                    "no TPM registered: domain {}'s does not work ({:?})\n",
                    vtpm.backend.load(Relaxed),
                    e
                );
            }
        }
    }
}

fn register_chip(vtpm: &Arc<Vtpm>, registrar: &mut RegistrarGuard<'_, Vtpm>) -> Result<Version> {
    let mut chip = Chip::new((*vtpm.dev).as_ref(), vtpm.clone())?;

    vtpm.begin_registration();
    let version = chip.detect_version()?;
    let log = event_log::checked(vtpm, version);
    let registration = registrar.register(chip, log)?;

    dev_info!(
        vtpm.dev,
        "{} is a {}, served by domain {}\n",
        registration.name(),
        version.name(),
        vtpm.backend.load(Relaxed)
    );
    Ok(version)
}

/// Tells user space, and the core, about a TPM that was reset.
fn verified(vtpm: &Vtpm, registration: &Registration<Vtpm>, comparison: Option<Comparison>) {
    let reset = match comparison {
        Some(Comparison::Same) => false,
        Some(Comparison::Reset) => true,
        Some(Comparison::Other) | None => return,
    };

    if reset {
        registration.uevent(c"RESET=1");
    }
    #[cfg(CONFIG_TCG_TPM2_HMAC)]
    hmac::enable(vtpm, registration, reset);
    let _ = vtpm;
}

/// Unregisters the TPM, or ends the attempt to register it.
pub(crate) fn unregister(vtpm: &Arc<Vtpm>) {
    // A TPM that is registered is unregistered while there is a connection: the core sends
    // TPM2_Shutdown.
    if !vtpm.registered.load(Relaxed) {
        vtpm.abort_commands();
    }
    work::flush::<_, REGISTER>(vtpm);
    vtpm.registrar.lock().unregister();
    #[cfg(CONFIG_TCG_TPM2_HMAC)]
    work::flush_delayed::<_, { crate::vtpm::ENABLE }>(vtpm);
}

/// With CONFIG_TCG_TPM2_HMAC, the core (as of 7.3) disables a chip for good when it cannot load its
/// null key, be it only that there is no connection for a moment.
#[cfg(CONFIG_TCG_TPM2_HMAC)]
mod hmac {
    use super::*;
    use crate::{
        protocol::state::ConnState,
        vtpm::ENABLE, //
    };
    use kernel::time::msecs_to_jiffies;

    /// How long after a command that failed the chip is looked at. By then the core has disabled
    /// it.
    const DELAY_MS: u32 = 1_000;

    impl Vtpm {
        /// A command failed: looks soon whether the core disabled the chip.
        pub(crate) fn check_enabled(self: &Arc<Self>) {
            if !self.is_shutting_down() {
                let _ = workqueue::system_long()
                    .enqueue_delayed::<_, ENABLE>(self.clone(), msecs_to_jiffies(DELAY_MS));
            }
        }
    }

    impl WorkItem<ENABLE> for Vtpm {
        type Pointer = Arc<Self>;

        fn run(this: Arc<Self>) {
            // Without a connection, the next one does it.
            if this.connection.state() == ConnState::Connected {
                if let Some(registration) = this.registrar.lock().registration() {
                    enable(&this, registration, false);
                }
            }
        }
    }

    /// Lets the core use the TPM again.
    pub(super) fn enable(vtpm: &Vtpm, registration: &Registration<Vtpm>, reset: bool) {
        match registration.enable(reset) {
            Ok(true) => dev_info!(vtpm.dev, "{} is enabled again\n", registration.name()),
            Ok(false) => {}
            Err(e) => dev_err!(
                vtpm.dev,
                "{} is not enabled again ({:?})\n",
                registration.name(),
                e
            ),
        }
    }
}
