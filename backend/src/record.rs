// SPDX-License-Identifier: GPL-2.0

//! The run directory of a vTPM, and the record in it of which process its swtpm is. The record is believed only
//! as far as the process itself bears it out.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{flock, mknodat, FileType, FlockOperation, Mode, CWD};
use rustix::process::{pidfd_open, Pid, PidfdFlags};
use serde::{Deserialize, Serialize};

use crate::config::Uuid;
use crate::files::{self, write_durably};
use crate::swtpm::client::wait_readable;
use crate::swtpm::Version;
use crate::xenbus::Id;

/// The version of the record's form. Fields that are not known are ignored, so it changes only when the meaning
/// of one does.
const FORM: u32 = 1;

/// The run directory of a vTPM.
#[derive(Clone, Debug)]
pub struct RunDir(PathBuf);

impl RunDir {
    /// Where it is.
    pub fn path(run_dir: &Path, id: Id) -> PathBuf {
        run_dir
            .join("vtpm")
            .join(format!("{}-{}", id.domid, id.devid))
    }

    /// Makes it, where it is not there yet.
    pub fn make(run_dir: &Path, id: Id) -> io::Result<Self> {
        // Others may pass, since the CLI's socket is there too.
        DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(run_dir)?;
        Self::make_at(Self::path(run_dir, id))
    }

    /// Makes one of another name.
    pub fn make_at(path: PathBuf) -> io::Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)?;
        Ok(Self(path))
    }

    /// One that is there.
    pub fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// The directory.
    pub fn as_path(&self) -> &Path {
        &self.0
    }

    /// Takes the right to serve the vTPM, if no other worker has it.
    pub fn lock(&self) -> io::Result<Option<File>> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.0.join("lock"))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::AGAIN) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Where the worker listens for the manager.
    pub fn worker_socket(&self) -> PathBuf {
        self.0.join("worker.sock")
    }

    /// Where swtpm listens for the worker.
    pub fn swtpm_socket(&self) -> PathBuf {
        self.0.join("swtpm.sock")
    }

    /// The journal and the counters.
    pub fn io_file(&self) -> PathBuf {
        self.0.join("io")
    }

    /// The TPM that is to go to another host.
    pub fn departing(&self) -> PathBuf {
        self.0.join("departing.vtpm")
    }

    fn record(&self) -> PathBuf {
        self.0.join("record.json")
    }

    /// Where swtpm's messages go, for reading and writing, never to block either. swtpm's own descriptor keeps it
    /// open when a worker ends: a message without a reader must not be the end of a TPM.
    pub fn messages(&self) -> io::Result<File> {
        let path = self.0.join("messages");
        match mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => (),
            Err(e) => return Err(e.into()),
        }
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
            .open(path)
    }

    /// Removes everything, now that the vTPM is over.
    pub fn remove(&self) {
        if let Err(e) = fs::remove_dir_all(&self.0) {
            log::debug!("{}: {e}", self.0.display());
        }
    }
}

/// A note about an swtpm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The version of this form.
    pub version: u32,
    /// Whose state it has.
    pub uuid: String,
    /// "1.2" or "2.0".
    pub tpm: String,
    /// The process's id.
    pub pid: i32,
    /// When it started, in the kernel's ticks: with `pid` this is one process and no other.
    pub start: u64,
    /// The user that it becomes.
    pub uid: u32,
    /// The directory of its state.
    pub state: PathBuf,
}

/// The number in this place, from 1 on, of /proc/PID/stat.
fn stat_field(pid: i32, field: usize) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second one is a name in parentheses, with anything in it.
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let value = rest.split_ascii_whitespace().nth(field - 3);
    let value = value.and_then(|value| value.parse().ok());
    value.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

impl Record {
    /// About this very process.
    pub fn of_self(uuid: &Uuid, tpm: Version, uid: u32, state: &Path) -> io::Result<Self> {
        let pid = rustix::process::getpid().as_raw_nonzero().get();

        Ok(Self {
            version: FORM,
            uuid: uuid.to_string(),
            tpm: tpm.to_string(),
            pid,
            start: stat_field(pid, 22)?,
            uid,
            state: state.to_owned(),
        })
    }

    /// Writes it, whole or not at all.
    pub fn write(&self, run: &RunDir) -> io::Result<()> {
        write_durably(&run.record(), &serde_json::to_vec(self)?)
    }

    /// Reads it; `None` if there is none.
    pub fn read(run: &RunDir) -> io::Result<Option<Self>> {
        let text = match fs::read(run.record()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text?,
        };
        let record: Self = serde_json::from_slice(&text)?;
        match record.version {
            FORM => Ok(Some(record)),
            other => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{} has version {other}", run.record().display()),
            )),
        }
    }

    /// The run directories of the vTPMs of this host that have this state, by their records. One that cannot be
    /// read is none.
    pub fn with_state(run_dir: &Path, uuid: &Uuid) -> io::Result<Vec<(Id, RunDir)>> {
        let mut found = Vec::new();
        for folder in fs::read_dir(run_dir.join("vtpm"))?.flatten() {
            let name = folder.file_name();
            let names = name.to_str().and_then(|name| name.split_once('-'));
            let id = names.and_then(|(domid, devid)| Id::from_names(domid, devid));
            let run = RunDir::at(folder.path());
            let record = Self::read(&run).ok().flatten();
            let has = record.is_some_and(|record| record.uuid == uuid.to_string());
            found.extend(id.filter(|_| has).map(|id| (id, run)));
        }
        Ok(found)
    }

    /// The process, if it still runs.
    pub fn process(&self) -> io::Result<Option<OwnedFd>> {
        let pid = Pid::from_raw(self.pid).ok_or(io::ErrorKind::InvalidData)?;
        let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else {
            return Ok(None);
        };
        // Looked at after the process is held: it is this one that has the number now.
        let same = stat_field(self.pid, 22).is_ok_and(|start| start == self.start);
        Ok((same && !wait_readable(&pidfd, Duration::ZERO)?).then_some(pidfd))
    }

    /// Removes it.
    pub fn remove(run: &RunDir) {
        if let Err(e) = files::remove(&run.record()) {
            log::warn!("{}: {e}", run.record().display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: Id = Id { domid: 7, devid: 0 };

    #[test]
    fn a_record_is_true_of_one_process() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::make(folder.path(), ID).unwrap();
        let uuid: Uuid = "0f8fad5b-d9cb-469f-a165-70867728950e".parse().unwrap();
        assert_eq!(Record::read(&run).unwrap(), None);

        let record = Record::of_self(&uuid, Version::Tpm2, 5, folder.path()).unwrap();
        record.write(&run).unwrap();
        assert_eq!(Record::read(&run).unwrap(), Some(record.clone()));
        assert!(record.process().unwrap().is_some());
        let former = Record {
            start: record.start - 1,
            ..record.clone()
        };
        assert!(former.process().unwrap().is_none());
        Record::remove(&run);
        assert_eq!(Record::read(&run).unwrap(), None);
    }

    #[test]
    fn records_of_other_versions() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::make(folder.path(), ID).unwrap();
        let text = |version: u32| {
            format!(
                r#"{{"version":{version},"uuid":"u","tpm":"2.0","pid":5,"start":6,"uid":7,
                    "state":"/s","later":[1]}}"#
            )
        };
        fs::write(run.record(), text(1)).unwrap();
        assert_eq!(Record::read(&run).unwrap().unwrap().pid, 5);
        fs::write(run.record(), text(2)).unwrap();
        assert!(Record::read(&run).is_err());
    }

    #[test]
    fn one_worker_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::make(folder.path(), ID).unwrap();
        let lock = run.lock().unwrap();

        assert!(lock.is_some() && run.lock().unwrap().is_none());
        drop(lock);
        assert!(run.lock().unwrap().is_some());
    }
}
