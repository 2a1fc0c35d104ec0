// SPDX-License-Identifier: GPL-2.0

//! The administrator's commands on states: list, info, remove, reset, clear-lockout, rekey. Each takes the
//! state's lock for what it changes, so that none touches a TPM that a guest uses.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, IsTerminal, Read, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{flock, FlockOperation, OFlags};
use serde::Serialize;

use crate::config::{Config, Uuid};
use crate::control::{self, Request};
use crate::files::{self, read_plain};
use crate::key;
use crate::logger::Plain;
use crate::measure;
use crate::notes::{Notes, Use};
use crate::record::Record;
use crate::session::{self, Place, Session, Start};
use crate::state::{self, sync_folder, version_of_state, State};
use crate::status::Report;
use crate::swtpm::Version;
use crate::worker;

mod list;

use list::*;
pub use list::{entry, key_of, list, now, table, users, Entry};

/// More than any file of swtpm's has.
const MAX_FILE: u64 = 1 << 20;

/// Where swtpm_setup leaves the endorsement keys and their certificates of a TPM 2.0: handles and NV indices (TCG EK
/// Credential Profile, 2.2.1.4 and 2.2.1.5).
const EKS: [(&str, &str, &str); 2] = [
    ("RSA", "0x81010001", "0x01c00002"),
    ("ECC", "0x81010016", "0x01c00016"),
];

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The state cannot be used.
    #[error(transparent)]
    State(#[from] state::Error),
    /// It could not be made.
    #[error(transparent)]
    Setup(#[from] worker::CreateError),
    /// The programs that looked at it or changed it failed.
    #[error(transparent)]
    Session(#[from] session::Error),
    /// The worker of a vTPM in use did not do it.
    #[error(transparent)]
    Worker(#[from] worker::ask::Error),
    /// There is none.
    #[error("vTPM {0} has no state here: see `xen-vtpmd list`")]
    NoState(Uuid),
    /// There is one.
    #[error("{} has the state of a TPM already", .0.display())]
    Exists(PathBuf),
    /// A guest is saved that goes on with this TPM.
    #[error("the guest of vTPM {0} is saved, and goes on with this TPM: restore it first")]
    Saved(Uuid),
    /// The administrator said no, or could not be asked.
    #[error("not done: {0}")]
    NotConfirmed(&'static str),
    /// What cannot be had of a TPM 1.2.
    #[error("vTPM {0} is a TPM 1.2: this is for TPMs 2.0")]
    Tpm12(Uuid),
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The key cannot be used.
    #[error(transparent)]
    Key(#[from] key::Error),
    /// The event log cannot be read.
    #[error(transparent)]
    EventLog(#[from] measure::Error),
    /// There is no event log.
    #[error("vTPM {0} has no event log: its guest was not measured, or has not been started since it can be")]
    NoEventLog(Uuid),
}

fn at(path: &Path) -> impl Fn(io::Error) -> Error + '_ {
    |source| Error::File {
        path: path.to_owned(),
        source,
    }
}

/// Asks the administrator, unless that was answered beforehand.
pub fn confirm(question: &str, yes: bool) -> Result<(), Error> {
    if yes {
        return Ok(());
    }
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return Err(Error::NotConfirmed("say --yes where there is no terminal"));
    }
    eprint!("{question} Type \"yes\" to go on: ");
    let _ = io::stderr().flush();
    let mut answer = String::new();
    let read = stdin.lock().read_line(&mut answer);
    match read.is_ok() && answer.trim() == "yes" {
        true => Ok(()),
        false => Err(Error::NotConfirmed("the answer was not \"yes\"")),
    }
}

/// A state that is there.
fn existing(config: &Config, uuid: &Uuid) -> Result<State, Error> {
    let state = config.state(uuid, None)?;
    match state.exists {
        true => Ok(state),
        false => Err(Error::NoState(uuid.clone())),
    }
}

/// Makes the state of a new TPM.
pub fn create(config: &Config, uuid: &Uuid, version: Option<Version>) -> Result<(), Error> {
    Ok(worker::create_state(config, uuid, version)?)
}

/// Removes a state, whatever is in it, and all that is known of it.
pub fn remove(config: &Config, uuid: &Uuid) -> Result<(), Error> {
    let path = config.state_path(uuid);
    if !path.is_dir() {
        return Err(Error::NoState(uuid.clone()));
    }
    // Also one that is broken, which is why it is removed.
    let state = State {
        uuid: uuid.clone(),
        version: version_of_state(&path)
            .ok()
            .flatten()
            .unwrap_or(Version::Tpm2),
        exists: true,
        path,
    };
    let _lock = state.lock()?;
    state.remove()?;
    forget(&state)
}

/// Writes the event log of a vTPM's guest, the one that runs or ran last, to stdout.
pub fn event_log(config: &Config, uuid: &Uuid) -> Result<(), Error> {
    let state = existing(config, uuid)?;
    let log = measure::kept_log(&state.path)?.ok_or_else(|| Error::NoEventLog(uuid.clone()))?;
    let mut stdout = io::stdout();
    let stdout_error = at(Path::new("stdout"));
    stdout.write_all(&log).map_err(stdout_error)
}

/// Removes what is beside a state that is gone.
pub fn forget(state: &State) -> Result<(), Error> {
    Notes::remove(&state.path).map_err(at(&state.path))?;
    for beside in [key::mark_path(&state.path), measure::log_path(&state.path)] {
        files::remove(&beside).map_err(at(&beside))?;
    }
    Ok(())
}

/// A new TPM in place of the one that is there.
pub fn reset(config: &Config, uuid: &Uuid) -> Result<(), Error> {
    let version = existing(config, uuid)?.version;
    remove(config, uuid)?;
    create(config, uuid, Some(version))
}

/// Whom programs on a state run as: the user that its directory belongs to.
fn user(config: &Config, state: &State) -> Result<Option<u32>, Error> {
    let Some(first) = config.first_uid else {
        return Ok(None);
    };
    let uid = fs::symlink_metadata(&state.path)
        .map_err(at(&state.path))?
        .uid();
    // One that came by other ways than ours, and was not used yet.
    Ok(Some(if uid >= first { uid } else { first }))
}

/// The key of a state that is there.
fn state_key(config: &Config, state: &State) -> Result<Option<OwnedFd>, Error> {
    let policy = config.policy(&state.uuid);
    let key_file = policy.key_file.as_deref();
    let key = key::of_state(key_file, &state.uuid, &state.path, true)?;
    let fd = key.as_ref().map(key::Key::to_fd).transpose();
    fd.map_err(at(&state.path))
}

/// A copy of a state, for looking at. The state may be in use: swtpm replaces its file by one step.
fn copy(config: &Config, state: &State) -> Result<Place, Error> {
    let place = Place::new(&config.run_dir, user(config, state)?)?;
    let name = state.version.state_file();
    let path = state.path.join(name);
    place.put(name, &read_plain(&path, MAX_FILE).map_err(at(&path))?)?;
    Ok(place)
}

/// What there is to say about a vTPM, with its endorsement keys and their certificates.
pub fn info(
    config: &Config,
    uuid: &Uuid,
    users: &HashMap<String, String>,
) -> Result<String, Error> {
    let state = existing(config, uuid)?;
    let entry = entry(config, uuid, users);
    let dash = |value: &Option<String>| Plain(value.as_deref().unwrap_or("-")).to_string();
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:13} {value}");
    };

    line("uuid", &entry.uuid);
    line("version", &dash(&entry.version));
    line("state", &state.path.display().to_string());
    line("size", &format!("{} bytes", entry.size));
    line("changed", &date(entry.changed));
    line("saved", if entry.saved { "yes" } else { "no" });
    line("key", &entry.key);
    line("in use", &dash(&entry.in_use));
    match &entry.last_used {
        Some(used) => {
            line("last used", &date(used.time));
            line(
                "by",
                &format!("{} ({}/{})", Plain(&used.name), used.domid, used.devid),
            );
            line("on", &Plain(&used.host).to_string());
        }
        None => line("last used", "-"),
    }
    if let Some(identity) = &entry.identity {
        line("copy of", &Plain(identity).to_string());
    }
    text.push_str(&endorsement_of(config, uuid)?.1);
    Ok(text)
}

/// A vTPM's state, and its endorsement keys and their certificates, if it is a TPM 2.0, in PEM.
pub fn endorsement_of(config: &Config, uuid: &Uuid) -> Result<(State, String), Error> {
    let state = existing(config, uuid)?;
    if state.version != Version::Tpm2 {
        return Ok((state, String::new()));
    }
    let place = copy(config, &state)?;
    let session = place.start(state.version, state_key(config, &state)?, Start::Up)?;
    let text = endorsement(&place, &session)?;
    Ok((state, text))
}

/// The endorsement keys and their certificates, in PEM.
fn endorsement(place: &Place, session: &Session<'_>) -> Result<String, Error> {
    let handles = session.tpm2("tpm2_getcap", &["handles-persistent"])?;
    let indices = session.tpm2("tpm2_getcap", &["handles-nv-index"])?;
    let has = |list: &[u8], handle: &str| {
        let list = String::from_utf8_lossy(list).to_ascii_lowercase();
        // Without leading zeroes, as tpm2-tools print numbers.
        list.contains(&format!(
            "0x{}",
            handle.trim_start_matches("0x0").trim_start_matches("0x")
        ))
    };
    let mut text = String::new();
    for (name, handle, index) in EKS {
        if has(&handles, handle) {
            // Not /dev/stdout, which is a pipe of root's, and this program another user's.
            let file = format!("{handle}.pem");
            let path = format!("state/{file}");
            session.tpm2(
                "tpm2_readpublic",
                &["-Q", "-c", handle, "-f", "pem", "-o", &path],
            )?;
            let pem = place.take(&file)?;
            let _ = write!(text, "\nEK ({name}, {handle}):\n{}", plain_lines(&pem));
        }
        if has(&indices, index) {
            let der = session.tpm2("tpm2_nvread", &[index])?;
            let pem = certificate_pem(&der).map_err(at(Path::new("base64")))?;
            let _ = write!(text, "\nEK certificate ({name}, {index}):\n{pem}");
        }
    }
    if text.is_empty() {
        text.push_str("\nno endorsement key: the guest has removed it, or it was never made\n");
    }
    Ok(text)
}

/// Text of several lines from programs that may be a hostile TPM's, without anything but text in it.
fn plain_lines(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.lines().fold(String::new(), |mut all, line| {
        let _ = writeln!(all, "{}", Plain(line));
        all
    })
}

/// A certificate in DER as PEM, by base64(1).
fn certificate_pem(der: &[u8]) -> io::Result<String> {
    let mut child = Command::new("base64")
        .args(["-w", "64"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    // It is far smaller than a pipe.
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(der)?;
    }
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        text.trim_end()
    ))
}

/// Has a TPM forget the failed authorisations that locked it. Of a vTPM in use its worker does it.
pub fn clear_lockout(config: &Config, uuid: &Uuid) -> Result<(), Error> {
    let state = existing(config, uuid)?;
    if state.version != Version::Tpm2 {
        return Err(Error::Tpm12(uuid.clone()));
    }
    let _lock = match state.lock() {
        Err(locked @ state::Error::Locked { .. }) => {
            let having = Record::with_state(&config.run_dir, uuid).unwrap_or_default();
            let (_, run) = having.first().ok_or(locked)?;
            return Ok(worker::ask::clear_lockout(run)?);
        }
        lock => lock?,
    };
    if state.is_saved()? {
        return Err(Error::Saved(uuid.clone()));
    }
    let place = copy(config, &state)?;
    let session = place.start(state.version, state_key(config, &state)?, Start::Up)?;
    session.tpm2("tpm2_dictionarylockout", &["--clear-lockout"])?;
    session.tpm2("tpm2_shutdown", &["--clear"])?;
    session.end()?;
    replace(&state, &place.take(state.version.state_file())?)
}

/// Gives an imported TPM 2.0 new seeds, and endorsement keys of these, in the directory where its state is made.
/// Returns which NV indices stay.
pub fn renew(config: &Config, state: &State, folder: &Path) -> Result<String, Error> {
    let name = state.version.state_file();
    let path = folder.join(name);
    let place = Place::new(&config.run_dir, config.first_uid)?;
    place.put(name, &read_plain(&path, MAX_FILE).map_err(at(&path))?)?;
    let session = place.start(state.version, state_key(config, state)?, Start::Up)?;

    // The owner may have disabled TPM2_Clear; the platform is ours until a guest has it.
    session.tpm2("tpm2_clearcontrol", &["-C", "p", "c"])?;
    for change in ["tpm2_changeeps", "tpm2_changepps"] {
        session.tpm2(change, &["-Q"])?;
    }
    session.tpm2("tpm2_clear", &["-Q", "-c", "p"])?;
    let indices = session.tpm2("tpm2_getcap", &["handles-nv-index"])?;
    let indices = String::from_utf8_lossy(&indices).to_lowercase();
    let mut kept = Vec::new();
    for index in indices.lines().filter_map(|line| line.strip_prefix("- ")) {
        // Of an endorsement key that is no more.
        let void = index.starts_with("0x1c0")
            && session.tpm2("tpm2_nvundefine", &["-C", "p", index]).is_ok();
        if !void {
            kept.push(index.to_owned());
        }
    }
    for (algorithm, handle) in [("rsa", EKS[0].1), ("ecc", EKS[1].1)] {
        let arguments = ["-Q", "-G", algorithm, "-c", handle];
        session.tpm2("tpm2_createek", &arguments)?;
    }
    session.tpm2("tpm2_shutdown", &["--clear"])?;
    session.end()?;
    let bytes = place.take(name)?;
    fs::write(&path, bytes).map_err(at(&path))?;
    Ok(match kept.is_empty() {
        true => "none".to_owned(),
        false => kept.join(", "),
    })
}

/// What became of a state that is to be encrypted by the configured key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rekeyed {
    /// It is now.
    Done,
    /// It was.
    NothingToDo,
}

/// Encrypts a state that is not in use by the key that is configured now, as a state that is made now, or decrypts
/// it if none is configured. `old` is the key-file that it is encrypted by, if that is another one.
pub fn rekey(config: &Config, uuid: &Uuid, old: Option<&Path>) -> Result<Rekeyed, Error> {
    let state = existing(config, uuid)?;
    let _lock = state.lock()?;
    if state.is_saved()? {
        return Err(Error::Saved(uuid.clone()));
    }
    let new = config.policy(uuid).key_file.as_deref();
    let encrypted = is_encrypted(&state.path, state.version).map_err(at(&state.path))?;
    if encrypted == new.is_some() && key::is_current(new, &state.path)? {
        return Ok(Rekeyed::NothingToDo);
    }
    let fd = |key: Option<key::Key>| -> Result<Option<OwnedFd>, Error> {
        let fd = key.as_ref().map(key::Key::to_fd).transpose();
        fd.map_err(at(&state.path))
    };
    let own = |key_file: Option<&Path>| -> Result<Option<OwnedFd>, Error> {
        let Some(key_file) = key_file else {
            return Ok(None);
        };
        fd(Some(key::Master::read(key_file)?.derive(uuid)))
    };

    // Out of an swtpm that has the old key, and into one that has the new one.
    const BLOB: &str = "blob";
    let place = copy(config, &state)?;
    let key = match encrypted {
        true => fd(key::of_state(old.or(new), uuid, &state.path, true)?)?,
        false => None,
    };
    let session = place.start(state.version, key, Start::Bare)?;
    if let Err(e) = session.ioctl(&["-i"]) {
        drop(session);
        // Another rekey may have ended between the state and its mark.
        let session = place.start(state.version, own(new)?, Start::Bare)?;
        return match session.ioctl(&["-i"]) {
            Ok(_) => {
                key::mark(new, &state.path)?;
                Ok(Rekeyed::Done)
            }
            Err(_) => Err(e.into()),
        };
    }
    session.ioctl(&["--save", "permanent", &format!("state/{BLOB}")])?;
    session.end()?;
    let blob = zeroize::Zeroizing::new(place.take(BLOB)?);
    let place = Place::new(&config.run_dir, user(config, &state)?)?;
    place.put(BLOB, &blob)?;
    let session = place.start(state.version, own(new)?, Start::Bare)?;
    session.ioctl(&["--load", "permanent", &format!("state/{BLOB}")])?;
    // It has to be able to read what it has written.
    session.ioctl(&["-i"])?;
    session.end()?;
    replace(&state, &place.take(state.version.state_file())?)?;
    key::mark(new, &state.path)?;
    Ok(Rekeyed::Done)
}

/// Puts another file in place of a state's, by one step, durably, and with the owner that it had. The caller has
/// the lock.
fn replace(state: &State, bytes: &[u8]) -> Result<(), Error> {
    let path = state.path.join(state.version.state_file());
    let write = || {
        let data = fs::symlink_metadata(&path)?;
        let mut file = tempfile::NamedTempFile::new_in(&state.path)?;
        file.write_all(bytes)?;
        std::os::unix::fs::fchown(file.as_file(), Some(data.uid()), Some(data.gid()))?;
        file.as_file().sync_all()?;
        file.persist(&path)?;
        sync_folder(&state.path)
    };
    write().map_err(at(&path))
}

#[cfg(test)]
mod tests;
