// SPDX-License-Identifier: GPL-2.0

//! What the administrator decides: where the state is, and which TPM each vTPM is.

mod file;

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use log::LevelFilter;

pub use file::{load, parse, ConfigFile, FileError};

use crate::cgroup::Limits;
use crate::measure::{KernelDigest, Measure};
use crate::swtpm::Version;

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

/// What becomes of a guest that is restored without what its TPM had in memory when it was saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RestoreWithoutTpm {
    /// It gets the TPM as after a loss of power.
    #[default]
    GoOn,
    /// The toolstack is told that it cannot be.
    Refuse,
}

impl FromStr for RestoreWithoutTpm {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "go-on" => Ok(Self::GoOn),
            "refuse" => Ok(Self::Refuse),
            _ => Err(format!("{s:?}: \"go-on\" or \"refuse\" is expected")),
        }
    }
}

/// Who has the platform's rights of a TPM: the platform hierarchy of TPM 2.0, physical presence of TPM 1.2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PlatformHierarchy {
    /// Nobody, from each start on, as where a firmware starts the operating system.
    #[default]
    Closed,
    /// The guest.
    Open,
}

impl FromStr for PlatformHierarchy {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "closed" => Ok(Self::Closed),
            "open" => Ok(Self::Open),
            _ => Err(format!("{s:?}: \"closed\" or \"open\" is expected")),
        }
    }
}

/// What becomes of vTPMs where the kernel or a program lacks a part of the sandbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sandbox {
    /// They run without it, and the status says so.
    #[default]
    Preferred,
    /// They do not start.
    Required,
}

impl FromStr for Sandbox {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "preferred" => Ok(Self::Preferred),
            "required" => Ok(Self::Required),
            _ => Err(format!("{s:?}: \"preferred\" or \"required\" is expected")),
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
    /// What becomes of a guest that is restored without its TPM's memory.
    pub restore_without_tpm: RestoreWithoutTpm,
    /// Who has the platform's rights.
    pub platform_hierarchy: PlatformHierarchy,
    /// Whether what its guest boots is measured.
    pub measure: Measure,
    /// Which kernels its guest may boot, where that is measured; all, if it is empty.
    pub allowed_kernels: Vec<KernelDigest>,
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
            localities: 0b111,
            on_death: OnDeath::Closed,
            restore_without_tpm: RestoreWithoutTpm::GoOn,
            platform_hierarchy: PlatformHierarchy::Closed,
            measure: Measure::Try,
            allowed_kernels: Vec::new(),
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
    /// The program that has the subcommand `launch`: this very one.
    pub launcher: PathBuf,
    /// What becomes of vTPMs where a part of the sandbox is missing.
    pub sandbox: Sandbox,
    /// The group whose members may read the status, besides root.
    pub status_group: Option<String>,
    /// What each worker and its swtpm may take together.
    pub limits: Limits,
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
            launcher: PathBuf::from("/proc/self/exe"),
            sandbox: Sandbox::Preferred,
            status_group: None,
            limits: Limits::default(),
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

    /// The id of the group that may read the status, if there is one.
    pub fn status_gid(&self) -> Result<Option<u32>, FileError> {
        let Some(name) = &self.status_group else {
            return Ok(None);
        };
        let groups = Path::new("/etc/group");
        let text = fs::read_to_string(groups).map_err(|source| FileError::Read {
            path: groups.to_owned(),
            source,
        })?;
        let gid = text.lines().find_map(|line| {
            let mut fields = line.split(':');
            let found = fields.next() == Some(name.as_str());
            found.then(|| fields.nth(1)?.parse().ok()).flatten()
        });
        match gid {
            Some(gid) => Ok(Some(gid)),
            None => Err(FileError::NoGroup(name.clone())),
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
}
