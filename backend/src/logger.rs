// SPDX-License-Identifier: GPL-2.0

//! Log lines: to journald with the vTPM as fields where stderr is the journal, to stderr elsewhere. Control
//! characters are replaced in every line, and each level of what one vTPM can cause has a rate limit.

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use log::kv::Key;
use log::{Level, LevelFilter, Log, Metadata, Record};
use rustix::fs::fstat;

use crate::config::Uuid;
use crate::xenbus::Id;

/// How many lines of one level a process that serves one vTPM logs in each period.
const LINES: u32 = 10;
const PERIOD: Duration = Duration::from_secs(60);

/// The longest line. What a guest wrote is quoted in some.
const MAX_LINE: usize = 2000;

/// Where journald takes datagrams with fields; see systemd's JOURNAL_NATIVE_PROTOCOL.
const JOURNAL: &str = "/run/systemd/journal/socket";

/// The vTPM that all of this process is about, if it is a worker.
static VTPM: OnceLock<Id> = OnceLock::new();
static UUID: Mutex<Option<String>> = Mutex::new(None);

/// Logs to journald, or writes each record to stderr as one line.
struct Logger {
    journal: Option<UnixDatagram>,
    limits: Mutex<Limits>,
}

/// Logs from now on whatever is up to `level`.
pub fn init(level: LevelFilter) {
    let logger = Logger {
        journal: journal(),
        limits: Mutex::new(Limits::default()),
    };
    // It fails only if there is a logger already: then the level is all that changes.
    let _ = log::set_boxed_logger(Box::new(logger));
    log::set_max_level(level);
}

/// All lines of this process are about this vTPM, and are limited.
pub fn about(id: Id) {
    // The first call counts: a process never serves another one.
    let _ = VTPM.set(id);
}

/// The uuid of that vTPM, as soon as it is known.
pub fn about_uuid(uuid: &Uuid) {
    *UUID.lock().unwrap_or_else(PoisonError::into_inner) = Some(uuid.to_string());
}

/// A socket to journald, if it is what stderr goes to: sd-daemon(3) wants the variable compared with
/// stderr, since children inherit the one and not always the other.
fn journal() -> Option<UnixDatagram> {
    let stream = std::env::var("JOURNAL_STREAM").ok()?;
    if !is_stream(&stream, io::stderr()) {
        return None;
    }
    let socket = UnixDatagram::unbound().ok()?;
    socket.connect(JOURNAL).ok()?;
    // A journald that hangs holds up nobody.
    socket.set_nonblocking(true).ok()?;
    Some(socket)
}

/// Whether a descriptor is the one that a JOURNAL_STREAM is about.
fn is_stream(stream: &str, fd: impl AsFd) -> bool {
    fstat(fd).is_ok_and(|data| stream == format!("{}:{}", data.st_dev, data.st_ino))
}

/// The level as syslog(3) counts.
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// The text as one line: nobody whose words are quoted in it can start a line of their own, move the cursor
/// of who reads it, or make it endless.
fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if line.len() >= MAX_LINE {
            line.push_str("...");
            break;
        }
        // Beside the control characters those that turn the direction of text.
        match c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}') {
            true => line.push(char::REPLACEMENT_CHARACTER),
            false => line.push(c),
        }
    }
    line
}

/// Whom a record is about: what it says itself, or else this process's vTPM.
fn subject(record: &Record<'_>) -> (Option<String>, Option<String>) {
    let said = |key| {
        let value = record.key_values().get(Key::from_str(key));
        value.map(|value| one_line(&value.to_string()))
    };
    let vtpm = said("vtpm").or_else(|| VTPM.get().map(Id::to_string));
    let uuid = said("uuid").or_else(|| match said("vtpm") {
        // Another vTPM's line has not this one's uuid.
        Some(_) => None,
        None => UUID.lock().unwrap_or_else(PoisonError::into_inner).clone(),
    });

    (vtpm, uuid)
}

/// The datagram for journald.
fn datagram(level: Level, message: &str, vtpm: Option<&str>, uuid: Option<&str>) -> String {
    let mut fields = format!(
        "SYSLOG_IDENTIFIER=xen-vtpmd\nPRIORITY={}\n",
        priority(level)
    );
    for (name, value) in [("VTPM", vtpm), ("UUID", uuid)] {
        if let Some(value) = value {
            // It cannot fail: the text is in memory.
            let _ = writeln!(fields, "{name}={value}");
        }
    }
    let _ = writeln!(fields, "MESSAGE={message}");
    fields
}

impl Logger {
    fn emit(&self, level: Level, text: &str, vtpm: Option<&str>, uuid: Option<&str>) {
        let text = one_line(text);
        let message = match vtpm {
            Some(vtpm) => format!("vtpm {vtpm}: {text}"),
            None => text,
        };

        if let Some(journal) = &self.journal {
            let sent = journal.send(datagram(level, &message, vtpm, uuid).as_bytes());
            match sent {
                // Its buffer is full: the line is lost, and nobody waits.
                Err(e) if e.kind() != io::ErrorKind::WouldBlock => (),
                _ => return,
            }
        }
        let line = match std::env::var_os("JOURNAL_STREAM") {
            Some(_) if self.journal.is_some() => format!("<{}>{message}\n", priority(level)),
            _ => {
                let level = level.as_str().to_ascii_lowercase();
                format!("xen-vtpmd: {level}: {message}\n")
            }
        };
        // One write, so that no other process's line gets between. Nobody is left to tell if it fails.
        let _ = io::stderr().write_all(line.as_bytes());
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let level = record.level();
        let (vtpm, uuid) = subject(record);
        if VTPM.get().is_some() {
            let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
            let verdict = limits.judge(level, Instant::now());
            drop(limits);
            match verdict {
                Verdict::Log => (),
                Verdict::LogAfter(dropped) => {
                    let text = format!("{dropped} lines of this level were left out");
                    self.emit(level, &text, vtpm.as_deref(), uuid.as_deref());
                }
                Verdict::Drop => return,
            }
        }
        let text = record.args().to_string();
        self.emit(level, &text, vtpm.as_deref(), uuid.as_deref());
    }

    fn flush(&self) {}
}

/// What becomes of a line.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Log,
    /// It is logged, after one that says how many were not.
    LogAfter(u64),
    Drop,
}

/// A budget for each level, so that no flood of one hides a line of another.
#[derive(Debug, Default)]
struct Limits([Budget; 5]);

#[derive(Debug, Default)]
struct Budget {
    since: Option<Instant>,
    lines: u32,
    dropped: u64,
}

impl Limits {
    fn judge(&mut self, level: Level, now: Instant) -> Verdict {
        // Levels count from 1, the error, to 5.
        let limit = &mut self.0[level as usize - 1];
        let mut verdict = Verdict::Log;

        if limit.since.is_none_or(|since| now - since >= PERIOD) {
            if limit.dropped > 0 {
                verdict = Verdict::LogAfter(limit.dropped);
            }
            *limit = Budget {
                since: Some(now),
                ..Budget::default()
            };
        }
        limit.lines += 1;
        if limit.lines > LINES {
            limit.dropped += 1;
            return Verdict::Drop;
        }
        verdict
    }
}

/// Shows text of whatever origin to a person, on one line.
pub struct Plain<'a>(pub &'a str);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&one_line(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_level_has_a_budget_of_its_own() {
        let (mut limits, start) = (Limits::default(), Instant::now());
        let mut logged = |level, after| {
            let verdicts = (0..1000).map(|_| limits.judge(level, start + after));
            verdicts.filter(|verdict| *verdict != Verdict::Drop).count()
        };

        assert_eq!(logged(Level::Info, Duration::ZERO), 10);
        assert_eq!(logged(Level::Info, PERIOD / 2), 0);
        // A flood of one hides no line of another.
        assert_eq!(logged(Level::Error, PERIOD / 2), 10);
        assert_eq!(logged(Level::Info, PERIOD), 10);
        let verdict = limits.judge(Level::Info, start + 2 * PERIOD);
        assert_eq!(verdict, Verdict::LogAfter(990));
    }

    #[test]
    fn nobody_forges_a_line() {
        let forged = one_line("a\n<0>xen-vtpmd: forged\x1b[2J\u{202e}b\u{85}c");
        assert_eq!(
            forged,
            "a\u{fffd}<0>xen-vtpmd: forged\u{fffd}[2J\u{fffd}b\u{fffd}c"
        );
        let long = one_line(&"\u{1}".repeat(100_000));
        assert!(long.len() <= MAX_LINE + 6, "{}", long.len());
    }

    #[test]
    fn the_journal_is_what_stderr_is() {
        let (ours, other) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let data = fstat(&ours).unwrap();
        let stream = format!("{}:{}", data.st_dev, data.st_ino);
        assert!(is_stream(&stream, &ours));
        // Finding 27: it was enough that the variable was there.
        assert!(!is_stream(&stream, &other));
        assert!(!is_stream("", &ours) && !is_stream("8:x", &ours));
    }

    #[test]
    fn fields_of_the_journal() {
        let text = datagram(Level::Warn, "vtpm 3/0: slow", Some("3/0"), Some("u"));
        let lines: Vec<_> = text.lines().collect();
        let wanted = [
            "SYSLOG_IDENTIFIER=xen-vtpmd",
            "PRIORITY=4",
            "VTPM=3/0",
            "UUID=u",
            "MESSAGE=vtpm 3/0: slow",
        ];
        assert_eq!(lines, wanted);
    }

    #[test]
    fn a_record_says_whom_it_is_about() {
        let id = Id { domid: 7, devid: 1 };
        let values = [("vtpm", log::kv::Value::from_display(&id))];
        let record = Record::builder().key_values(&values).build();
        assert_eq!(subject(&record).0.as_deref(), Some("7/1"));
        assert_eq!(subject(&Record::builder().build()), (None, None));
    }
}
