// SPDX-License-Identifier: GPL-2.0

//! The state folders: which TPM's state is where, whose it is, who uses it now, and whether it was
//! saved with a guest. Beside the folder UUID are UUID.lock, UUID.saved, and UUID.new while it is made.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{lchown, DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{flock, FlockOperation};

use crate::config::{Config, Uuid};
use crate::swtpm::Version;

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
    #[error("the state of vTPM {uuid} is in use by {holder} ({} is locked)", path.display())]
    Locked {
        /// Whose.
        uuid: Uuid,
        /// What the lock file says.
        holder: String,
        /// The lock file.
        path: PathBuf,
    },
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

        // Others may pass, since each vTPM's user has a folder inside, but not look.
        DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(&self.state_dir)
            .map_err(at(&self.state_dir))?;
        let found = version_of_state(&path).map_err(at(&path))?;

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

/// Which TPM's state is in a folder, `None` if there is none yet.
pub fn version_of_state(state: &Path) -> io::Result<Option<Version>> {
    for version in Version::ALL {
        if state.join(version.state_file()).try_exists()? {
            return Ok(Some(version));
        }
    }
    Ok(None)
}

/// Makes what a folder lists last.
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
        let path = self.beside("lock");

        match lock_file(&path, FlockOperation::NonBlockingLockExclusive) {
            Ok(mut file) => {
                let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
                let holder = format!("process {} on host {}\n", std::process::id(), host.trim());
                let written = file
                    .set_len(0)
                    .and_then(|()| file.write_all(holder.as_bytes()));
                written.map_err(at(&path))?;
                Ok(Lock(file))
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                let holder = fs::read_to_string(&path).unwrap_or_default();
                let holder = match holder.trim() {
                    "" => "somebody".into(),
                    holder => holder.into(),
                };
                let uuid = self.uuid.clone();
                Err(Error::Locked { uuid, holder, path })
            }
            Err(e) => Err(at(&path)(e)),
        }
    }

    /// Whether the next start goes on where the TPM stopped when its guest was saved.
    pub fn is_saved(&self) -> Result<bool, Error> {
        let path = self.beside("saved");
        path.try_exists().map_err(at(&path))
    }

    /// Says that the volatile state is that of a guest that was saved. It is for one start.
    pub fn mark_saved(&self) -> Result<(), Error> {
        let path = self.beside("saved");
        let made = File::create(&path).and_then(|_| sync_folder(self.parent()));
        made.map_err(at(&path))
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

    /// Has the TPM start with the volatile state that it was saved with, and with no other. The caller has
    /// the lock.
    pub fn prepare_volatile(&self) -> Result<(), Error> {
        let path = self.path.join(self.version.volatile_file());

        match (self.is_saved()?, path.try_exists()) {
            (true, Ok(true)) => Ok(()),
            (true, Ok(false)) => Err(Error::NotSaved(self.beside("saved"), path)),
            // swtpm would take it up, whoever left it there and however old it is.
            (false, Ok(true)) => fs::remove_file(&path).map_err(at(&path)),
            (false, Ok(false)) => Ok(()),
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
    /// state of a guest that was saved. The caller has the lock.
    pub fn finish(&self, config: &Config, saved: bool) -> Result<(), Error> {
        let unfinished = self.unfinished();

        if let Some(first) = config.first_uid {
            self.own(&unfinished, first)?;
        }
        match saved {
            true => self.mark_saved()?,
            false => self.unmark_saved()?,
        }
        let renamed = sync_folder(&unfinished)
            .and_then(|()| fs::rename(&unfinished, &self.path))
            .and_then(|()| sync_folder(self.parent()));
        renamed.map_err(at(&self.path))
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
        let _all = lock_file(&all, FlockOperation::LockExclusive).map_err(at(&all))?;
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
        fs::write(fresh.path.join("tpm-00.permall"), b"").unwrap();
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

        let own = format!("in use by process {} on host ", std::process::id());
        assert!(refused.contains(&own), "{refused}");
        drop(lock);
        state.lock().unwrap();
    }

    #[test]
    fn the_mark_of_a_saved_guest() {
        let (_folder, config, uuid) = state();
        let state = config.state(&uuid, None).unwrap();

        state.unmark_saved().unwrap();
        assert!(!state.is_saved().unwrap());
        state.mark_saved().unwrap();
        assert!(state.is_saved().unwrap());
        state.unmark_saved().unwrap();
        assert!(!state.is_saved().unwrap());
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
