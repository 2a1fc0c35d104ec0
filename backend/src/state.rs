// SPDX-License-Identifier: GPL-2.0

//! The state folders: which TPM's state is where, whose it is, who uses it now, and whether it was
//! saved with a guest. Beside the folder UUID are UUID.lock, UUID.saved, and UUID.new while it is made.

mod lock;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{
    fchown, lchown, DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt,
};
use std::path::{Path, PathBuf};

use rustix::fs::{
    fallocate, renameat_with, statvfs, statx, AtFlags, FallocateFlags, FileType, OFlags,
    RenameFlags, StatxFlags, CWD,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::config::{Config, Uuid};
use crate::files::{self, create_private, write_durably};
use crate::swtpm::Version;

pub use lock::Lock;
use lock::{lock_all, ALL_LOCK_TIMEOUT};

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
    /// A migration has marked it.
    #[error("{0}")]
    Marked(String),
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

impl Config {
    /// Where a vTPM's state is, or would be.
    pub fn state_path(&self, uuid: &Uuid) -> PathBuf {
        self.state_dir.join(uuid.to_string())
    }

    /// Looks for a vTPM's state. Existing state decides what the TPM is; `asked`, or the entry for
    /// this uuid, must not contradict it.
    pub fn state(&self, uuid: &Uuid, asked: Option<Version>) -> Result<State, Error> {
        let path = self.state_path(uuid);
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

/// The guest that a TPM starts for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Guest<'a> {
    /// The uuid of the domain, where that is known.
    pub vm: Option<&'a str>,
    /// Whether it boots, and was not saved before.
    pub boots: bool,
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
        let path = self.beside("saved");
        let mark = Saved {
            version: 1,
            vm: vm.map(str::to_owned),
        };

        check_whole(&self.path.join(self.version.volatile_file()))?;
        self.sync()?;
        let text = serde_json::to_vec(&mark).map_err(|e| at(&path)(e.into()))?;
        write_durably(&path, &text).map_err(at(&path))
    }

    /// Keeps room for the next write of the state, in the file that swtpm writes before it renames it: it truncates
    /// it first, and then there is room. The file appears whole and with its owner, or not at all: the worker may be
    /// killed, and swtpm may write, at any moment. A file system that cannot do that, as NFS, keeps no room.
    pub fn reserve(&self, uid: Option<u32>) -> Result<(), Error> {
        let path = self.path.join(self.version.temporary_file());
        if fs::symlink_metadata(&path).is_ok() {
            return Ok(());
        }
        let state = self.path.join(self.version.state_file());
        let len = fs::metadata(&state).map_err(at(&state))?.len() + RESERVE;
        let new = self.path.join("room.new");
        let reserve = || -> io::Result<()> {
            let file = create_private(&new)?;
            fallocate(&file, FallocateFlags::empty(), 0, len)?;
            if let Some(uid) = uid {
                fchown(&file, Some(uid), Some(uid))?;
            }
            renameat_with(CWD, &new, CWD, &path, RenameFlags::NOREPLACE)?;
            Ok(())
        };
        let Err(e) = reserve() else { return Ok(()) };
        let removed = files::remove(&new).map_err(at(&new));
        match Errno::from_io_error(&e) {
            Some(Errno::EXIST | Errno::INVAL | Errno::OPNOTSUPP) => removed,
            _ => Err(at(&new)(e)),
        }
    }

    /// Makes durable what swtpm has written, and what the directory lists.
    pub fn sync(&self) -> Result<(), Error> {
        sync_all(&self.path)
    }

    /// Takes the mark away, if there is one.
    pub fn unmark_saved(&self) -> Result<(), Error> {
        let path = self.beside("saved");
        files::remove_durably(&path).map_err(at(&path))
    }

    /// Has the TPM start with the volatile state that it was saved with if it is for this guest, and with no other.
    /// Returns whether it does. The caller has the lock.
    pub fn prepare_volatile(&self, guest: Guest<'_>) -> Result<bool, Error> {
        let path = self.path.join(self.version.volatile_file());
        let saved = self.is_saved_for(guest.vm)?;
        if saved && guest.boots {
            log::warn!(
                "the guest boots: what was saved with {} goes",
                path.display()
            );
        }

        match (saved && !guest.boots, path.try_exists()) {
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

/// The users that the folders in `dir` belong to, but for one folder, as far as the kernel knows without asking a
/// server: one that is mounted there and hangs must hold up no other vTPM. Of those in use it knows.
fn owners(dir: &Path, except: &Path) -> io::Result<HashSet<u32>> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let mut owners = HashSet::new();

    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        match statx(CWD, &path, flags, StatxFlags::TYPE | StatxFlags::UID) {
            Ok(data) if is_folder(data.stx_mode) && path != except => {
                owners.insert(data.stx_uid);
            }
            Err(e) if e != Errno::NOENT => return Err(e.into()),
            _ => (),
        }
    }
    Ok(owners)
}

fn is_folder(mode: u16) -> bool {
    FileType::from_raw_mode(mode.into()) == FileType::Directory
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
