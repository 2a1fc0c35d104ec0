// SPDX-License-Identifier: GPL-2.0

//! Rate limits for what a backend can put into the kernel log: the driver's own messages are left
//! out, and the TPM core's, which cannot be, are slowed down.

use crate::{
    protocol::backoff::throttle,
    xen::{
        bus,
        completion::now, //
    },
};
use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
    time::{
        msecs_to_jiffies,
        Jiffies, //
    },
};

/// The shortest time between two messages of a kind.
const RATELIMIT_INTERVAL_MS: u32 = 10_000;

/// The shortest time between two of many failed commands.
const THROTTLE_INTERVAL_MS: u32 = 1_000;

/// The rate limit of one kind of message.
pub(crate) struct RateLimit {
    /// When the last message was, with its lowest bit set; 0 if there was none.
    last: Atomic<Jiffies>,
}

impl RateLimit {
    /// There was no message yet.
    pub(crate) const fn new() -> Self {
        Self {
            last: Atomic::new(0),
        }
    }

    /// Whether a message may be logged now, which the caller then does.
    #[inline(never)]
    pub(crate) fn check(&self) -> bool {
        let now = now() | 1;
        let last = self.last.load(Relaxed);

        if last != 0 && now.wrapping_sub(last) < msecs_to_jiffies(RATELIMIT_INTERVAL_MS) {
            return false;
        }
        self.last.store(now, Relaxed);
        true
    }

    /// Logs a warning, unless there was one of the kind a moment ago.
    #[cold]
    #[inline(never)]
    pub(crate) fn warn(&self, dev: &bus::Device, text: &str) {
        if self.check() {
            dev_warn!(dev, "{}\n", text);
        }
    }
}

/// Counts commands whose failure the TPM core logs, each with a line.
pub(crate) struct Throttle {
    /// When the failures so far are made up for.
    level: Atomic<Jiffies>,
}

impl Throttle {
    /// No command failed yet.
    pub(crate) fn new() -> Self {
        Self {
            level: Atomic::new(now()),
        }
    }

    /// A command failed. Returns whether too many did, so that it has to wait for
    /// [`THROTTLE_INTERVAL_MS`]. The TPM core has one command at a time.
    pub(crate) fn failed(&self) -> bool {
        let interval = msecs_to_jiffies(THROTTLE_INTERVAL_MS);
        let (level, wait) = throttle(self.level.load(Relaxed), now(), interval);

        self.level.store(level, Relaxed);
        wait
    }
}
