// SPDX-License-Identifier: GPL-2.0

//! What `xen-vtpmd status` shows: as the daemon sends it, and as a table.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::counters::Counters;
use crate::events::Event;
use crate::logger::Plain;

/// All there is to know. Fields that another version has or lacks do no harm.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// The daemon's process id.
    pub pid: u32,
    /// The daemon's version.
    pub version: String,
    /// The processor time that the daemon has used, for whatever, in microseconds.
    pub used_us: f64,
    /// Which cgroup limits workers have, or why they have none.
    pub cgroup: String,
    /// What happened to all vTPMs since the manager's start.
    pub totals: Totals,
    /// Each vTPM, by domain and number.
    pub vtpms: Vec<Vtpm>,
}

/// What happened since the manager's start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Workers that were started.
    pub worker_starts: u64,
    /// Workers that ended although they should not.
    pub worker_restarts: u64,
    /// TPMs that came up.
    pub starts: u64,
    /// How long that took all of them together, in microseconds.
    pub start_us: u64,
    /// Those of them that went on where they stopped when their guests were saved.
    pub restores: u64,
    /// TPMs that did not come up.
    pub failures: u64,
    /// TPMs that ended under a running guest.
    pub lost: u64,
    /// Connections that were turned down.
    pub refused: u64,
    /// TPMs whose guests were to be measured, and were not.
    pub unmeasured: u64,
    /// TPMs whose guests boot a kernel that is not allowed.
    pub not_allowed: u64,
    /// TPMs that were saved with their guests.
    pub saves: u64,
}

impl Totals {
    /// Counts an event.
    pub fn count(&mut self, event: &Event) {
        match event {
            Event::Started { us, restored, .. } => {
                self.starts += 1;
                self.start_us = self.start_us.saturating_add(*us);
                self.restores += u64::from(*restored);
            }
            Event::Failed { .. } => self.failures += 1,
            Event::Lost { .. } => self.lost += 1,
            Event::Refused { .. } => self.refused += 1,
            Event::Unmeasured { .. } => self.unmeasured += 1,
            Event::NotAllowed { .. } => self.not_allowed += 1,
            Event::Saved { .. } => self.saves += 1,
        }
    }
}

/// One vTPM, as its worker reports it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Vtpm {
    /// The guest's domain.
    pub domid: u16,
    /// The number of the device there.
    pub devid: u32,
    /// Whose state it has, if that is known yet.
    pub uuid: Option<String>,
    /// Which TPM it is, if it runs.
    pub version: Option<String>,
    /// How far it has come.
    pub state: String,
    /// swtpm's process id.
    pub pid: Option<u32>,
    /// Commands that were taken.
    pub commands: u64,
    /// Commands that the guest cancelled.
    pub cancels: u64,
    /// Requests that were turned down.
    pub refused: u64,
    /// Events that brought nothing.
    pub spurious: u64,
    /// TPMs that ended although they should not.
    pub deaths: u64,
    /// Connections to the guest after the first.
    pub reconnects: u64,
    /// Bytes of commands.
    pub bytes_in: u64,
    /// Bytes of answers.
    pub bytes_out: u64,
    /// The commands that were timed: one of 16.
    pub timed: u64,
    /// How long they took together, in microseconds.
    pub timed_us: f64,
    /// Their median, from the guest's event to its answer, in microseconds.
    pub median_us: Option<f64>,
    /// How many of them took less than 2^n microseconds, and not less than the one before.
    pub latency: Vec<u64>,
    /// The processor time that the worker and its I/O process have used, for whatever, in microseconds.
    pub own_us: f64,
    /// What this kernel lacks of the sandbox.
    pub sandbox_lacks: Vec<String>,
    /// The processor time that this swtpm process has used, for whatever, in microseconds; if the kernel
    /// says.
    pub swtpm_used_us: Option<f64>,
    /// Workers of this vTPM that ended although they should not; the manager knows that.
    pub worker_restarts: u64,
    /// What went wrong last.
    pub last_error: Option<LastError>,
}

/// Something that went wrong.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LastError {
    /// When, in seconds since 1970.
    pub time: u64,
    /// What.
    pub text: String,
}

impl LastError {
    /// It happened now.
    pub fn now(text: String) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            time: since.map_or(0, |since| since.as_secs()),
            text,
        }
    }
}

impl Vtpm {
    /// Takes the counters over.
    pub fn count(self, counters: &Counters) -> Self {
        Self {
            commands: counters.commands,
            cancels: counters.cancels,
            refused: counters.refused,
            spurious: counters.spurious,
            deaths: counters.deaths,
            reconnects: counters.connections.saturating_sub(1),
            bytes_in: counters.bytes_in,
            bytes_out: counters.bytes_out,
            timed: counters.latency.total(),
            timed_us: counters.timed_us as f64,
            median_us: counters
                .latency
                .median()
                .map(|time| time.as_secs_f64() * 1e6),
            latency: counters.latency.buckets().to_vec(),
            ..self
        }
    }
}

impl Report {
    /// For people.
    pub fn table(&self) -> String {
        let now = LastError::now(String::new()).time;
        let mut table = format!(
            "{:>6} {:>5} {:36} {:7} {:10} {:>9} {:>9} {:>7} {}\n",
            "DOMAIN",
            "DEVID",
            "UUID",
            "VERSION",
            "STATE",
            "COMMANDS",
            "MEDIAN",
            "CANCELS",
            "LAST ERROR"
        );
        for vtpm in &self.vtpms {
            let or_dash = |value: &Option<String>| value.clone().unwrap_or("-".to_owned());
            let median = vtpm.median_us.map(|us| format!("{us:.0} us"));
            let error = vtpm.last_error.as_ref().map(|error| {
                let ago = now.saturating_sub(error.time);
                // It may quote what a guest wrote.
                format!("{} s ago: {}", ago, Plain(&error.text))
            });
            let _ = writeln!(
                table,
                "{:>6} {:>5} {:36} {:7} {:10} {:>9} {:>9} {:>7} {}",
                vtpm.domid,
                vtpm.devid,
                or_dash(&vtpm.uuid),
                or_dash(&vtpm.version),
                vtpm.state,
                vtpm.commands,
                or_dash(&median),
                vtpm.cancels,
                or_dash(&error)
            );
        }
        let lacks = self.vtpms.iter().flat_map(|vtpm| &vtpm.sandbox_lacks);
        let lacks: BTreeSet<_> = lacks.map(String::as_str).collect();
        if !lacks.is_empty() {
            let lacks = lacks.into_iter().collect::<Vec<_>>().join(", ");
            let _ = writeln!(table, "the sandbox lacks {}", Plain(&lacks));
        }
        if self.cgroup.starts_with("no ") {
            let _ = writeln!(table, "{}", Plain(&self.cgroup));
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table() {
        let mut counters = Counters::default();
        counters
            .latency
            .count(std::time::Duration::from_micros(300));
        let report = Report {
            vtpms: vec![
                Vtpm {
                    domid: 12,
                    state: "connected".to_owned(),
                    version: Some("2.0".to_owned()),
                    last_error: Some(LastError::now("a\x1b[2J".to_owned())),
                    ..Vtpm::default()
                }
                .count(&counters),
                Vtpm {
                    sandbox_lacks: vec!["landlock".to_owned()],
                    ..Vtpm::default()
                },
            ],
            cgroup: "no cgroup limits: none here".to_owned(),
            ..Report::default()
        };
        let table = report.table();
        let lines: Vec<Vec<_>> = table
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();

        assert_eq!(lines.len(), 5, "{table}");
        assert!(
            table.ends_with("the sandbox lacks landlock\nno cgroup limits: none here\n"),
            "{table}"
        );
        assert_eq!(lines[1][..4], ["12", "0", "-", "2.0"], "{table}");
        assert_eq!(lines[1][6], "384", "{table}");
        assert!(table.contains("s ago: a\u{fffd}[2J"), "{table}");
        assert_eq!(lines[2].last(), Some(&"-"));
    }
}
