// SPDX-License-Identifier: GPL-2.0

//! Whether the TPM behind a new connection is the one that is registered. If it is not, commands
//! must fail.

use crate::{
    protocol::epoch::{
        Epoch,
        Version, //
    },
    ratelimit::RateLimit,
    xen::bus, //
};
use kernel::device::Core;

/// The toolstack's name of a vTPM.
type Uuid = [u8; 36];

/// What a TPM is, compared with the one that is registered.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comparison {
    /// It is the same.
    Same,
    /// It is the same, and was reset.
    Reset,
    /// It is another one.
    Other,
}

/// The TPM that is registered.
#[derive(Clone, Copy)]
struct RegisteredTpm {
    version: Version,
    epoch: Epoch,
    uuid: Option<Uuid>,
}

/// What is known about a device's TPM.
pub(crate) struct TpmIdentity {
    registered: Option<RegisteredTpm>,
    /// The uuid of the present connection's.
    uuid: Option<Uuid>,
    reset_ratelimit: RateLimit,
    mismatch_ratelimit: RateLimit,
}

impl TpmIdentity {
    /// No TPM is registered.
    pub(crate) fn new() -> Self {
        Self {
            registered: None,
            uuid: None,
            reset_ratelimit: RateLimit::new(),
            mismatch_ratelimit: RateLimit::new(),
        }
    }

    /// There is a new connection. Reads what the toolstack calls its vTPM.
    pub(crate) fn connected(&mut self, dev: &bus::Device<Core<'_>>) {
        let uuid = dev.read_otherend(c"uuid");

        self.uuid = uuid.ok().and_then(|uuid| uuid.bytes().try_into().ok());
    }

    /// The version of the TPM that is registered, if one is.
    pub(crate) fn version(&self) -> Option<Version> {
        self.registered.map(|tpm| tpm.version)
    }

    /// A TPM of this version is registered.
    pub(crate) fn registered(&mut self, version: Version) {
        self.registered = Some(RegisteredTpm {
            version,
            epoch: Epoch::Unknown,
            uuid: self.uuid,
        });
    }

    /// Whether an epoch is that of the TPM that is registered, or the first one that it has.
    pub(crate) fn is_expected(&self, epoch: Epoch) -> bool {
        let expected = self.registered.map(|tpm| tpm.epoch);

        matches!(epoch, Epoch::Known(_))
            && (expected == Some(epoch) || expected == Some(Epoch::Unknown))
    }

    /// Compares a TPM in this epoch with the one that is registered, and remembers the epoch. It
    /// may have been reset: the backend's administrator chose that, and the guest is told.
    pub(crate) fn check_and_update(&mut self, dev: &bus::Device, epoch: Epoch) -> Comparison {
        let Some(tpm) = &mut self.registered else {
            return Comparison::Same;
        };

        let other_uuid = matches!((&tpm.uuid, &self.uuid), (Some(old), Some(new)) if old != new);
        if other_uuid || epoch == Epoch::OtherVersion {
            self.mismatch_ratelimit.warn(
                dev,
                "the backend has another TPM than before: refused. \
                 Bind the driver again to use it",
            );
            return Comparison::Other;
        }
        if !matches!(epoch, Epoch::Known(_)) {
            return Comparison::Same;
        }
        let reset = tpm.epoch != epoch && tpm.epoch != Epoch::Unknown;
        tpm.epoch = epoch;
        if !reset {
            return Comparison::Same;
        }
        self.reset_ratelimit.warn(
            dev,
            "the TPM was reset: its PCRs are reset, sessions and loaded keys are gone",
        );
        Comparison::Reset
    }
}
