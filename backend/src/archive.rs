// SPDX-License-Identifier: GPL-2.0

//! A vTPM in one file, to be moved to another host: a tar archive of a manifest and swtpm's own files,
//! encrypted if those are.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tar::{Archive, Builder, EntryType, Header};

use crate::config::{Config, Uuid};
use crate::state::{self, sync_folder, version_of_state, Lock, State};
use crate::swtpm::Version;

/// The format that this daemon writes, and the only one it reads.
const FORMAT: u32 = 1;

/// The manifest's name in the archive. It is the first entry.
const MANIFEST: &str = "manifest.json";

/// More than any file of swtpm's has: a TPM 1.2 with all its NV has some 100 kB.
const MAX_FILE: u64 = 1 << 20;

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
/// With `keep` the state stays. Then the vTPM is there twice, and whoever starts the one has rolled back the
/// other: NV counters, dictionary attack counts and sealed data with it. So that is for backups only.
pub fn export(config: &Config, uuid: &Uuid, file: &Path, keep: bool) -> Result<(), Error> {
    let _lock = lock_soon(&config.state(uuid, None)?)?;
    // As it is now that nobody changes it.
    let state = config.state(uuid, None)?;
    if !state.exists {
        return Err(Error::NoState(uuid.clone()));
    }
    if file.try_exists().map_err(at(file))? {
        return Err(at(file)(io::ErrorKind::AlreadyExists.into()));
    }
    let mut new = file.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let written = write(&state, &new).and_then(|()| {
        fs::rename(&new, file).map_err(at(file))?;
        let folder = match file.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        sync_folder(folder).map_err(at(folder))
    });

    if let Err(e) = written {
        // What is left of it is of no use.
        let _ = fs::remove_file(&new);
        return Err(e);
    }
    match keep {
        true => Ok(()),
        false => Ok(state.remove()?),
    }
}

/// The right to use a state. When `xl save` has come to its end, swtpm may still be about to come to its own.
fn lock_soon(state: &State) -> Result<Lock, state::Error> {
    let limit = Instant::now() + LOCK_LIMIT;
    loop {
        match state.lock() {
            Err(state::Error::Locked { .. }) if Instant::now() < limit => sleep(LOCK_INTERVAL),
            done => return done,
        }
    }
}

fn write(state: &State, path: &Path) -> Result<(), Error> {
    let saved = state.is_saved()?;
    let manifest = Manifest {
        format: FORMAT,
        uuid: state.uuid.to_string(),
        version: state.version.to_string(),
        saved,
    };
    let mut options = OpenOptions::new();
    let file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(at(path))?;
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

    let manifest = serde_json::to_vec(&manifest).map_err(|e| at(path)(e.into()))?;
    add(MANIFEST, &manifest)?;
    for name in known(state.version, saved) {
        let from = state.path.join(name);
        match read_plain(&from) {
            Ok(bytes) => add(name, &bytes)?,
            // The others are there by chance, so to say.
            Err(e) if e.kind() == io::ErrorKind::NotFound && name != state.version.state_file() => {
            }
            Err(e) => return Err(at(&from)(e)),
        }
    }
    let file = archive.into_inner().map_err(at(path))?;
    file.sync_all().map_err(at(path))
}

/// The contents of a plain file that is not too large.
fn read_plain(path: &Path) -> io::Result<Vec<u8>> {
    let data = fs::symlink_metadata(path)?;
    let mut bytes = Vec::new();

    if !data.is_file() {
        return Err(io::Error::other("not a plain file"));
    }
    let taken = File::open(path)?
        .take(MAX_FILE + 1)
        .read_to_end(&mut bytes)?;
    match taken as u64 > MAX_FILE {
        true => Err(io::Error::other("too large for a TPM's state")),
        false => Ok(bytes),
    }
}

/// Makes a vTPM from an exported file, or from a folder that swtpm used. `uuid` says which vTPM it is to be;
/// an exported file knows by itself. Returns which one it is.
pub fn import(config: &Config, path: &Path, uuid: Option<&Uuid>) -> Result<Uuid, Error> {
    let (manifest, files) = match fs::metadata(path).map_err(at(path))?.is_dir() {
        true => {
            let uuid = uuid.ok_or_else(|| Error::WhichUuid(path.to_owned()))?;
            read_folder(path, uuid)?
        }
        false => read_archive(path)?,
    };
    let bad = |reason: String| Error::Bad {
        path: path.to_owned(),
        reason,
    };
    let version: Version = manifest.version.parse().map_err(bad)?;
    let uuid = match uuid {
        Some(uuid) => uuid.clone(),
        None => manifest.uuid.parse().map_err(bad)?,
    };
    if !files.iter().any(|(name, _)| *name == version.state_file()) {
        return Err(bad(format!("{} is not in it", version.state_file())));
    }
    if manifest.saved
        && !files
            .iter()
            .any(|(name, _)| *name == version.volatile_file())
    {
        return Err(bad(format!("{} is not in it", version.volatile_file())));
    }
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

    // One that is there, of whatever version, is not to be touched.
    let state = config.state(&uuid, None)?;
    let _lock = state.lock()?;
    if state.path.try_exists().map_err(at(&state.path))? {
        return Err(Error::Exists(uuid));
    }
    let folder = state.make_unfinished()?;
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
    state.finish(config, manifest.saved)?;
    Ok(uuid)
}

/// One entry of an archive.
type NameAndBytes = (Vec<u8>, Vec<u8>);

/// Names and contents.
type Files = Vec<(&'static str, Vec<u8>)>;

fn read_folder(path: &Path, uuid: &Uuid) -> Result<(Manifest, Files), Error> {
    let version = version_of_state(path).map_err(at(path))?;
    let version = version.ok_or_else(|| Error::Bad {
        path: path.to_owned(),
        reason: "there is no tpm2-00.permall and no tpm-00.permall in it".into(),
    })?;
    let mut files = Vec::new();

    // A volatile state is of use only with a guest that was saved, of whom nothing is known here.
    for name in known(version, false) {
        let from = path.join(name);
        match read_plain(&from) {
            Ok(bytes) => files.push((name, bytes)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => (),
            Err(e) => return Err(at(&from)(e)),
        }
    }
    let manifest = Manifest {
        format: FORMAT,
        uuid: uuid.to_string(),
        version: version.to_string(),
        saved: false,
    };
    Ok((manifest, files))
}

fn read_archive(path: &Path) -> Result<(Manifest, Files), Error> {
    let bad = |reason: &str| Error::Bad {
        path: path.to_owned(),
        reason: reason.to_owned(),
    };
    let broken = |e: io::Error| bad(&e.to_string());
    let mut archive = Archive::new(File::open(path).map_err(at(path))?);
    // As they are: no extension of tar's gives an entry another name or size.
    let mut entries = archive.entries().map_err(broken)?.raw(true);
    let mut next = || -> Result<Option<NameAndBytes>, Error> {
        let Some(entry) = entries.next() else {
            return Ok(None);
        };
        let mut entry = entry.map_err(broken)?;
        let name = entry.path_bytes().into_owned();
        let shown = String::from_utf8_lossy(&name).into_owned();
        if entry.header().entry_type() != EntryType::Regular {
            return Err(bad(&format!("{shown:?} is not a plain file")));
        }
        if entry.size() > MAX_FILE {
            return Err(bad(&format!("{shown:?} is too large")));
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(broken)?;
        match bytes.len() as u64 == entry.size() {
            true => Ok(Some((name, bytes))),
            false => Err(bad("it is cut short")),
        }
    };

    let manifest: Manifest = match next()? {
        Some((name, bytes)) if name == MANIFEST.as_bytes() => {
            serde_json::from_slice(&bytes).map_err(|e| bad(&format!("{MANIFEST}: {e}")))?
        }
        _ => return Err(bad(&format!("it does not start with {MANIFEST}"))),
    };
    if manifest.format != FORMAT {
        let reason = format!("format {}, where {FORMAT} is expected", manifest.format);
        return Err(bad(&reason));
    }
    let version: Version = manifest.version.parse().map_err(|e: String| bad(&e))?;
    let known = known(version, manifest.saved);
    let mut files: Files = Vec::new();
    while let Some((name, bytes)) = next()? {
        let shown = String::from_utf8_lossy(&name).into_owned();
        match known.iter().find(|known| known.as_bytes() == name) {
            Some(name) if files.iter().any(|(other, _)| other == name) => {
                return Err(bad(&format!("{shown:?} is in it twice")));
            }
            Some(name) => files.push((name, bytes)),
            None => return Err(bad(&format!("{shown:?} is not a TPM {version}'s file"))),
        }
    }
    Ok((manifest, files))
}
