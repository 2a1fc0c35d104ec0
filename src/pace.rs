// SPDX-License-Identifier: GPL-2.0

//! How often a message may be: the backend decides how often there is a reason for it, and must
//! not be able to fill the kernel's log.

use crate::xen::event::News;
use kernel::{
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
    time::{
        msecs_to_jiffies,
        Jiffies, //
    },
};

/// The least time between two messages of a kind.
const PAUSE_MS: u32 = 10_000;

/// One kind of message.
pub(crate) struct Pace {
    last: Atomic<Jiffies>,
    any: Atomic<bool>,
}

impl Pace {
    /// There was none yet.
    pub(crate) const fn new() -> Self {
        Self {
            last: Atomic::new(0),
            any: Atomic::new(false),
        }
    }

    /// Whether it is time for another one, which the caller then makes.
    pub(crate) fn allows(&self) -> bool {
        let now = News::now();
        let pause = now.wrapping_sub(self.last.load(Relaxed));
        let allows = !self.any.load(Relaxed) || pause >= msecs_to_jiffies(PAUSE_MS);

        if allows {
            self.last.store(now, Relaxed);
            self.any.store(true, Relaxed);
        }
        allows
    }
}
