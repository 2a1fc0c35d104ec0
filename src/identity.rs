// SPDX-License-Identifier: GPL-2.0

//! Whether the TPM behind a new connection is the one that is registered. If not, the device must
//! not pretend that it was.

use crate::{
    pace::Pace,
    protocol::life::{
        Life,
        Version, //
    },
    xen::bus, //
};
use kernel::{
    device::Core,
    new_mutex,
    prelude::*,
    sync::Mutex, //
};

/// The toolstack's name of a vTPM.
type Uuid = [u8; 36];

/// What is known of a TPM.
#[derive(Clone, Copy)]
struct Known {
    version: Version,
    life: Life,
    uuid: Option<Uuid>,
}

/// The TPM that is registered.
#[pin_data]
pub(crate) struct Identity {
    #[pin]
    known: Mutex<Option<Known>>,
    /// The uuid of the present connection's.
    #[pin]
    uuid: Mutex<Option<Uuid>>,
    restarted: Pace,
    refused: Pace,
}

impl Identity {
    /// None is registered.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            known <- new_mutex!(None),
            uuid <- new_mutex!(None),
            restarted: Pace::new(),
            refused: Pace::new(),
        })
    }

    /// There is a new connection. Reads what the toolstack calls its vTPM.
    pub(crate) fn connected(&self, dev: &bus::Device<Core<'_>>) {
        let uuid = dev.backend_value(c"uuid");

        *self.uuid.lock() = uuid.ok().and_then(|uuid| uuid.bytes().try_into().ok());
    }

    /// The version of the TPM that is registered, if one is.
    pub(crate) fn version(&self) -> Option<Version> {
        self.known.lock().map(|known| known.version)
    }

    /// A TPM of this version is registered.
    pub(crate) fn registered(&self, version: Version) {
        *self.known.lock() = Some(Known {
            version,
            life: Life::Untold,
            uuid: *self.uuid.lock(),
        });
    }

    /// Whether a TPM with this life is the one that is registered. It may have been started anew:
    /// whoever runs the backend has chosen that, and the guest is told.
    pub(crate) fn is_same(&self, dev: &bus::Device, life: Life) -> bool {
        let uuid = *self.uuid.lock();
        let mut known = self.known.lock();
        let Some(known) = &mut *known else {
            return true;
        };

        let other_uuid = known.uuid.is_some() && uuid.is_some() && known.uuid != uuid;
        if other_uuid || life == Life::OtherVersion {
            if self.refused.allows() {
                dev_err!(
                    dev,
                    "the backend has another TPM than before: refused. \
                     Bind the driver anew to use it\n"
                );
            }
            return false;
        }
        if let Life::Mark(_) = life {
            if known.life != life && known.life != Life::Untold && self.restarted.allows() {
                dev_warn!(
                    dev,
                    "the TPM was started anew: its PCRs are reset, \
                     sessions and loaded keys are gone\n"
                );
            }
            known.life = life;
        }
        true
    }
}
