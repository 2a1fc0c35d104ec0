// SPDX-License-Identifier: GPL-2.0

//! UUID.migration, beside the state: whether what is here may run. Where there is a mark, nothing starts on the
//! state but the worker of the very migration, and the mark names the commands that end the doubt.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{flock, FlockOperation};
use serde::{Deserialize, Serialize};

use crate::config::Uuid;
use crate::files::{self, read_plain, write_durably};

/// The version of the file's form.
const FORM: u32 = 1;

/// More than the file has.
const MAX_LEN: u64 = 4096;

/// How long a receiver waits for whom only looks whether there is one.
const LOOK: Duration = Duration::from_secs(1);

/// Which part this host has in a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The destination, and the state is not here.
    Expected,
    /// The destination, and the state is here.
    Arrived,
    /// The destination, and the state does not come.
    Failed,
    /// The source, and the state was sent.
    Leaving,
    /// The source, and the guest runs at the destination.
    Moved,
}

/// UUID.migration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    version: u32,
    /// Which migration.
    pub migration: String,
    /// The other host.
    pub peer: String,
    /// This one's part.
    pub role: Role,
}

/// The mark beside a state directory.
pub fn path(state: &Path) -> PathBuf {
    state.with_extension("migration")
}

impl Mark {
    /// A new one.
    pub fn new(migration: &str, peer: &str, role: Role) -> Self {
        Self {
            version: FORM,
            migration: migration.to_owned(),
            peer: peer.to_owned(),
            role,
        }
    }

    /// Reads it; `None` where there is none. One that cannot be read forbids everything.
    pub fn read(state: &Path) -> io::Result<Option<Self>> {
        let text = match read_plain(&path(state), MAX_LEN) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text?,
        };
        let mark: Self = serde_json::from_slice(&text)?;
        match mark.version {
            FORM => Ok(Some(mark)),
            other => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("version {other}, where {FORM} is expected"),
            )),
        }
    }

    /// Writes it, whole or not at all, and durably.
    pub fn write(&self, state: &Path) -> io::Result<()> {
        let text = serde_json::to_vec(self)?;
        write_durably(&path(state), &text)
    }

    /// The same with another part.
    pub fn with(&self, role: Role) -> Self {
        Self {
            role,
            ..self.clone()
        }
    }

    /// Removes it, durably.
    pub fn remove(state: &Path) -> io::Result<()> {
        files::remove_durably(&path(state))
    }

    /// What it says, in the words of `list`.
    pub fn summary(&self) -> String {
        let peer = &self.peer;
        match self.role {
            Role::Expected => format!("expected from {peer}"),
            Role::Arrived => format!("arrived from {peer}, whose word is missing"),
            Role::Failed => format!("did not arrive from {peer}"),
            Role::Leaving => format!("sent to {peer}, whose word is missing"),
            Role::Moved => format!("moved to {peer}"),
        }
    }

    /// Why the state may not run, and what to do about it.
    pub fn refusal(&self, uuid: &Uuid) -> String {
        let summary = self.summary();
        let what = match self.role {
            Role::Expected | Role::Failed => {
                format!("if no migration is under way, `xen-vtpmd discard {uuid}` forgets about it")
            }
            Role::Arrived | Role::Leaving => format!(
                "if the guest runs there, or will, `xen-vtpmd discard {uuid}` here; if not, \
                 `xen-vtpmd take {uuid}` here and `xen-vtpmd discard {uuid}` there"
            ),
            Role::Moved => {
                format!("if it is gone there, `xen-vtpmd discard {uuid}` forgets that it was moved")
            }
        };
        format!("vTPM {uuid}: {summary}: {what}")
    }
}

fn lock_file(run_dir: &Path, uuid: &Uuid) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(run_dir.join(format!("receive-{uuid}.lock")))
}

/// The part of a receiver, as long as it lives.
#[derive(Debug)]
pub struct Receiving {
    _lock: File,
}

impl Receiving {
    /// Becomes the receiver of a vTPM; `None` where there is another one.
    pub fn take(run_dir: &Path, uuid: &Uuid) -> io::Result<Option<Self>> {
        let file = lock_file(run_dir, uuid)?;
        let limit = Instant::now() + LOOK;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Some(Self { _lock: file })),
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < limit => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Whether a vTPM has a receiver that lives.
    pub fn is_there(run_dir: &Path, uuid: &Uuid) -> io::Result<bool> {
        let file = lock_file(run_dir, uuid)?;
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(false),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
            Err(e) => Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn uuid() -> Uuid {
        "0f8fad5b-d9cb-469f-a165-70867728950e".parse().unwrap()
    }

    #[test]
    fn a_mark_lasts_and_names_the_commands() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join(uuid().to_string());
        assert_eq!(Mark::read(&state).unwrap(), None);
        for role in [
            Role::Expected,
            Role::Arrived,
            Role::Failed,
            Role::Leaving,
            Role::Moved,
        ] {
            let mark = Mark::new("m", "other.example", role);
            mark.write(&state).unwrap();
            assert_eq!(Mark::read(&state).unwrap(), Some(mark.clone()));
            let refusal = mark.refusal(&uuid());
            assert!(refusal.contains("xen-vtpmd discard 0f8fad5b"), "{refusal}");
            assert!(refusal.contains("other.example"), "{refusal}");
        }
        Mark::remove(&state).unwrap();
        Mark::remove(&state).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        fs::write(path(&state), r#"{"version":2}"#).unwrap();
        assert!(Mark::read(&state).is_err());
    }

    #[test]
    fn one_receiver() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!Receiving::is_there(dir.path(), &uuid()).unwrap());
        let receiving = Receiving::take(dir.path(), &uuid()).unwrap();
        assert!(receiving.is_some() && Receiving::is_there(dir.path(), &uuid()).unwrap());
        assert!(Receiving::take(dir.path(), &uuid()).unwrap().is_none());
        drop(receiving);
        assert!(!Receiving::is_there(dir.path(), &uuid()).unwrap());
    }
}
