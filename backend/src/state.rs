// SPDX-License-Identifier: GPL-2.0

//! The state folders: which TPM's state is where, whose it is, who uses it now, and whether it was
//! saved with a guest. Beside the folder UUID are UUID.lock, UUID.saved, and UUID.new while it is made.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{
    fchown, lchown, DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt,
};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{fallocate, flock, statvfs, FallocateFlags, FlockOperation, OFlags};
use serde::{Deserialize, Serialize};

use crate::config::{Config, Uuid};
use crate::swtpm::Version;

/// How long the lock of all state directories, which is held for milliseconds, is waited for.
const ALL_LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// How much a state may grow by one command.
const RESERVE: u64 = 16 << 10;

/// Why a vTPM's state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The state folder cannot be looked at, made or changed.
    #[error("state folder {}: {source}", path.display())]
    Folder {
        /// The folder, or a file in it.
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
    /// Somebody has the state.
    #[error("the state of vTPM {uuid} is in use by another process or host ({} is locked)", path.display())]
    Locked {
        /// Whose.
        uuid: Uuid,
        /// The lock file.
        path: PathBuf,
    },
    /// The state directory is there and the state is not.
    #[error("{} has no state of a TPM: restore {} or {} from a backup, or remove the directory", path.display(), Version::Tpm2.state_file(), Version::Tpm12.state_file())]
    Empty {
        /// The directory.
        path: PathBuf,
    },
    /// A file of the state is not whole.
    #[error("{} has {found} bytes where its header says {expected}: restore it from a backup", path.display())]
    Short {
        /// The file.
        path: PathBuf,
        /// How long it is.
        found: u64,
        /// How long it has to be.
        expected: u64,
    },
    /// The lock of all state directories is not to be had.
    #[error("{} was locked by another process or host for {} s", .0.display(), ALL_LOCK_TIMEOUT.as_secs())]
    AllLocked(PathBuf),
    /// A state folder has something in it that swtpm does not make.
    #[error("{} is not a plain file: remove it from the state folder", .0.display())]
    Odd(PathBuf),
    /// The mark of a saved guest is there without what it is about.
    #[error("{} is there, but {} is not: remove the first to start the TPM anew", .0.display(), .1.display())]
    NotSaved(PathBuf, PathBuf),
    /// There is no user id left.
    #[error("every user id from {0} on has a vTPM")]
    NoUid(u32),
}

/// A vTPM's state, as it was found.
#[derive(Clone, Debug)]
pub struct State {
    /// Whose it is.
    pub uuid: Uuid,
    /// Its folder.
    pub path: PathBuf,
    /// Which TPM it is, or is to become.
    pub version: Version,
    /// Whether it is there already.
    pub exists: bool,
}

/// The right to use a vTPM's state, until it is dropped and every process that inherited it has ended.
/// It is a lock of flock(2), which NFS carries over to other hosts.
#[derive(Debug)]
pub struct Lock(File);

impl Lock {
    fn take(uuid: &Uuid, path: PathBuf) -> Result<Self, Error> {
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
}

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Config {
    /// Looks for a vTPM's state. Existing state decides what the TPM is; `asked`, or the entry for
    /// this uuid, must not contradict it.
    pub fn state(&self, uuid: &Uuid, asked: Option<Version>) -> Result<State, Error> {
        let path = self.state_dir.join(uuid.to_string());
        let policy = self.policy(uuid);
        let wanted = asked.or(policy.version);

        make_state_dir(&self.state_dir)?;
        let found = version_of_state(&path).map_err(at(&path))?;
        match found {
            Some(version) => check_whole(&path.join(version.state_file()))?,
            // Whoever finds a directory has had a TPM there.
            None if path.try_exists().map_err(at(&path))? => return Err(Error::Empty { path }),
            None => (),
        }

        match (found, wanted) {
            (Some(found), Some(wanted)) if found != wanted => Err(Error::Version {
                uuid: uuid.clone(),
                found,
                wanted,
            }),
            _ => Ok(State {
                uuid: uuid.clone(),
                version: found.or(wanted).unwrap_or(policy.default_version),
                exists: found.is_some(),
                path,
            }),
        }
    }
}

/// Others may pass, since each vTPM's user has a directory inside, but not look.
fn make_state_dir(path: &Path) -> Result<(), Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(path)
        .map_err(at(path))
}

/// Which TPM's state is in a folder, `None` if there is none yet.
pub fn version_of_state(state: &Path) -> io::Result<Option<Version>> {
    for version in Version::ALL {
        if state.join(version.state_file()).try_exists()? {
            return Ok(Some(version));
        }
    }
    Ok(None)
}

/// Checks that a file which swtpm has written is as long as its header says: after a loss of power, a file that
/// was not made durable may be short or empty.
fn check_whole(path: &Path) -> Result<(), Error> {
    /// Versions, the header's length and flags; then the whole length, big endian.
    const HEADER: usize = 10;
    let mut header = [0; HEADER];
    let mut file = open_plain(path)?;
    let found = file.metadata().map_err(at(path))?.len();
    let short = |expected| Error::Short {
        path: path.to_owned(),
        found,
        expected,
    };

    if found < HEADER as u64 {
        return Err(short(HEADER as u64));
    }
    file.read_exact(&mut header).map_err(at(path))?;
    let [.., a, b, c, d] = header;
    match u64::from(u32::from_be_bytes([a, b, c, d])) {
        expected if expected == found => Ok(()),
        expected => Err(short(expected)),
    }
}

/// Opens what swtpm's user could have put anything in place of.
fn open_plain(path: &Path) -> Result<File, Error> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits() as i32)
        .open(path)
        .map_err(at(path))?;
    match file.metadata().map_err(at(path))?.is_file() {
        true => Ok(file),
        false => Err(Error::Odd(path.to_owned())),
    }
}

/// Makes durable what a directory lists.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn at(path: &Path) -> impl Fn(io::Error) -> Error + '_ {
    |source| Error::Folder {
        path: path.to_owned(),
        source,
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

/// How much room there is where a state is, in words.
pub fn free_space(path: &Path) -> String {
    match statvfs(path) {
        Ok(space) => {
            let free = space.f_bavail.saturating_mul(space.f_frsize) / 1024;
            format!("{free} kB of space are free")
        }
        Err(e) => format!("the free space is not known: {e}"),
    }
}

/// Makes a directory with its plain files durable.
fn sync_all(directory: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(directory).map_err(at(directory))? {
        let path = entry.map_err(at(directory))?.path();
        match open_plain(&path) {
            Ok(file) => file.sync_all().map_err(at(&path))?,
            // swtpm renames the files that it writes.
            Err(Error::Folder { source, .. }) if source.kind() == io::ErrorKind::NotFound => (),
            Err(e) => return Err(e),
        }
    }
    sync_folder(directory).map_err(at(directory))
}

/// The mark of a saved guest: what UUID.saved has in it.
#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    version: u32,
    /// The uuid of the domain.
    vm: Option<String>,
}

impl State {
    /// The file or folder beside this one with another ending.
    fn beside(&self, ending: &str) -> PathBuf {
        self.path.with_extension(ending)
    }

    /// The folder of all state folders.
    fn parent(&self) -> &Path {
        self.path.parent().unwrap_or(&self.path)
    }

    /// Where the state is while it is being made.
    pub fn unfinished(&self) -> PathBuf {
        self.beside("new")
    }

    /// Takes the right to use the state, if nobody has it.
    pub fn lock(&self) -> Result<Lock, Error> {
        Lock::take(&self.uuid, self.beside("lock"))
    }

    /// Takes the right to the state of a vTPM that was not looked at yet.
    pub fn lock_of(config: &Config, uuid: &Uuid) -> Result<Lock, Error> {
        make_state_dir(&config.state_dir)?;
        Lock::take(uuid, config.state_dir.join(format!("{uuid}.lock")))
    }

    /// Whether there is volatile state of a guest that was saved, whichever it was.
    pub fn is_saved(&self) -> Result<bool, Error> {
        let path = self.beside("saved");
        path.try_exists().map_err(at(&path))
    }

    /// Whether the volatile state is for the guest that starts now: the one that was saved, by its domain's
    /// uuid. A mark without a uuid is for any.
    pub fn is_saved_for(&self, vm: Option<&str>) -> Result<bool, Error> {
        let path = self.beside("saved");
        let mark: Saved = match fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            // One of version 0.1.0 is empty.
            Ok(text) if text.is_empty() => return Ok(true),
            text => serde_json::from_slice(&text.map_err(at(&path))?)
                .map_err(|e| at(&path)(e.into()))?,
        };
        Ok(mark.vm.is_none() || mark.vm.as_deref() == vm)
    }

    /// Says that the volatile state is that of the guest `vm`, which was saved, or of any. It is for one start.
    /// The state is durable before the mark is.
    pub fn mark_saved(&self, vm: Option<&str>) -> Result<(), Error> {
        let (path, new) = (self.beside("saved"), self.beside("saved.new"));
        let mark = Saved {
            version: 1,
            vm: vm.map(str::to_owned),
        };

        check_whole(&self.path.join(self.version.volatile_file()))?;
        self.sync()?;
        let text = serde_json::to_vec(&mark).map_err(|e| at(&path)(e.into()))?;
        let made = File::create(&new)
            .and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&new, &path))
            .and_then(|()| sync_folder(self.parent()));
        made.map_err(at(&path))
    }

    /// Keeps room for the next write of the state, in the file that swtpm writes before it renames it: it truncates
    /// it first, and then there is room. swtpm does not write now.
    pub fn reserve(&self, uid: Option<u32>) -> Result<(), Error> {
        let path = self.path.join(self.version.temporary_file());
        let file = match OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
        {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            file => file.map_err(at(&path))?,
        };
        let state = self.path.join(self.version.state_file());
        let len = fs::metadata(&state).map_err(at(&state))?.len() + RESERVE;
        let kept = fallocate(&file, FallocateFlags::empty(), 0, len)
            .map_err(io::Error::from)
            .and_then(|()| match uid {
                Some(uid) => fchown(&file, Some(uid), Some(uid)),
                None => Ok(()),
            });
        kept.map_err(|e| {
            let _ = fs::remove_file(&path);
            at(&path)(e)
        })
    }

    /// Makes durable what swtpm has written, and what the directory lists.
    pub fn sync(&self) -> Result<(), Error> {
        sync_all(&self.path)
    }

    /// Takes the mark away, if there is one.
    pub fn unmark_saved(&self) -> Result<(), Error> {
        let path = self.beside("saved");
        let removed = match fs::remove_file(&path) {
            Ok(()) => sync_folder(self.parent()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e),
        };
        removed.map_err(at(&path))
    }

    /// Has the TPM start with the volatile state that it was saved with if it is for the guest `vm`, and with no
    /// other. Returns whether it does. The caller has the lock.
    pub fn prepare_volatile(&self, vm: Option<&str>) -> Result<bool, Error> {
        let path = self.path.join(self.version.volatile_file());

        match (self.is_saved_for(vm)?, path.try_exists()) {
            (true, Ok(true)) => check_whole(&path).map(|()| true),
            (true, Ok(false)) => Err(Error::NotSaved(self.beside("saved"), path)),
            // swtpm would take it up, whoever left it there and however old it is.
            (false, Ok(true)) => {
                self.unmark_saved()?;
                fs::remove_file(&path).map_err(at(&path))?;
                sync_folder(&self.path).map_err(at(&self.path))?;
                Ok(false)
            }
            (false, Ok(false)) => Ok(false),
            (_, Err(e)) => Err(at(&path)(e)),
        }
    }

    /// Makes an empty folder for new state; one that was left by an interrupted attempt goes. The
    /// caller has the lock.
    pub fn make_unfinished(&self) -> Result<PathBuf, Error> {
        let path = self.unfinished();
        let removed = match fs::remove_dir_all(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        };
        let made = removed.and_then(|()| DirBuilder::new().mode(0o700).create(&path));
        made.map_err(at(&path))?;
        Ok(path)
    }

    /// Gives the new state its right name, now that it is whole. `saved` says whether it has the volatile
    /// state of a guest that was saved, and `vm` of which. The caller has the lock.
    pub fn finish(&self, config: &Config, saved: bool, vm: Option<&str>) -> Result<(), Error> {
        let unfinished = self.unfinished();

        if let Some(first) = config.first_uid {
            self.own(&unfinished, first)?;
        }
        sync_all(&unfinished)?;
        self.unmark_saved()?;
        let renamed = fs::rename(&unfinished, &self.path).and_then(|()| sync_folder(self.parent()));
        renamed.map_err(at(&self.path))?;
        match saved {
            true => self.mark_saved(vm),
            false => Ok(()),
        }
    }

    /// Removes the state. The caller has the lock.
    pub fn remove(&self) -> Result<(), Error> {
        self.unmark_saved()?;
        // By one step, so that never half of it is there.
        let path = self.unfinished();
        let removed = fs::rename(&self.path, &path)
            .and_then(|()| fs::remove_dir_all(&path))
            .and_then(|()| sync_folder(self.parent()));
        removed.map_err(at(&self.path))
    }

    /// Makes a folder and what is in it belong to a user that no other state folder belongs to, if it
    /// does not yet. Returns the user's id. The caller has the lock.
    pub fn own(&self, folder: &Path, first_uid: u32) -> Result<u32, Error> {
        let all = self.parent().join(".lock");
        let _all = lock_all(&all)?;
        let owner = fs::symlink_metadata(folder).map_err(at(folder))?.uid();
        let others = owners(self.parent(), folder).map_err(at(self.parent()))?;
        let uid = if owner >= first_uid && !others.contains(&owner) {
            owner
        } else {
            // The last number stands for "no user".
            (first_uid..u32::MAX)
                .find(|uid| !others.contains(uid))
                .ok_or(Error::NoUid(first_uid))?
        };

        give(folder, uid)?;
        Ok(uid)
    }
}

/// Takes the lock of all state directories, for which others of this and, on shared storage, of other hosts may
/// have to be waited for.
fn lock_all(path: &Path) -> Result<File, Error> {
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

/// The users that the folders in `dir` belong to, but for one folder.
fn owners(dir: &Path, except: &Path) -> io::Result<HashSet<u32>> {
    let mut owners = HashSet::new();

    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        match entry.metadata() {
            Ok(data) if data.is_dir() && entry.path() != except => {
                owners.insert(data.uid());
            }
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => (),
        }
    }
    Ok(owners)
}

/// Gives a folder and the plain files in it to a user. No link is followed, and nobody who could put
/// one there meanwhile is running: the caller has the lock.
fn give(folder: &Path, uid: u32) -> Result<(), Error> {
    let give = |path: &Path, data: &Metadata| match (data.uid(), data.gid()) == (uid, uid) {
        true => Ok(()),
        false => lchown(path, Some(uid), Some(uid)).map_err(at(path)),
    };
    let data = fs::symlink_metadata(folder).map_err(at(folder))?;

    if !data.is_dir() {
        return Err(Error::Odd(folder.to_owned()));
    }
    for entry in fs::read_dir(folder).map_err(at(folder))? {
        let path = entry.map_err(at(folder))?.path();
        let data = fs::symlink_metadata(&path).map_err(at(&path))?;
        // One with a second name may be another's.
        if !data.is_file() || data.nlink() != 1 {
            return Err(Error::Odd(path));
        }
        give(&path, &data)?;
    }
    fs::set_permissions(folder, Permissions::from_mode(0o700)).map_err(at(folder))?;
    give(folder, &data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Policy;

    const UUID: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";

    /// The state of a vTPM in a folder that is gone with the first of the two.
    fn state() -> (tempfile::TempDir, Config, Uuid) {
        let folder = tempfile::tempdir().unwrap();
        let config = Config {
            state_dir: folder.path().join("state"),
            ..Config::default()
        };
        (folder, config, UUID.parse().unwrap())
    }

    #[test]
    fn the_state_decides_the_version() {
        let (_folder, mut config, uuid) = state();
        let fresh = config.state(&uuid, None).unwrap();
        assert!(!fresh.exists && fresh.version == Version::Tpm2);

        let policy = Policy {
            version: Some(Version::Tpm12),
            ..Policy::default()
        };
        config.vtpms.insert(uuid.clone(), policy);
        assert_eq!(config.state(&uuid, None).unwrap().version, Version::Tpm12);

        fs::create_dir(&fresh.path).unwrap();
        write_state(&fresh.path.join("tpm-00.permall"), 100);
        assert!(config.state(&uuid, None).unwrap().exists);
        assert!(matches!(
            config.state(&uuid, Some(Version::Tpm2)),
            Err(Error::Version { .. })
        ));
        config.vtpms.clear();
        assert_eq!(config.state(&uuid, None).unwrap().version, Version::Tpm12);
    }

    #[test]
    fn one_user_at_a_time() {
        let (_folder, config, uuid) = state();
        let state = config.state(&uuid, None).unwrap();
        let lock = state.lock().unwrap();
        let refused = state.lock().unwrap_err().to_string();

        assert!(
            refused.contains("is in use by another process"),
            "{refused}"
        );
        assert_eq!(fs::read(state.beside("lock")).unwrap(), b"");
        drop(lock);
        state.lock().unwrap();
    }

    /// Writes what is whole by its header.
    fn write_state(path: &Path, len: u8) {
        let mut bytes = vec![0; len.into()];
        bytes[..10].copy_from_slice(&[2, 1, 0, 10, 0, 0, 0, 0, 0, len]);
        fs::write(path, bytes).unwrap();
    }

    #[test]
    fn the_mark_of_a_saved_guest_is_for_that_guest() {
        let (_folder, config, uuid) = state();
        let state = config.state(&uuid, None).unwrap();
        let volatile = state.path.join(state.version.volatile_file());
        let (a, b) = (Some("a"), Some("b"));
        fs::create_dir(&state.path).unwrap();

        state.unmark_saved().unwrap();
        assert!(!state.prepare_volatile(a).unwrap());
        assert!(state.mark_saved(a).is_err(), "there is nothing to mark");
        write_state(&volatile, 20);
        state.mark_saved(a).unwrap();
        assert!(state.prepare_volatile(a).unwrap());
        assert!(state.prepare_volatile(a).unwrap(), "not used up yet");
        assert!(!state.prepare_volatile(b).unwrap());
        assert!(!volatile.exists() && !state.is_saved().unwrap());

        for mark in [None, a] {
            write_state(&volatile, 20);
            state.mark_saved(mark).unwrap();
            assert_eq!(state.prepare_volatile(None).unwrap(), mark.is_none());
        }
        // As version 0.1.0 made it.
        write_state(&volatile, 20);
        fs::write(state.beside("saved"), b"").unwrap();
        assert!(state.prepare_volatile(a).unwrap());
        fs::remove_file(&volatile).unwrap();
        assert!(matches!(
            state.prepare_volatile(a),
            Err(Error::NotSaved(..))
        ));
        state.unmark_saved().unwrap();
        assert!(!state.is_saved().unwrap());
    }

    #[test]
    fn what_is_not_whole_is_refused_by_name() {
        let (_folder, config, uuid) = state();
        let path = config.state(&uuid, None).unwrap().path;
        fs::create_dir(&path).unwrap();
        let refused = |part: &str| {
            let reason = config.state(&uuid, None).unwrap_err().to_string();
            assert!(reason.contains(part), "{reason}");
        };
        refused("has no state of a TPM");

        let file = path.join("tpm2-00.permall");
        write_state(&file, 100);
        assert!(config.state(&uuid, None).unwrap().exists);
        for len in [0, 9, 10, 99, 101] {
            OpenOptions::new()
                .write(true)
                .open(&file)
                .unwrap()
                .set_len(len)
                .unwrap();
            refused("tpm2-00.permall has ");
        }
        fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &file).unwrap();
        refused("tpm2-00.permall");
    }

    #[test]
    fn each_folder_has_a_user_of_its_own() {
        let (_folder, config, uuid) = state();
        let first = config.state(&uuid, None).unwrap();
        let second = config.state(&UUID.replace('0', "1").parse().unwrap(), None);
        let second = second.unwrap();

        fs::create_dir(&first.path).unwrap();
        fs::create_dir(&second.path).unwrap();
        fs::write(first.path.join("tpm2-00.permall"), b"").unwrap();
        if lchown(&first.path, Some(7_000), None).is_err() {
            return eprintln!("SKIPPED: not root");
        }
        let owner = |path: &Path| fs::symlink_metadata(path).unwrap().uid();

        assert_eq!(first.own(&first.path, 9_000).unwrap(), 9_000);
        assert_eq!(owner(&first.path.join("tpm2-00.permall")), 9_000);
        assert_eq!(second.own(&second.path, 9_000).unwrap(), 9_001);
        assert_eq!(owner(&second.path), 9_001);
        // It stays what it is, even where a smaller one would be free.
        fs::remove_dir_all(&first.path).unwrap();
        assert_eq!(second.own(&second.path, 9_000).unwrap(), 9_001);
        // As after cp -a: two of one user.
        fs::create_dir(&first.path).unwrap();
        lchown(&first.path, Some(9_001), Some(9_001)).unwrap();
        assert_eq!(first.own(&first.path, 9_000).unwrap(), 9_000);

        std::os::unix::fs::symlink("/etc/passwd", first.path.join("link")).unwrap();
        assert!(matches!(first.own(&first.path, 9_000), Err(Error::Odd(_))));
    }
}
