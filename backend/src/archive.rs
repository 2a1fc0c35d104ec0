// SPDX-License-Identifier: GPL-2.0

//! A vTPM in one file, to be moved to another host or kept as a backup: a tar archive of a manifest and swtpm's
//! own files, encrypted if those are. No link is followed on either way.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tar::{Archive, Builder, EntryType, Header};
use tempfile::NamedTempFile;

use crate::admin::{self, list};
use crate::config::{Config, Uuid};
use crate::files::read_plain;
use crate::key;
use crate::measure;
use crate::migrate::mark::Mark;
use crate::notes::Notes;
use crate::state::{self, sync_folder, version_of_state, Lock, State};
use crate::swtpm::Version;

mod read;
pub mod transfer;

pub use read::Files;
use read::{read_archive, read_folder};

/// The format that is written, and the first one that is read: 2 has `identity`, `saved_for` and `key`.
const FORMAT: u32 = 2;
const FIRST_FORMAT: u32 = 1;

/// The manifest's name in the archive. It is the first entry.
const MANIFEST: &str = "manifest.json";

/// More than any file of swtpm's has: a TPM 1.2 with all its NV has some 100 kB.
const MAX_FILE: u64 = 1 << 20;

/// The largest mark beside a state.
const MAX_MARK: u64 = 4096;

/// How long an export waits for a vTPM that is in use, and how often it looks.
const LOCK_LIMIT: Duration = Duration::from_secs(3);
const LOCK_INTERVAL: Duration = Duration::from_millis(100);

/// Why a vTPM is not moved.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The state cannot be used.
    #[error(transparent)]
    State(#[from] state::Error),
    /// There is nothing to export.
    #[error("vTPM {0} has no state here")]
    NoState(Uuid),
    /// There is a state already.
    #[error("vTPM {0} has a state here already: export or remove it first")]
    Exists(Uuid),
    /// An swtpm folder does not say whose it is.
    #[error("{} is an swtpm folder: say with --uuid which vTPM it is to be", .0.display())]
    WhichUuid(PathBuf),
    /// The same identity is there under another uuid.
    #[error("{} has the identity of vTPM {identity}, which vTPM {holder} here has: two TPMs of one identity are \
             rolled back by each other. Say --copy for that, or --new-identity for new seeds and endorsement keys",
            path.display())]
    SameIdentity {
        /// What is to be imported.
        path: PathBuf,
        /// Whose seeds it has.
        identity: String,
        /// Who has them here.
        holder: String,
    },
    /// A new identity cannot be had.
    #[error("no new identity for {}: {reason}", path.display())]
    NoNewIdentity {
        /// What is to be imported.
        path: PathBuf,
        /// Why not.
        reason: &'static str,
    },
    /// Giving it another identity failed.
    #[error(transparent)]
    Admin(#[from] admin::Error),
    /// A file or folder cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// What is to be imported is not a vTPM.
    #[error("{} is not an exported vTPM: {reason}", path.display())]
    Bad {
        /// Which file or folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// What an archive says about itself.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    format: u32,
    uuid: String,
    version: String,
    /// Whether the volatile state is there, of a guest that was saved.
    saved: bool,
    /// The guest that it is for, if only that may go on with it.
    #[serde(default)]
    saved_for: Option<String>,
    /// The vTPM that it was made for, whose seeds it has.
    #[serde(default)]
    identity: Option<String>,
    /// What UUID.key says, if the state is encrypted by a key of the vTPM's own.
    #[serde(default)]
    key: Option<serde_json::Value>,
    /// The event log of the guest, whose PCRs the volatile state has.
    #[serde(default)]
    event_log: Option<Vec<u8>>,
}

impl Manifest {
    fn of(state: &State, saved: bool) -> Result<Self, Error> {
        let beside = |ending: &str| -> Result<Option<serde_json::Value>, Error> {
            let path = state.path.with_extension(ending);
            match read_plain(&path, MAX_MARK) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
                // A mark of version 0.1.0 is empty.
                Ok(text) if text.is_empty() => Ok(None),
                text => serde_json::from_slice(&text.map_err(at(&path))?)
                    .map_err(|e| at(&path)(e.into())),
            }
        };
        let notes = Notes::read(&state.path).map_err(at(&state.path.with_extension("info")))?;
        let saved_for = match saved {
            true => beside("saved")?,
            false => None,
        };
        let uuid = state.uuid.to_string();
        Ok(Self {
            format: FORMAT,
            version: state.version.to_string(),
            saved,
            saved_for: saved_for.and_then(|mark| mark["vm"].as_str().map(str::to_owned)),
            identity: Some(notes.identity.unwrap_or_else(|| uuid.clone())),
            key: beside("key")?,
            event_log: match saved {
                true => measure::kept_log(&state.path).map_err(admin::Error::from)?,
                false => None,
            },
            uuid,
        })
    }
}

/// What is to become of the identity of an imported TPM: its seeds and endorsement keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Identity {
    /// It is kept, if nobody here has it.
    #[default]
    Moved,
    /// It is kept, even if somebody here has it.
    Copied,
    /// It gets a new one.
    New,
}

/// How to import.
#[derive(Clone, Debug, Default)]
pub struct Import {
    /// Which vTPM it is to be; the one that was exported otherwise.
    pub uuid: Option<Uuid>,
    /// What is to become of its identity.
    pub identity: Identity,
}

/// What was imported.
#[derive(Clone, Debug)]
pub struct Imported {
    /// Which vTPM it is.
    pub uuid: Uuid,
    /// What the administrator has to know of it.
    pub remarks: Vec<String>,
}

fn at(path: &Path) -> impl Fn(io::Error) -> Error + '_ {
    |source| Error::File {
        path: path.to_owned(),
        source,
    }
}

/// The files that a TPM of this version may have.
fn known(version: Version, saved: bool) -> Vec<&'static str> {
    let volatile = saved.then_some(version.volatile_file());
    let suspended = (version == Version::Tpm12).then_some("tpm-00.savestate");

    [Some(version.state_file()), volatile, suspended]
        .into_iter()
        .flatten()
        .collect()
}

/// Writes a vTPM that nobody uses to a file that is not there yet, and removes its state here.
///
/// With `keep` the state stays, and the vTPM may be in use: what is written is its permanent state as it is at
/// this moment, which swtpm replaces by one step. Whoever starts the copy has rolled the vTPM back: NV counters,
/// dictionary attack counts and sealed data with it. So that is for backups only. Returns whether it is in use.
pub fn export(config: &Config, uuid: &Uuid, file: &Path, keep: bool) -> Result<bool, Error> {
    let lock = match lock_soon(&config.state(uuid, None)?, keep) {
        Err(state::Error::Locked { .. }) if keep => None,
        lock => Some(lock?),
    };
    // As it is now that nobody changes it.
    let state = config.state(uuid, None)?;
    if !state.exists {
        return Err(Error::NoState(uuid.clone()));
    }
    // What a TPM in use has in memory is not saved.
    let saved = lock.is_some() && state.is_saved()?;
    write(&state, &Manifest::of(&state, saved)?, file)?;
    if !keep {
        state.remove()?;
        admin::forget(&state)?;
    }
    Ok(lock.is_none())
}

/// The right to use a state. When `xl save` has come to its end, swtpm may still be about to come to its own.
fn lock_soon(state: &State, keep: bool) -> Result<Lock, state::Error> {
    let wait = if keep { Duration::ZERO } else { LOCK_LIMIT };
    let limit = Instant::now() + wait;
    loop {
        match state.lock() {
            Err(state::Error::Locked { .. }) if Instant::now() < limit => sleep(LOCK_INTERVAL),
            done => return done,
        }
    }
}

/// Writes the archive under a name that nobody knows, and gives it its own when it is whole, unless that is taken.
fn write(state: &State, manifest: &Manifest, path: &Path) -> Result<(), Error> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    if path.try_exists().map_err(at(path))? {
        return Err(at(path)(io::ErrorKind::AlreadyExists.into()));
    }
    // Made anew, and for its owner only.
    let file = NamedTempFile::new_in(folder).map_err(at(folder))?;
    let mut archive = Builder::new(file);
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o600);
        header.set_size(bytes.len() as u64);
        archive
            .append_data(&mut header, name, bytes)
            .map_err(at(path))
    };

    let text = serde_json::to_vec(manifest).map_err(|e| at(path)(e.into()))?;
    add(MANIFEST, &text)?;
    for name in known(state.version, manifest.saved) {
        let from = state.path.join(name);
        match read_plain(&from, MAX_FILE) {
            Ok(bytes) => add(name, &bytes)?,
            // The others are there by chance, so to say.
            Err(e) if e.kind() == io::ErrorKind::NotFound && name != state.version.state_file() => {
            }
            Err(e) => return Err(at(&from)(e)),
        }
    }
    let file = archive.into_inner().map_err(at(path))?;
    file.as_file().sync_all().map_err(at(path))?;
    file.persist_noclobber(path)
        .map_err(|e| at(path)(e.error))?;
    sync_folder(folder).map_err(at(folder))
}

/// Makes a vTPM from an exported file, or from a directory that swtpm used. Returns which one it is.
pub fn import(config: &Config, path: &Path, how: &Import) -> Result<Imported, Error> {
    let (manifest, files) = match fs::metadata(path).map_err(at(path))?.is_dir() {
        true => {
            let uuid = how.uuid.as_ref();
            read_folder(path, uuid.ok_or_else(|| Error::WhichUuid(path.to_owned()))?)?
        }
        false => read_archive(path)?,
    };
    let bad = |reason: String| Error::Bad {
        path: path.to_owned(),
        reason,
    };
    let version: Version = manifest.version.parse().map_err(bad)?;
    let exported: Uuid = manifest.uuid.parse().map_err(bad)?;
    let uuid = how.uuid.clone().unwrap_or_else(|| exported.clone());
    let identity = match &manifest.identity {
        Some(identity) => identity.parse().map_err(bad)?,
        None => exported.clone(),
    };
    check_files(&manifest, version, &files, path)?;
    match config.policy(&uuid).version {
        Some(wanted) if wanted != version => {
            return Err(Error::State(state::Error::Version {
                uuid,
                found: version,
                wanted,
            }));
        }
        _ => (),
    }
    let no_new = |reason| Error::NoNewIdentity {
        path: path.to_owned(),
        reason,
    };
    match how.identity {
        Identity::New if version != Version::Tpm2 => return Err(no_new("it is a TPM 1.2")),
        Identity::New if manifest.saved => {
            return Err(no_new("its guest is saved and goes on with the old one"));
        }
        _ => (),
    }

    // One that is there, of whatever version, is not to be touched.
    let state = State {
        exists: false,
        version,
        ..config.state(&uuid, None)?
    };
    // One that has moved away may come back in a file.
    let _lock = state.lock_to_import()?;
    if state.path.try_exists().map_err(at(&state.path))? {
        return Err(Error::Exists(uuid));
    }
    let holder = holder(config, &identity)?;
    let mut remarks = Vec::new();
    match (how.identity, holder) {
        (Identity::Moved, Some(holder)) => {
            return Err(Error::SameIdentity {
                path: path.to_owned(),
                identity: identity.to_string(),
                holder,
            });
        }
        (Identity::Copied, Some(holder)) => remarks.push(format!(
            "vTPM {uuid} is a COPY: it has the seeds, keys and certificates of vTPM {holder}. Nobody can tell \
             the two apart, and neither notices what the other has counted or changed"
        )),
        _ => (),
    }
    let folder = state.make_unfinished()?;
    fill(&folder, files)?;
    key::import_mark(manifest.key.as_ref(), &exported, &uuid, &state.path)
        .map_err(admin::Error::from)?;
    if how.identity == Identity::New {
        let kept = admin::renew(config, &state, &folder)?;
        remarks.push(format!(
            "vTPM {uuid} has new seeds and new endorsement keys without certificates. Keys, sealed data and the \
             owner's NV indices of the old identity are gone; these NV indices stay: {kept}"
        ));
    }
    let other = how.identity != Identity::New && identity != uuid;
    Notes::new(other.then(|| identity.to_string()))
        .write(&state.path)
        .map_err(at(&state.path.with_extension("info")))?;
    measure::keep_log(&state.path, manifest.event_log.as_deref()).map_err(admin::Error::from)?;
    state.finish(config, manifest.saved, manifest.saved_for.as_deref())?;
    Mark::remove(&state.path).map_err(at(&state.path))?;
    Ok(Imported { uuid, remarks })
}

/// What an archive has to have.
fn check_files(
    manifest: &Manifest,
    version: Version,
    files: &Files,
    path: &Path,
) -> Result<(), Error> {
    let volatile = manifest.saved.then_some(version.volatile_file());
    let mut wanted = [Some(version.state_file()), volatile].into_iter().flatten();
    match wanted.find(|wanted| !files.iter().any(|(name, _)| name == wanted)) {
        Some(missing) => Err(Error::Bad {
            path: path.to_owned(),
            reason: format!("{missing} is not in it"),
        }),
        None => Ok(()),
    }
}

/// Makes the files of a state.
fn fill(folder: &Path, files: Files) -> Result<(), Error> {
    for (name, bytes) in files {
        let path = folder.join(name);
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(&path);
        file.and_then(|mut file| {
            file.write_all(&bytes)?;
            file.sync_all()
        })
        .map_err(at(&path))?;
    }
    Ok(())
}

/// Who has this identity here.
pub fn holder(config: &Config, identity: &Uuid) -> Result<Option<String>, Error> {
    let identity = identity.to_string();
    let entries = list(config, &HashMap::new())?;
    let holder = entries.into_iter().find(|entry| {
        let own = entry.identity.as_ref().unwrap_or(&entry.uuid);
        // Of one that has moved away there is a mark alone.
        let is_here = entry.version.is_some() || entry.migration.is_none();
        is_here && *own == identity
    });
    Ok(holder.map(|entry| entry.uuid))
}
