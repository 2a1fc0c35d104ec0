// SPDX-License-Identifier: GPL-2.0

//! What differs between TPM 1.2 and TPM 2.0, as far as a backend has to know.

use std::fmt;
use std::str::FromStr;

use xen_tpm_protocol::packet::HEADER_SIZE;

/// Which TPM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// TPM 1.2.
    Tpm12,
    /// TPM 2.0.
    Tpm2,
}

impl Version {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Tpm12, Self::Tpm2];

    /// The file that swtpm keeps the TPM's state in.
    pub fn state_file(self) -> &'static str {
        match self {
            Self::Tpm12 => "tpm-00.permall",
            Self::Tpm2 => "tpm2-00.permall",
        }
    }

    /// The file that swtpm writes, to rename it to [`state_file`](Self::state_file).
    pub fn temporary_file(self) -> &'static str {
        match self {
            Self::Tpm12 => "TMP-00.permall",
            Self::Tpm2 => "TMP2-00.permall",
        }
    }

    /// The file that swtpm keeps in what goes with the power, for a TPM that is to go on later.
    pub fn volatile_file(self) -> &'static str {
        match self {
            Self::Tpm12 => "tpm-00.volatilestate",
            Self::Tpm2 => "tpm2-00.volatilestate",
        }
    }

    /// The TPM_Startup or TPM2_Startup, type clear, that firmware sends first of all.
    pub(super) fn startup(self) -> [u8; 12] {
        match self {
            Self::Tpm12 => [0, 0xc1, 0, 0, 0, 12, 0, 0, 0, 0x99, 0, 1],
            Self::Tpm2 => [0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x44, 0, 0],
        }
    }

    /// The TPM2_Shutdown, type clear, that goes before each end of a TPM 2.0 but a save: without it the next
    /// start counts as one after a power failure, and a failed authorization is assumed. A TPM 1.2 has no such
    /// command.
    pub(super) fn shutdown(self) -> Option<[u8; 12]> {
        match self {
            Self::Tpm12 => None,
            Self::Tpm2 => Some([0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x45, 0, 0]),
        }
    }

    /// TPM2_DictionaryAttackLockReset with an empty lockout authorization. A TPM 1.2 has none such.
    pub(super) fn clear_lockout(self) -> Option<[u8; 27]> {
        match self {
            Self::Tpm12 => None,
            Self::Tpm2 => Some([
                0x80, 2, 0, 0, 0, 27, 0, 0, 1, 0x39, 0x40, 0, 0, 0x0a, // TPM_RH_LOCKOUT
                0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0, // TPM_RS_PW, empty
            ]),
        }
    }

    /// What takes the platform's rights from whoever comes next, as firmware does before it starts an operating
    /// system. TPM 2.0: TPM2_HierarchyChangeAuth of the platform hierarchy to `secret`. TPM 1.2:
    /// TSC_PhysicalPresence, enabled as a command, then set to "not present" and locked.
    pub(super) fn close_platform(self, secret: &[u8; 32]) -> Vec<Vec<u8>> {
        let presence = |flags: u8| vec![0, 0xc1, 0, 0, 0, 12, 0x40, 0, 0, 0x0a, 0, flags];
        match self {
            Self::Tpm12 => vec![presence(0x20), presence(0x14)],
            Self::Tpm2 => {
                const START: [u8; 29] = [
                    0x80, 2, 0, 0, 0, 61, 0, 0, 1, 0x29, 0x40, 0, 0, 0x0c, // TPM_RH_PLATFORM
                    0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0, // TPM_RS_PW, empty
                    0, 32,
                ];
                vec![[&START[..], secret].concat()]
            }
        }
    }

    /// Whether a response says that the TPM is in failure mode, as after a write to its state that failed:
    /// TPM_FAILEDSELFTEST or TPM_RC_FAILURE. Nothing but a new start ends that.
    pub fn is_failure_mode(self, response: &[u8]) -> bool {
        let code = super::undo::code(response);
        match self {
            Self::Tpm12 => code == Some(0x1c),
            Self::Tpm2 => code == Some(0x101),
        }
    }

    /// The answer to a command that may not be sent from its locality: TPM_BAD_LOCALITY or
    /// TPM_RC_LOCALITY.
    pub fn bad_locality(self) -> [u8; HEADER_SIZE] {
        match self {
            Self::Tpm12 => [0, 0xc4, 0, 0, 0, 10, 0, 0, 0, 0x3d],
            Self::Tpm2 => [0x80, 1, 0, 0, 0, 10, 0, 0, 0x09, 0x07],
        }
    }
}

impl FromStr for Version {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|version| version.to_string() == s)
            .ok_or_else(|| format!("{s:?} is not a TPM version: 1.2 or 2.0 is expected"))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tpm12 => "1.2",
            Self::Tpm2 => "2.0",
        })
    }
}
