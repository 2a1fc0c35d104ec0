// SPDX-License-Identifier: GPL-2.0

//! Counters of one device, which debugfs shows: `Documentation/xen-tpmfront.rst` describes them.

use crate::protocol::command::Failure;
use kernel::{
    fmt,
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};

macro_rules! counters {
    ($($(#[$attr:meta])* $variant:ident $name:literal,)*) => {
        /// What is counted.
        #[derive(Clone, Copy)]
        pub(crate) enum Counter {
            $($(#[$attr])* $variant,)*
        }

        const NAMES: &[&str] = &[$($name),*];
    };
}

counters! {
    /// Commands that the TPM core gave to the driver: the sum of those below.
    Commands "commands",
    /// The TPM responded.
    Completed "completed",
    /// Not sent: too short or too long.
    Malformed "malformed",
    /// No connection.
    NoBackend "no_backend",
    /// Not sent: a signal came first.
    Restarted "restarted",
    /// Cancelled, or abandoned by the backend.
    Cancelled "cancelled",
    /// Timed out.
    TimedOut "timed_out",
    /// Its process was killed.
    Interrupted "interrupted",
    /// No TPM responds like that.
    BadResponses "bad_responses",
    /// Bytes of all commands.
    RequestBytes "request_bytes",
    /// Bytes of all responses.
    ResponseBytes "response_bytes",
    /// How often the backend neither responded to a command nor to its cancel.
    Wedges "wedges",
    /// Connections.
    Connections "connections",
    /// Events for which there was no reason.
    SpuriousEvents "spurious_events",
}

/// The counters. They go on from one connection to the next.
pub(crate) struct Counters([Atomic<u64>; NAMES.len()]);

impl Counters {
    /// Nothing has happened.
    pub(crate) const fn new() -> Self {
        Self([const { Atomic::new(0) }; NAMES.len()])
    }

    /// Counts `n` more. Relaxed: sums over several counters are approximate.
    pub(crate) fn add(&self, counter: Counter, n: usize) {
        // CAST: An index; and `usize` has 64 bits.
        self.0[counter as usize].add(n as u64, Relaxed);
    }

    /// Counts a command of `length` bytes.
    pub(crate) fn command(&self, length: usize, result: &Result<usize, Failure>) {
        self.add(Counter::Commands, 1);
        self.add(Counter::RequestBytes, length);
        if let Ok(length) = result {
            self.add(Counter::ResponseBytes, *length);
        }
        let end = match result {
            Ok(_) => Counter::Completed,
            Err(Failure::Request(_)) => Counter::Malformed,
            Err(Failure::NoBackend) => Counter::NoBackend,
            Err(Failure::Restart) => Counter::Restarted,
            Err(Failure::Cancelled) => Counter::Cancelled,
            Err(Failure::TimedOut) => Counter::TimedOut,
            Err(Failure::Interrupted) => Counter::Interrupted,
            Err(Failure::Response(_)) => Counter::BadResponses,
        };
        self.add(end, 1);
    }

    /// Shows a name and a number a line.
    pub(crate) fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, counter) in NAMES.iter().zip(&self.0) {
            writeln!(f, "{name} {}", counter.load(Relaxed))?;
        }
        Ok(())
    }
}
