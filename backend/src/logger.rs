// SPDX-License-Identifier: GPL-2.0

//! Log lines on stderr, and a limit for those that a guest can cause.

use std::fmt;
use std::io::Write;
use std::time::{Duration, Instant};

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::xenbus::Id;

/// So many lines a guest can cause in so long.
const LINES: u32 = 10;
const PERIOD: Duration = Duration::from_secs(60);

/// Writes each record as one line. The time is left to whoever reads stderr.
struct Stderr {
    /// Whether that is journald, which takes the level from the line's start.
    journal: bool,
}

/// How sd-daemon(3) marks a level.
fn priority(level: Level) -> &'static str {
    match level {
        Level::Error => "<3>",
        Level::Warn => "<4>",
        Level::Info => "<6>",
        Level::Debug | Level::Trace => "<7>",
    }
}

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let line = if self.journal {
                format!("{}{}\n", priority(record.level()), record.args())
            } else {
                let level = record.level().as_str().to_ascii_lowercase();
                format!("xen-vtpmd: {level}: {}\n", record.args())
            };
            // One write, so that no child's line gets between. Nobody is left to tell if it fails.
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

/// From now on, everything up to `level` is logged.
pub fn init(level: LevelFilter) {
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    // It fails only if there is a logger already, which is as good.
    let _ = log::set_boxed_logger(Box::new(Stderr { journal }));
    log::set_max_level(level);
}

/// Lines that one guest can cause, as often as it likes: the most of them are left out.
#[derive(Debug, Default)]
pub struct Limited {
    since: Option<Instant>,
    lines: u32,
    left_out: u64,
}

impl Limited {
    /// Logs a line about a vTPM, unless there were too many.
    pub fn log(&mut self, level: Level, id: Id, line: fmt::Arguments<'_>) {
        if level <= log::max_level() && self.admits(Instant::now(), id) {
            log::log!(level, "vtpm {id}: {line}");
        }
    }

    fn admits(&mut self, now: Instant, id: Id) -> bool {
        if self.since.is_none_or(|since| now - since >= PERIOD) {
            if self.left_out > 0 {
                log::warn!(
                    "vtpm {id}: {} lines like these were left out",
                    self.left_out
                );
            }
            *self = Self {
                since: Some(now),
                ..Self::default()
            };
        }
        self.lines += 1;
        self.left_out += u64::from(self.lines > LINES);
        self.lines <= LINES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: Id = Id { domid: 1, devid: 0 };

    #[test]
    fn a_few_lines_in_each_period() {
        let (mut limited, start) = (Limited::default(), Instant::now());
        let mut admitted = |after| {
            let tries = (0..1000).map(|_| limited.admits(start + after, ID));
            tries.filter(|admitted| *admitted).count()
        };

        assert_eq!(admitted(Duration::ZERO), 10);
        assert_eq!(admitted(PERIOD / 2), 0);
        assert_eq!(admitted(PERIOD), 10);
        assert_eq!(limited.left_out, 990);
    }
}
