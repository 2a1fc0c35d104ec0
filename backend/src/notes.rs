// SPDX-License-Identifier: GPL-2.0

//! What is known of a state besides the state: whose identity it has, and which guest used it last. UUID.info,
//! beside the state directory. Nothing depends on its being there.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use crate::files::{self, read_plain};

/// The version of the file's form. Fields that are not known are ignored.
const FORM: u32 = 1;

/// Far more than the file ever has.
const MAX_LEN: u64 = 16 << 10;

/// UUID.info.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Notes {
    version: u32,
    /// The uuid that the TPM was made for, if it is another one now: whoever has that has the same seeds and EK.
    pub identity: Option<String>,
    /// Who used it last.
    pub last_used: Option<Use>,
}

/// A guest that used a TPM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Use {
    /// When it started to, in seconds since 1970.
    pub time: u64,
    /// On which host.
    pub host: String,
    /// The guest's domain and the device's number there.
    pub domid: u16,
    /// The device's number.
    pub devid: u32,
    /// The guest's name.
    pub name: String,
}

fn path(state: &Path) -> PathBuf {
    state.with_extension("info")
}

impl Notes {
    /// Of a state that nobody has used yet.
    pub fn new(identity: Option<String>) -> Self {
        Self {
            identity,
            ..Self::default()
        }
    }

    /// The notes about the state in this directory; none where there is no file.
    pub fn read(state: &Path) -> io::Result<Self> {
        let text = match read_plain(&path(state), MAX_LEN) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            text => text?,
        };
        let notes: Self = serde_json::from_slice(&text)?;
        match notes.version {
            FORM => Ok(notes),
            other => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("version {other}, where {FORM} is expected"),
            )),
        }
    }

    /// Writes them, whole or not at all.
    pub fn write(&self, state: &Path) -> io::Result<()> {
        let notes = Self {
            version: FORM,
            ..self.clone()
        };
        let path = path(state);
        let mut file = NamedTempFile::new_in(path.parent().unwrap_or(Path::new("/")))?;
        file.write_all(&serde_json::to_vec(&notes)?)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    }

    /// Notes who uses it now.
    pub fn note_use(state: &Path, used: Use) -> io::Result<()> {
        // Broken ones are no reason to note nothing.
        let notes = Self::read(state).unwrap_or_default();
        Self {
            last_used: Some(used),
            ..notes
        }
        .write(state)
    }

    /// Removes them.
    pub fn remove(state: &Path) -> io::Result<()> {
        files::remove(&path(state))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn notes_last() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("uuid");
        assert_eq!(Notes::read(&state).unwrap(), Notes::default());

        let copy = Notes {
            identity: Some("other".into()),
            ..Notes::default()
        };
        copy.write(&state).unwrap();
        let used = Use {
            time: 7,
            name: "guest".into(),
            ..Use::default()
        };
        Notes::note_use(&state, used.clone()).unwrap();
        let notes = Notes::read(&state).unwrap();
        assert_eq!(notes.identity.as_deref(), Some("other"));
        assert_eq!(notes.last_used, Some(used));
        Notes::remove(&state).unwrap();
        Notes::remove(&state).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn of_another_version() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("uuid");
        fs::write(path(&state), r#"{"version":1,"later":{}}"#).unwrap();
        Notes::read(&state).unwrap();
        fs::write(path(&state), r#"{"version":2}"#).unwrap();
        assert!(Notes::read(&state)
            .unwrap_err()
            .to_string()
            .contains("version 2"));
    }
}
