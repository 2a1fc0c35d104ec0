// SPDX-License-Identifier: GPL-2.0

//! The locks: of one vTPM's state, and of all state directories.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{flock, FlockOperation};

use super::{at, make_state_dir, Error, State};
use crate::config::{Config, Uuid};
use crate::migrate::mark::{Mark, Role};
use crate::swtpm::Version;

/// How long the lock of all state directories, which is held for milliseconds, is waited for.
pub(super) const ALL_LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// The right to use a vTPM's state, until it is dropped and every process that inherited it has ended.
/// It is a lock of flock(2), which NFS carries over to other hosts.
#[derive(Debug)]
pub struct Lock(File);

impl Lock {
    pub(super) fn take(uuid: &Uuid, path: PathBuf) -> Result<Self, Error> {
        // The file stays empty: swtpm inherits the lock, and could write there what it likes.
        match lock_file(&path, FlockOperation::NonBlockingLockExclusive) {
            Ok(file) => Ok(Self(file)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                let uuid = uuid.clone();
                Err(Error::Locked { uuid, path })
            }
            Err(e) => Err(at(&path)(e)),
        }
    }

    /// Takes the right to a state, whether a migration has marked it or not, and waits for whom only looks at it.
    pub fn wait(config: &Config, uuid: &Uuid, limit: Duration) -> Result<Self, Error> {
        let deadline = Instant::now() + limit;
        make_state_dir(&config.state_dir)?;
        loop {
            let path = config.state_dir.join(format!("{uuid}.lock"));
            match Self::take(uuid, path) {
                Err(Error::Locked { .. }) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                done => return done,
            }
        }
    }
}

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl State {
    /// Takes the right to use the state, if nobody has it, and no migration has marked it.
    pub fn lock(&self) -> Result<Lock, Error> {
        self.lock_unless(|_| true)
    }

    /// The same, also of a vTPM that has moved to another host.
    pub fn lock_to_import(&self) -> Result<Lock, Error> {
        self.lock_unless(|mark| mark.role != Role::Moved)
    }

    fn lock_unless(&self, forbids: impl Fn(&Mark) -> bool) -> Result<Lock, Error> {
        let lock = Lock::take(&self.uuid, self.beside("lock"))?;
        let mark = Mark::read(&self.path).map_err(at(&self.beside("migration")))?;
        match mark.filter(forbids) {
            Some(mark) => Err(Error::Marked(mark.refusal(&self.uuid))),
            None => Ok(lock),
        }
    }

    /// Takes the right to the state of a vTPM that was not looked at yet.
    pub fn lock_of(config: &Config, uuid: &Uuid) -> Result<Lock, Error> {
        make_state_dir(&config.state_dir)?;
        let state = Self {
            uuid: uuid.clone(),
            path: config.state_path(uuid),
            version: Version::Tpm2,
            exists: false,
        };
        state.lock()
    }
}

fn lock_file(path: &Path, how: FlockOperation) -> io::Result<File> {
    // For writing too: NFS gives an exclusive lock to nobody else.
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    flock(&file, how)?;
    Ok(file)
}

/// Takes the lock of all state directories, for which others of this and, on shared storage, of other hosts may
/// have to be waited for.
pub(super) fn lock_all(path: &Path) -> Result<File, Error> {
    let deadline = Instant::now() + ALL_LOCK_TIMEOUT;
    loop {
        match lock_file(path, FlockOperation::NonBlockingLockExclusive) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => (),
            file => return file.map_err(at(path)),
        }
        if deadline <= Instant::now() {
            return Err(Error::AllLocked(path.to_owned()));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
