// SPDX-License-Identifier: GPL-2.0

//! What the administrator decides: where the state is, and which TPM each vTPM is.

use std::collections::HashMap;
use std::fmt;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::swtpm::{version_of_state, Version};

/// Where the state is unless told otherwise.
pub const STATE_DIR: &str = "/var/lib/xen-vtpmd";

/// A vTPM's uuid: 32 hex digits with dashes, in lower case, so that it is safe as a folder's name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Uuid(String);

impl FromStr for Uuid {
    type Err = ();

    fn from_str(s: &str) -> Result<Self, ()> {
        let fits = |(i, b): (usize, u8)| match i {
            8 | 13 | 18 | 23 => b == b'-',
            _ => b.is_ascii_hexdigit(),
        };
        match s.len() == 36 && s.bytes().enumerate().all(fits) {
            true => Ok(Self(s.to_ascii_lowercase())),
            false => Err(()),
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

/// The administrator's decisions.
#[derive(Clone, Debug)]
pub struct Config {
    /// The folder with a folder for each vTPM.
    pub state_dir: PathBuf,
    /// Which TPM a new vTPM is, if nobody says.
    pub default_version: Version,
    /// Which TPM certain vTPMs are.
    pub versions: HashMap<Uuid, Version>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: PathBuf::from(STATE_DIR),
            default_version: Version::Tpm2,
            versions: HashMap::new(),
        }
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
        let wanted = asked.or_else(|| self.versions.get(uuid).copied());

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
                version: found.or(wanted).unwrap_or(self.default_version),
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
            assert_eq!(bad.parse::<Uuid>(), Err(()), "{bad:?}");
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
        config.versions.insert(uuid.clone(), Version::Tpm12);
        assert_eq!(config.state(&uuid, None).unwrap().version, Version::Tpm12);

        std::fs::create_dir(&fresh.path).unwrap();
        std::fs::write(fresh.path.join("tpm-00.permall"), b"").unwrap();
        assert!(config.state(&uuid, None).unwrap().exists);
        assert!(matches!(
            config.state(&uuid, Some(Version::Tpm2)),
            Err(Error::Version { .. })
        ));
        config.versions.clear();
        assert_eq!(config.state(&uuid, None).unwrap().version, Version::Tpm12);
    }
}
