// SPDX-License-Identifier: GPL-2.0

//! The states that are there: whose, how large, since when, by which key, and whether they are in use.

use std::collections::BTreeMap;

use super::*;
use crate::migrate::mark::Mark;

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
    /// What a migration says of it: where there is something, it does not start by itself.
    pub migration: Option<String>,
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
    let mut uuids = BTreeMap::new();
    let names = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        names => names.map_err(at(dir))?,
    };
    for name in names {
        let name = name.map_err(at(dir))?.file_name();
        let name = name.to_str().unwrap_or_default();
        // A mark without a state: one that is expected, or has moved away.
        let name = name.strip_suffix(".migration").unwrap_or(name);
        if let Ok(uuid) = name.parse::<Uuid>() {
            uuids.insert(uuid.to_string(), uuid);
        }
    }
    let entries = uuids.values().map(|uuid| entry(config, uuid, users));
    Ok(entries.collect())
}

/// What is known of one.
pub fn entry(config: &Config, uuid: &Uuid, users: &HashMap<String, String>) -> Entry {
    let path = config.state_path(uuid);
    let mut problems = Vec::new();
    let version = version_of_state(&path).unwrap_or_else(|e| {
        problems.push(e.to_string());
        None
    });
    let migration = match Mark::read(&path) {
        Ok(mark) => mark.map(|mark| mark.summary()),
        Err(e) => {
            problems.push(format!("UUID.migration: {e}"));
            None
        }
    };
    let only_marked = migration.is_some() && !path.exists();
    if version.is_none() && problems.is_empty() && !only_marked {
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
        migration,
        problem: (!problems.is_empty()).then(|| problems.join("; ")),
    }
}

/// The size of the files in a directory, and the last change of one.
pub(super) fn size(path: &Path) -> (u64, u64) {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let data = entries.filter_map(|entry| entry.metadata().ok());
    data.fold((0, 0), |(size, changed), data| {
        let time = u64::try_from(data.mtime()).unwrap_or(0);
        (size + data.len(), changed.max(time))
    })
}

/// Whether somebody has a state's lock, on whatever host. Looking keeps it for a moment, in which others wait.
pub(super) fn is_locked(path: &Path) -> bool {
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
pub(super) fn is_encrypted(path: &Path, version: Version) -> io::Result<bool> {
    pub(super) const ENCRYPTED: u8 = 1;
    let mut header = [0; 10];
    let file = path.join(version.state_file());
    File::open(file)?.read_exact(&mut header)?;
    Ok(header[5] & ENCRYPTED != 0)
}

/// The key of a state, by swtpm's header and the mark beside it.
pub fn key_of(path: &Path, version: Version) -> String {
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
        if let Some(migration) = &entry.migration {
            let _ = write!(table, "; {}", Plain(migration));
        }
        if let Some(problem) = &entry.problem {
            let _ = write!(table, "; {}", Plain(problem));
        }
        table.push('\n');
    }
    table
}

/// A time in seconds since 1970 as date and time, UTC.
pub(super) fn date(time: u64) -> String {
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
