// SPDX-License-Identifier: GPL-2.0

//! What happened on a device, counted. debugfs shows it: `Documentation/xen-tpmfront.rst` has the
//! files.

use crate::protocol::exchange::Failure;
use core::mem;
use kernel::{
    fmt,
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
    time::{
        Delta,
        Instant,
        Monotonic, //
    },
};

/// So many events in a row that nobody waited for are a storm.
const STORM: u64 = 64;

/// One of so many commands is timed: a look at the clock is a trap where Xen emulates the TSC.
const TIMED: u64 = 16;

/// The histogram's last span begins at 2^25 us, which is half a minute.
const SPANS: usize = 27;

/// Something counted. Not ordered against anything: a sum over several may be off by those that
/// are being counted.
struct Counter(Atomic<u64>);

impl Counter {
    const fn zero() -> Self {
        Self(Atomic::new(0))
    }

    fn add(&self, n: u64) {
        self.0.add(n, Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// The counters of one device. They go on from one connection to the next.
pub(crate) struct Counters {
    commands: Counter,
    /// Of all commands, whatever became of them.
    request_bytes: Counter,
    answer_bytes: Counter,
    answered: Counter,
    malformed: Counter,
    no_backend: Counter,
    cancelled: Counter,
    timed_out: Counter,
    killed: Counter,
    bad_answers: Counter,
    refused_wedged: Counter,
    wedges: Counter,
    connections: Counter,
    spurious_events: Counter,
    storms: Counter,
    /// Spurious events since the last one that was waited for.
    in_a_row: Atomic<u64>,
    /// How long answered commands took that were timed: under a microsecond, under 2, under 4 and
    /// so on.
    latency: [Counter; SPANS],
}

impl Counters {
    /// Nothing has happened.
    pub(crate) const fn new() -> Self {
        Self {
            commands: Counter::zero(),
            request_bytes: Counter::zero(),
            answer_bytes: Counter::zero(),
            answered: Counter::zero(),
            malformed: Counter::zero(),
            no_backend: Counter::zero(),
            cancelled: Counter::zero(),
            timed_out: Counter::zero(),
            killed: Counter::zero(),
            bad_answers: Counter::zero(),
            refused_wedged: Counter::zero(),
            wedges: Counter::zero(),
            connections: Counter::zero(),
            spurious_events: Counter::zero(),
            storms: Counter::zero(),
            in_a_row: Atomic::new(0),
            latency: [const { Counter::zero() }; SPANS],
        }
    }

    /// A command begins. Returns the time, if this one is timed.
    pub(crate) fn begin(&self) -> Option<Instant<Monotonic>> {
        (self.commands.get() % TIMED == 0).then(Instant::now)
    }

    /// A command of `length` bytes that began at `start` has ended.
    pub(crate) fn command(
        &self,
        length: usize,
        start: Option<Instant<Monotonic>>,
        result: &Result<usize, Failure>,
    ) {
        self.commands.add(1);
        // CAST: `usize` has 64 bits.
        self.request_bytes.add(length as u64);
        match result {
            Ok(length) => {
                self.answered.add(1);
                // CAST: As above.
                self.answer_bytes.add(*length as u64);
                if let Some(start) = start {
                    self.latency[span(start.elapsed())].add(1);
                }
            }
            Err(Failure::Request(_)) => self.malformed.add(1),
            Err(Failure::NoBackend) => self.no_backend.add(1),
            Err(Failure::Cancelled) => self.cancelled.add(1),
            Err(Failure::TimedOut) => self.timed_out.add(1),
            Err(Failure::Killed) => self.killed.add(1),
            Err(Failure::Answer(_)) => self.bad_answers.add(1),
            Err(Failure::Wedged) => self.refused_wedged.add(1),
        }
    }

    /// The backend let go of a page neither for an answer nor for a cancelled command.
    pub(crate) fn wedged(&self) {
        self.wedges.add(1);
    }

    /// There is a connection. Returns whether there was one before.
    pub(crate) fn connected(&self) -> bool {
        self.connections.add(1);
        self.connections.get() > 1
    }

    /// The backend notified, and somebody had waited for that, or not. For the one handler only.
    pub(crate) fn event(&self, expected: bool) {
        if expected {
            self.in_a_row.store(0, Relaxed);
            return;
        }

        let in_a_row = self.in_a_row.load(Relaxed) + 1;
        self.in_a_row.store(in_a_row, Relaxed);
        self.spurious_events.add(1);
        if in_a_row == STORM {
            self.storms.add(1);
        }
    }

    /// All but the histogram, a line each.
    pub(crate) fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, counter) in [
            ("commands", &self.commands),
            ("answered", &self.answered),
            ("malformed", &self.malformed),
            ("no_backend", &self.no_backend),
            ("cancelled", &self.cancelled),
            ("timed_out", &self.timed_out),
            ("killed", &self.killed),
            ("bad_answers", &self.bad_answers),
            ("refused_wedged", &self.refused_wedged),
            ("request_bytes", &self.request_bytes),
            ("answer_bytes", &self.answer_bytes),
            ("wedges", &self.wedges),
            ("connections", &self.connections),
            ("spurious_events", &self.spurious_events),
            ("storms", &self.storms),
        ] {
            writeln!(f, "{name} {}", counter.get())?;
        }
        Ok(())
    }

    /// The histogram, without the spans that nothing fell into.
    pub(crate) fn show_latency(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, counter) in self.latency.iter().enumerate() {
            let count = counter.get();

            if count != 0 && i + 1 < SPANS {
                writeln!(f, "under {} us: {count}", 1u64 << i)?;
            } else if count != 0 {
                writeln!(f, "longer: {count}")?;
            }
        }
        Ok(())
    }
}

/// The place in the histogram of a command that took so long.
fn span(took: Delta) -> usize {
    // The clock does not go back.
    let us = took.as_micros_ceil().unsigned_abs();
    let bits = mem::size_of_val(&us) * 8 - us.leading_zeros() as usize;

    bits.min(SPANS - 1)
}
