// SPDX-License-Identifier: GPL-2.0

//! Log lines on stderr.

use std::io::Write;

use log::{LevelFilter, Log, Metadata, Record};

/// Writes each record as one line. The time is left to whoever reads stderr.
struct Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let level = record.level().as_str().to_ascii_lowercase();
            // One write, so that no child's line gets between. Nobody is left to tell if it fails.
            let line = format!("xen-vtpmd: {level}: {}\n", record.args());
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

/// From now on, everything up to `level` is logged.
pub fn init(level: LevelFilter) {
    // It fails only if there is a logger already, which is as good.
    let _ = log::set_logger(&Stderr);
    log::set_max_level(level);
}
