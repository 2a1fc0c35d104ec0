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
use crate::files::read_plain;
use crate::key;
use crate::logger::Plain;
use crate::notes::{Notes, Use};
use crate::session::{self, Place, Session, Start};
use crate::state::{self, sync_folder, version_of_state, State};
use crate::status::Report;
use crate::swtpm::Version;
use crate::worker;

/// More than any file of swtpm's has.
const MAX_FILE: u64 = 1 << 20;

/// Where swtpm_setup leaves the endorsement keys and their certificates of a TPM 2.0: handles and NV indices.
const EKS: [(&str, &str, &str); 2] = [
    ("RSA", "0x81010001", "0x01c00002"),
    ("ECC", "0x81010016", "0x01c0000a"),
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
}

fn at(path: &Path) -> impl Fn(io::Error) -> Error + '_ {
    |source| Error::File {
        path: path.to_owned(),
        source,
    }
}

/// What `list` knows of a state.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// Whose it is.
    pub uuid: String,
    /// "1.2" or "2.0"; none if the directory has no TPM's state.
    pub version: Option<String>,
    /// How large it is, in bytes.
    pub size: u64,
    /// When it changed last, in seconds since 1970.
    pub changed: u64,
    /// Who used it last.
    pub last_used: Option<Use>,
    /// Whether it goes on with a guest that was saved.
    pub saved: bool,
    /// By which key it is encrypted: "none", "shared" for the configured one itself, or the name of that of which
    /// its own is derived.
    pub key: String,
    /// Who uses it now: a vTPM here, or whoever has its lock.
    pub in_use: Option<String>,
    /// Whose seeds and EK it has, if not its own.
    pub identity: Option<String>,
    /// What is wrong with it.
    pub problem: Option<String>,
}

/// Which vTPMs of this host use which states, as the manager knows it.
pub fn users(config: &Config) -> HashMap<String, String> {
    let response = control::ask(&config.run_dir, Request::Status);
    let report: Report = match response.map(|text| serde_json::from_str(&text)) {
        Ok(Ok(report)) => report,
        // Without a manager the locks tell.
        _ => return HashMap::new(),
    };
    let user = |vtpm: crate::status::Vtpm| {
        let id = format!("{}/{}", vtpm.domid, vtpm.devid);
        vtpm.uuid.map(|uuid| (uuid, id))
    };
    report.vtpms.into_iter().filter_map(user).collect()
}

/// All states, by uuid.
pub fn list(config: &Config, users: &HashMap<String, String>) -> Result<Vec<Entry>, Error> {
    let dir = &config.state_dir;
    let mut entries = Vec::new();
    let names = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(entries),
        names => names.map_err(at(dir))?,
    };
    for name in names {
        let name = name.map_err(at(dir))?.file_name();
        let Some(Ok(uuid)) = name.to_str().map(str::parse::<Uuid>) else {
            continue;
        };
        entries.push(entry(config, &uuid, users));
    }
    entries.sort_by(|a, b| a.uuid.cmp(&b.uuid));
    Ok(entries)
}

/// What is known of one.
pub fn entry(config: &Config, uuid: &Uuid, users: &HashMap<String, String>) -> Entry {
    let path = config.state_dir.join(uuid.to_string());
    let mut problems = Vec::new();
    let version = version_of_state(&path).unwrap_or_else(|e| {
        problems.push(e.to_string());
        None
    });
    if version.is_none() && problems.is_empty() {
        problems.push("no TPM's state".to_owned());
    }
    // Also what is only found out when it is used.
    if let Err(e) = config.state(uuid, None) {
        problems.push(e.to_string());
    }
    let notes = Notes::read(&path).unwrap_or_else(|e| {
        problems.push(format!("UUID.info: {e}"));
        Notes::default()
    });
    let (size, changed) = size(&path);
    let in_use = match users.get(&uuid.to_string()) {
        Some(id) => Some(format!("vtpm {id}")),
        None => is_locked(&path).then(|| "locked".to_owned()),
    };
    Entry {
        uuid: uuid.to_string(),
        version: version.map(|version| version.to_string()),
        size,
        changed,
        last_used: notes.last_used,
        saved: path.with_extension("saved").exists(),
        key: version.map_or_else(|| "none".to_owned(), |version| key_of(&path, version)),
        in_use,
        identity: notes.identity,
        problem: (!problems.is_empty()).then(|| problems.join("; ")),
    }
}

/// The size of the files in a directory, and the last change of one.
fn size(path: &Path) -> (u64, u64) {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let data = entries.filter_map(|entry| entry.metadata().ok());
    data.fold((0, 0), |(size, changed), data| {
        let time = u64::try_from(data.mtime()).unwrap_or(0);
        (size + data.len(), changed.max(time))
    })
}

/// Whether somebody has a state's lock, on whatever host. Looking keeps it for a moment, in which others wait.
fn is_locked(path: &Path) -> bool {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NOFOLLOW.bits() as i32)
        .open(path.with_extension("lock"));
    file.is_ok_and(|file| {
        let locked = flock(&file, FlockOperation::NonBlockingLockShared);
        matches!(locked, Err(rustix::io::Errno::WOULDBLOCK))
    })
}

/// Whether swtpm's header says that a state is encrypted.
fn is_encrypted(path: &Path, version: Version) -> io::Result<bool> {
    const ENCRYPTED: u8 = 1;
    let mut header = [0; 10];
    let file = path.join(version.state_file());
    File::open(file)?.read_exact(&mut header)?;
    Ok(header[5] & ENCRYPTED != 0)
}

/// The key of a state, by swtpm's header and the mark beside it.
fn key_of(path: &Path, version: Version) -> String {
    match is_encrypted(path, version) {
        Ok(false) => return "none".to_owned(),
        Ok(true) => (),
        Err(_) => return "unknown".to_owned(),
    }
    let mark = read_plain(&path.with_extension("key"), 4096);
    let mark = mark
        .ok()
        .and_then(|text| serde_json::from_slice::<serde_json::Value>(&text).ok());
    match mark.as_ref().and_then(|mark| mark["key"].as_str()) {
        Some(key) => Plain(key).to_string(),
        None => "shared".to_owned(),
    }
}

/// For people.
pub fn table(entries: &[Entry]) -> String {
    let mut table = format!(
        "{:36} {:7} {:>8} {:16} {:5} {:16} {:12} {}\n",
        "UUID", "VERSION", "SIZE", "CHANGED", "SAVED", "KEY", "IN USE", "LAST USED"
    );
    for entry in entries {
        let used = entry.last_used.as_ref().map_or("-".to_owned(), |used| {
            format!(
                "{} by {} ({}/{}) on {}",
                date(used.time),
                Plain(&used.name),
                used.domid,
                used.devid,
                Plain(&used.host)
            )
        });
        let _ = write!(
            table,
            "{:36} {:7} {:>8} {:16} {:5} {:16} {:12} {used}",
            entry.uuid,
            entry.version.as_deref().unwrap_or("-"),
            entry.size,
            date(entry.changed),
            if entry.saved { "yes" } else { "-" },
            entry.key,
            entry.in_use.as_deref().unwrap_or("-"),
        );
        if let Some(identity) = &entry.identity {
            let _ = write!(table, "; a copy of {}", Plain(identity));
        }
        if let Some(problem) = &entry.problem {
            let _ = write!(table, "; {}", Plain(problem));
        }
        table.push('\n');
    }
    table
}

/// A time in seconds since 1970 as date and time, UTC.
fn date(time: u64) -> String {
    let (days, minutes) = (time / 86_400, time % 86_400 / 60);
    // The civil calendar from the days since 1970: years from March on, in eras of 400 years.
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}",
        minutes / 60,
        minutes % 60
    )
}

/// Now, in seconds since 1970.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
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
    let path = config.state_dir.join(uuid.to_string());
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

/// Removes what is beside a state that is gone.
pub fn forget(state: &State) -> Result<(), Error> {
    Notes::remove(&state.path).map_err(at(&state.path))?;
    let key = state.path.with_extension("key");
    match fs::remove_file(&key) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(at(&key)(e)),
        _ => Ok(()),
    }
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
    if state.version == Version::Tpm2 {
        let place = copy(config, &state)?;
        let session = place.start(state.version, state_key(config, &state)?, Start::Up)?;
        text.push_str(&endorsement(&session)?);
    }
    Ok(text)
}

/// The endorsement keys and their certificates, in PEM.
fn endorsement(session: &Session<'_>) -> Result<String, Error> {
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
            let pem = ["-Q", "-c", handle, "-f", "pem", "-o", "/dev/stdout"];
            let pem = session.tpm2("tpm2_readpublic", &pem)?;
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

/// Has a TPM forget the failed authorisations that locked it: for a vTPM that is not in use.
pub fn clear_lockout(config: &Config, uuid: &Uuid) -> Result<(), Error> {
    let state = existing(config, uuid)?;
    if state.version != Version::Tpm2 {
        return Err(Error::Tpm12(uuid.clone()));
    }
    let _lock = state.lock()?;
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
mod tests {
    use super::*;

    const UUID: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";

    fn fixture() -> (tempfile::TempDir, Config, Uuid) {
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            state_dir: dir.path().join("state"),
            run_dir: dir.path().join("run"),
            first_uid: None,
            ..Config::default()
        };
        fs::create_dir(&config.state_dir).unwrap();
        fs::create_dir(&config.run_dir).unwrap();
        (dir, config, UUID.parse().unwrap())
    }

    /// A state as swtpm_setup makes it, where that can be run.
    fn made(config: &Config, uuid: &Uuid) -> Option<PathBuf> {
        made_with(config, uuid, None)
    }

    fn made_with(config: &Config, uuid: &Uuid, key: Option<&Path>) -> Option<PathBuf> {
        let path = config.state_dir.join(uuid.to_string());
        fs::create_dir(&path).unwrap();
        let mut command = Command::new("swtpm_setup");
        if let Some(key) = key {
            command
                .args(["--cipher", "aes-256-cbc", "--keyfile"])
                .arg(key);
        }
        let done = command
            .args(["--tpm2", "--createek", "--tpmstate"])
            .arg(&path)
            .stdout(Stdio::null())
            .status();
        match done {
            Ok(status) if status.success() => {
                let _ = fs::remove_file(path.join(".lock"));
                Some(path)
            }
            _ => {
                eprintln!("SKIPPED: no swtpm_setup");
                None
            }
        }
    }

    #[test]
    fn dates() {
        assert_eq!(date(0), "1970-01-01 00:00");
        assert_eq!(date(951_782_399), "2000-02-28 23:59");
        assert_eq!(date(951_782_400), "2000-02-29 00:00");
        assert_eq!(date(1_795_872_960), "2026-11-28 13:36");
    }

    #[test]
    fn a_list_of_what_is_there() {
        let (_dir, config, uuid) = fixture();
        let none = HashMap::new();
        assert!(list(&config, &none).unwrap().is_empty());

        let path = config.state_dir.join(UUID);
        fs::create_dir(&path).unwrap();
        let mut file = vec![2, 1, 0, 10, 0, 1, 0, 0, 0, 100];
        file.resize(100, 0);
        fs::write(path.join("tpm2-00.permall"), &file).unwrap();
        fs::write(path.with_extension("saved"), "").unwrap();
        let used = Use {
            name: "web\x1b[2J".into(),
            domid: 7,
            host: "h".into(),
            ..Use::default()
        };
        Notes::note_use(&path, used).unwrap();
        // What is beside it, and what is half made, is no state.
        fs::create_dir(path.with_extension("new")).unwrap();

        let entries = list(&config, &none).unwrap();
        assert_eq!(entries.len(), 1);
        let entry = &entries[0];
        assert_eq!(entry.version.as_deref(), Some("2.0"));
        assert_eq!((entry.size, entry.saved), (100, true));
        assert_eq!((entry.key.as_str(), &entry.in_use), ("shared", &None));
        let table = table(&entries);
        assert!(table.contains("by web\u{fffd}[2J (7/0) on h"), "{table}");

        fs::write(path.with_extension("key"), r#"{"version":1,"key":"ab12"}"#).unwrap();
        let users = HashMap::from([(UUID.to_owned(), "7/0".to_owned())]);
        let of = |users| list(&config, users).unwrap().remove(0);
        assert_eq!(of(&users).in_use.as_deref(), Some("vtpm 7/0"));
        assert_eq!(of(&users).key, "ab12");
        file[5] = 0;
        fs::write(path.join("tpm2-00.permall"), &file).unwrap();
        assert_eq!(of(&none).key, "none");

        let lock = config.state(&uuid, None).unwrap().lock().unwrap();
        assert_eq!(of(&none).in_use.as_deref(), Some("locked"));
        assert!(remove(&config, &uuid).is_err(), "it is in use");
        drop(lock);
        remove(&config, &uuid).unwrap();
        assert!(list(&config, &none).unwrap().is_empty());
        for ending in ["saved", "info", "key"] {
            assert!(!path.with_extension(ending).exists(), "{ending}");
        }
        assert!(matches!(remove(&config, &uuid), Err(Error::NoState(_))));
    }

    #[test]
    fn nothing_is_done_without_a_yes() {
        confirm("?", true).unwrap();
        if !io::stdin().is_terminal() {
            assert!(confirm("?", false).is_err());
        }
    }

    #[test]
    fn endorsement_keys_of_a_state_in_use() {
        let (_dir, config, uuid) = fixture();
        let Some(path) = made(&config, &uuid) else {
            return;
        };
        let before = fs::read(path.join("tpm2-00.permall")).unwrap();
        let _lock = config.state(&uuid, None).unwrap().lock().unwrap();
        let text = info(&config, &uuid, &HashMap::new()).unwrap();
        assert_eq!(
            text.matches("-----BEGIN PUBLIC KEY-----").count(),
            2,
            "{text}"
        );
        assert!(text.contains("EK (RSA, 0x81010001)"), "{text}");
        // Looked at as a copy, which is gone.
        assert_eq!(fs::read(path.join("tpm2-00.permall")).unwrap(), before);
        assert_eq!(fs::read_dir(&config.run_dir).unwrap().count(), 0);
    }

    #[test]
    fn states_move_from_key_to_key() {
        let (dir, mut config, uuid) = fixture();
        let Some(path) = made(&config, &uuid) else {
            return;
        };
        let none = HashMap::new();
        let key_file = |name: &str, byte: &str| {
            let path = dir.path().join(name);
            fs::write(&path, byte.repeat(32)).unwrap();
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))
                .unwrap();
            path
        };
        let ek = |config: &Config| {
            let text = info(config, &uuid, &none).unwrap();
            text[text.find("EK (RSA").unwrap()..].to_owned()
        };
        let before = ek(&config);
        assert_eq!(rekey(&config, &uuid, None).unwrap(), Rekeyed::NothingToDo);

        let (first, second) = (key_file("first", "0a"), key_file("second", "0b"));
        config.policy.key_file = Some(first.clone());
        assert_eq!(rekey(&config, &uuid, None).unwrap(), Rekeyed::Done);
        assert_eq!(ek(&config), before, "it is the same TPM");
        let id = key::Master::read(&first).unwrap().id();
        assert_eq!(entry(&config, &uuid, &none).key, id);
        assert_eq!(rekey(&config, &uuid, None).unwrap(), Rekeyed::NothingToDo);

        // Another key, of which the old one is known, or not.
        config.policy.key_file = Some(second.clone());
        assert!(rekey(&config, &uuid, None).is_err());
        assert!(info(&config, &uuid, &none).is_err());
        rekey(&config, &uuid, Some(&first)).unwrap();
        assert_eq!(ek(&config), before);
        // As after a crash between the state and its mark.
        key::mark(Some(&first), &path).unwrap();
        assert!(info(&config, &uuid, &none).is_err());
        rekey(&config, &uuid, Some(&first)).unwrap();
        assert_eq!(ek(&config), before);

        config.policy.key_file = None;
        rekey(&config, &uuid, Some(&second)).unwrap();
        assert_eq!(
            (ek(&config), entry(&config, &uuid, &none).key),
            (before, "none".into())
        );
        assert_eq!(
            fs::read_dir(&path).unwrap().count(),
            1,
            "nothing is left there"
        );
        assert_eq!(fs::read_dir(&config.run_dir).unwrap().count(), 0);

        // As version 0.1.0 encrypted it: by the configured key itself.
        remove(&config, &uuid).unwrap();
        config.policy.key_file = Some(first.clone());
        made_with(&config, &uuid, Some(&first)).unwrap();
        assert_eq!(entry(&config, &uuid, &none).key, "shared");
        let before = ek(&config);
        assert_eq!(rekey(&config, &uuid, None).unwrap(), Rekeyed::Done);
        assert_eq!(
            (ek(&config), entry(&config, &uuid, &none).key),
            (before, id)
        );
    }

    #[test]
    fn a_lockout_is_cleared() {
        let (_dir, config, uuid) = fixture();
        let Some(path) = made(&config, &uuid) else {
            return;
        };
        let state = config.state(&uuid, None).unwrap();
        // TPMs that are cut off while something has a password that was used count that as a try.
        let counter = |session: &Session<'_>| {
            let text = session
                .tpm2("tpm2_getcap", &["properties-variable"])
                .unwrap();
            let text = String::from_utf8_lossy(&text).into_owned();
            let line = text
                .lines()
                .find(|line| line.contains("LOCKOUT_COUNTER"))
                .unwrap();
            line.rsplit(' ').next().unwrap().to_owned()
        };
        let place = copy(&config, &state).unwrap();
        let session = place.start(Version::Tpm2, None, Start::Up).unwrap();
        session
            .tpm2(
                "tpm2_nvdefine",
                &[
                    "0x1500001",
                    "-C",
                    "o",
                    "-s",
                    "8",
                    "-p",
                    "x",
                    "-a",
                    "authread|authwrite",
                ],
            )
            .unwrap();
        assert!(session
            .tpm2("tpm2_nvread", &["0x1500001", "-P", "wrong"])
            .is_err());
        assert_ne!(counter(&session), "0x0");
        session.tpm2("tpm2_shutdown", &["--clear"]).unwrap();
        session.end().unwrap();
        replace(&state, &place.take("tpm2-00.permall").unwrap()).unwrap();

        clear_lockout(&config, &uuid).unwrap();
        let place = copy(&config, &state).unwrap();
        let session = place.start(Version::Tpm2, None, Start::Up).unwrap();
        assert_eq!(counter(&session), "0x0");
        // The state is the one it was, and not another.
        session.tpm2("tpm2_nvreadpublic", &["0x1500001"]).unwrap();
        drop(session);
        assert_eq!(
            fs::read_dir(&path).unwrap().count(),
            1,
            "nothing is left there"
        );
        fs::write(path.with_extension("saved"), "").unwrap();
        assert!(matches!(
            clear_lockout(&config, &uuid),
            Err(Error::Saved(_))
        ));
    }
}
