// SPDX-License-Identifier: GPL-2.0

//! What the administrator decides: where the state is, and which TPM each vTPM is.

mod file;

use std::collections::HashMap;
use std::fmt;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::str::FromStr;

use log::LevelFilter;

pub use file::{load, parse, FileError};

use crate::swtpm::{version_of_state, Version};

/// Where the administrator's decisions are unless told otherwise.
pub const CONFIG_FILE: &str = "/etc/xen-vtpmd.toml";

/// Where the state is unless told otherwise.
pub const STATE_DIR: &str = "/var/lib/xen-vtpmd";

/// Where the daemon notes which processes it has, unless told otherwise.
pub const RUN_DIR: &str = "/run/xen-vtpmd";

/// The first of the user ids for vTPMs, unless told otherwise: between the ranges that systemd's
/// `UIDS-GIDS` gives to containers and those above 2^31, which nobody uses.
pub const FIRST_UID: u32 = 1_900_000_000;

/// A vTPM's uuid: 32 hex digits with dashes, in lower case, so that it is safe as a folder's name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Uuid(String);

impl FromStr for Uuid {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let fits = |(i, b): (usize, u8)| match i {
            8 | 13 | 18 | 23 => b == b'-',
            _ => b.is_ascii_hexdigit(),
        };
        match s.len() == 36 && s.bytes().enumerate().all(fits) {
            true => Ok(Self(s.to_ascii_lowercase())),
            false => Err(format!(
                "{s:?} is not a uuid: 32 hex digits as 8-4-4-4-12 are expected"
            )),
        }
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a vTPM's TPM cannot be what it is wanted to be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The state folder cannot be looked at or made.
    #[error("state folder {}: {source}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// The state is one version's, and another is wanted.
    #[error("vTPM {uuid} has the state of a TPM {found}, where a TPM {wanted} is wanted")]
    Version {
        /// Whose.
        uuid: Uuid,
        /// What the state folder has.
        found: Version,
        /// What was asked for.
        wanted: Version,
    },
}

/// What becomes of a vTPM whose TPM died under a running guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnDeath {
    /// It stays closed until the guest is started anew: its PCRs are lost, and a guest that goes on
    /// with fresh ones could forge its own past.
    #[default]
    Closed,
    /// It comes back at once, as a TPM that has just been started.
    Restart,
}

impl FromStr for OnDeath {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "closed" => Ok(Self::Closed),
            "restart" => Ok(Self::Restart),
            _ => Err(format!("{s:?}: \"closed\" or \"restart\" is expected")),
        }
    }
}

/// The administrator's decisions for one vTPM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Which TPM it has to be; `None` if nobody says so for this very vTPM.
    pub version: Option<Version>,
    /// Which TPM it becomes if it has no state and nobody says.
    pub default_version: Version,
    /// The localities that the guest may send commands from: bit n for locality n.
    pub localities: u8,
    /// What becomes of it when its TPM dies.
    pub on_death: OnDeath,
    /// Whether new state gets certificates for the EK and, for a TPM 2.0, the platform.
    pub certificates: bool,
    /// The file with the key that the state is encrypted with.
    pub key_file: Option<PathBuf>,
    /// How much memory swtpm may map, in MiB.
    pub memory: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            version: None,
            default_version: Version::Tpm2,
            localities: 0b1_1111,
            on_death: OnDeath::Closed,
            certificates: false,
            key_file: None,
            memory: 256,
        }
    }
}

/// The administrator's decisions.
#[derive(Clone, Debug)]
pub struct Config {
    /// The folder with a folder for each vTPM.
    pub state_dir: PathBuf,
    /// The folder for what need not outlive the machine's run: who runs where.
    pub run_dir: PathBuf,
    /// The first of the user ids that vTPMs run as; `None` if they are to run as the caller, without
    /// isolation, as tests without privileges do.
    pub first_uid: Option<u32>,
    /// How much is logged.
    pub log_level: LevelFilter,
    /// For vTPMs without an entry of their own.
    pub policy: Policy,
    /// For certain vTPMs.
    pub vtpms: HashMap<Uuid, Policy>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: PathBuf::from(STATE_DIR),
            run_dir: PathBuf::from(RUN_DIR),
            first_uid: Some(FIRST_UID),
            log_level: LevelFilter::Info,
            policy: Policy::default(),
            vtpms: HashMap::new(),
        }
    }
}

impl Config {
    /// What holds for a vTPM.
    pub fn policy(&self, uuid: &Uuid) -> &Policy {
        self.vtpms.get(uuid).unwrap_or(&self.policy)
    }
}

/// A vTPM's state, as it was found.
#[derive(Clone, Debug)]
pub struct State {
    /// Its folder.
    pub path: PathBuf,
    /// Which TPM it is, or is to become.
    pub version: Version,
    /// Whether it is there already.
    pub exists: bool,
}

impl Config {
    /// Looks for a vTPM's state. Existing state decides what the TPM is; `asked`, or the entry for
    /// this uuid, must not contradict it.
    pub fn state(&self, uuid: &Uuid, asked: Option<Version>) -> Result<State, Error> {
        let path = self.state_dir.join(uuid.to_string());
        let folder = |source| Error::Folder {
            path: path.clone(),
            source,
        };
        let policy = self.policy(uuid);
        let wanted = asked.or(policy.version);

        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.state_dir)
            .map_err(folder)?;
        let found = version_of_state(&path).map_err(folder)?;

        match (found, wanted) {
            (Some(found), Some(wanted)) if found != wanted => Err(Error::Version {
                uuid: uuid.clone(),
                found,
                wanted,
            }),
            _ => Ok(State {
                version: found.or(wanted).unwrap_or(policy.default_version),
                exists: found.is_some(),
                path,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "0f8fad5b-d9cb-469f-a165-70867728950E";

    #[test]
    fn uuids() {
        let uuid: Uuid = UUID.parse().unwrap();

        assert_eq!(uuid.to_string(), UUID.to_lowercase());
        for bad in [
            "",
            "0f8fad5b-d9cb-469f-a165-70867728950",
            "0f8fad5b-d9cb-469f-a165-70867728950e0",
            "0f8fad5bd9cb-469f-a165-70867728950e-",
            "0f8fad5b-d9cb-469f-a165-70867728950g",
            "../../../../../../../../../etc/shado",
        ] {
            assert!(bad.parse::<Uuid>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_state_decides_the_version() {
        let folder = tempfile::tempdir().unwrap();
        let uuid: Uuid = UUID.parse().unwrap();
        let mut config = Config {
            state_dir: folder.path().join("state"),
            ..Config::default()
        };

        let fresh = config.state(&uuid, None).unwrap();
        assert!(!fresh.exists && fresh.version == Version::Tpm2);
        config.vtpms.insert(
            uuid.clone(),
            Policy {
                version: Some(Version::Tpm12),
                ..Policy::default()
            },
        );
        assert_eq!(config.state(&uuid, None).unwrap().version, Version::Tpm12);

        std::fs::create_dir(&fresh.path).unwrap();
        std::fs::write(fresh.path.join("tpm-00.permall"), b"").unwrap();
        assert!(config.state(&uuid, None).unwrap().exists);
        assert!(matches!(
            config.state(&uuid, Some(Version::Tpm2)),
            Err(Error::Version { .. })
        ));
        config.vtpms.clear();
        assert_eq!(config.state(&uuid, None).unwrap().version, Version::Tpm12);
    }
}
