// SPDX-License-Identifier: GPL-2.0

//! Which process is whose, for the next daemon: RUN_DIR/UUID.json, written by the launcher before swtpm
//! takes its place. It is believed only as far as the process itself bears it out.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{
    pidfd_getfd, pidfd_open, pidfd_send_signal, Pid, PidfdFlags, PidfdGetfdFlags, Signal,
};
use serde::{Deserialize, Serialize};

use crate::config::{Config, Uuid};
use crate::watch::wait_readable;

/// How long a process has to end after SIGTERM; then the same again after SIGKILL.
const END_LIMIT: Duration = Duration::from_secs(3);

/// The descriptors of an swtpm, by its own numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fds {
    /// The daemon's end of the control channel.
    pub control: RawFd,
    /// swtpm's own end of it.
    pub control_peer: RawFd,
    /// The daemon's end of the data channel.
    pub data: RawFd,
    /// The journal.
    pub journal: RawFd,
}

/// A note about a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its vTPM, "domid/devid".
    pub vtpm: String,
    /// "1.2" or "2.0".
    pub version: String,
    /// Its id.
    pub pid: i32,
    /// When it started, in the kernel's ticks: with `pid` this is one process and no other.
    pub start: u64,
    /// The user it runs as once it is swtpm.
    pub uid: u32,
    /// Where the next daemon finds what it needs.
    pub fds: Fds,
}

/// A process that a record is true of.
#[derive(Debug)]
pub struct Found {
    /// The record.
    pub record: Record,
    /// The process.
    pub pidfd: OwnedFd,
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

/// The real user id of a process.
fn real_uid(pid: i32) -> io::Result<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    let uid = line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok());
    uid.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn path(run_dir: &Path, uuid: &Uuid) -> PathBuf {
    run_dir.join(format!("{uuid}.json"))
}

impl Record {
    /// About this very process.
    pub fn of_self(vtpm: String, version: String, uid: u32, fds: Fds) -> io::Result<Self> {
        let pid = rustix::process::getpid().as_raw_nonzero().get();

        Ok(Self {
            vtpm,
            version,
            pid,
            start: stat_field(pid, 22)?,
            uid,
            fds,
        })
    }

    /// Writes it where the daemon looks for it, whole or not at all.
    pub fn write(&self, run_dir: &Path, uuid: &Uuid) -> io::Result<()> {
        let path = path(run_dir, uuid);
        let new = path.with_extension("new");
        let mut options = OpenOptions::new();

        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(run_dir)?;
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        fs::rename(new, path)
    }
}

impl Found {
    /// The process of a vTPM, if it still runs.
    pub fn find(config: &Config, uuid: &Uuid) -> io::Result<Option<Self>> {
        let text = match fs::read(path(&config.run_dir, uuid)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text?,
        };
        let record: Record = serde_json::from_slice(&text)?;
        let pid = Pid::from_raw(record.pid).ok_or(io::ErrorKind::InvalidData)?;
        let found = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Self { record, pidfd },
            Err(_) => return Ok(None),
        };
        // Looked at after the process is held: it is this one that has the number now.
        let same = stat_field(found.record.pid, 22).is_ok_and(|start| start == found.record.start);
        Ok((same && !found.has_ended()?).then_some(found))
    }

    /// All processes that there are records of.
    pub fn all(config: &Config) -> io::Result<Vec<(Uuid, Self)>> {
        let mut all = Vec::new();
        let entries = match fs::read_dir(&config.run_dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(all),
            entries => entries?,
        };

        for entry in entries {
            let name = entry?.file_name();
            let uuid = name.to_str().and_then(|name| name.strip_suffix(".json"));
            let Some(uuid) = uuid.and_then(|uuid| uuid.parse().ok()) else {
                continue;
            };
            match Self::find(config, &uuid) {
                Ok(Some(found)) => all.push((uuid, found)),
                Ok(None) => remove(config, &uuid),
                Err(e) => log::warn!("record of the process of vTPM {uuid}: {e}"),
            }
        }
        Ok(all)
    }

    /// Whether the process has got as far as being swtpm, under the user that the record names.
    pub fn is_under_way(&self) -> bool {
        real_uid(self.record.pid).is_ok_and(|uid| uid == self.record.uid)
    }

    /// A copy of one of its descriptors.
    pub fn descriptor(&self, fd: RawFd) -> io::Result<OwnedFd> {
        Ok(pidfd_getfd(&self.pidfd, fd, PidfdGetfdFlags::empty())?)
    }

    fn has_ended(&self) -> io::Result<bool> {
        wait_readable(&self.pidfd, Duration::ZERO)
    }
}

/// Ends processes, and waits for their ends. swtpm's state is safe at any moment.
pub fn end(config: &Config, processes: &[(Uuid, Found)]) -> io::Result<()> {
    for signal in [Signal::Term, Signal::Kill] {
        for (_, found) in processes {
            match pidfd_send_signal(&found.pidfd, signal) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => (),
                Err(e) => return Err(e.into()),
            }
        }
        let limit = Instant::now() + END_LIMIT;
        for (_, found) in processes {
            wait_readable(
                &found.pidfd,
                limit.saturating_duration_since(Instant::now()),
            )?;
        }
    }
    for (uuid, found) in processes {
        match found.has_ended()? {
            true => remove(config, uuid),
            false => {
                let text = format!("process {} of vTPM {uuid} does not end", found.record.pid);
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
        }
    }
    Ok(())
}

/// Removes a vTPM's record.
pub fn remove(config: &Config, uuid: &Uuid) {
    match fs::remove_file(path(&config.run_dir, uuid)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            log::warn!("record of the process of vTPM {uuid}: {e}");
        }
        _ => (),
    }
}
