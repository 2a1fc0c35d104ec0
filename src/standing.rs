// SPDX-License-Identifier: GPL-2.0

//! Where the connection stands, for all who ask, and the wait for a backend that has an offer.

use crate::protocol::{
    exchange::Failure,
    stage::{
        Event,
        Stage, //
    },
};
use kernel::{
    fmt, new_condvar, new_mutex,
    prelude::*,
    sync::{
        CondVar,
        CondVarTimeoutResult,
        Mutex, //
    },
    time::{
        msecs_to_jiffies,
        Delta,
        Instant,
        Monotonic, //
    },
};

/// How long after an offer a command waits for the backend to take it, before it fails.
const OFFER_WAIT: Delta = Delta::from_millis(10_000);

/// A stage, and since when it is that.
struct Since {
    stage: Stage,
    /// Whether an offer is worth waiting for.
    patient: bool,
    /// How often those who wait for it were told to give up.
    cancels: usize,
    start: Instant<Monotonic>,
}

/// Where the connection stands. Its lock is held for moments only, so that whoever asks need not
/// wait for a command.
#[pin_data]
pub(crate) struct Standing {
    #[pin]
    now: Mutex<Since>,
    /// The stage is another one.
    #[pin]
    moved: CondVar,
}

impl Standing {
    /// There is no connection yet.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            now <- new_mutex!(Since {
                stage: Stage::Down,
                patient: true,
                cancels: 0,
                start: Instant::now(),
            }),
            moved <- new_condvar!(),
        })
    }

    /// The stage. It may have changed by now.
    pub(crate) fn stage(&self) -> Stage {
        self.now.lock().stage
    }

    /// Moves the connection on, if the event is one for its stage.
    pub(crate) fn advance(&self, event: Event) -> bool {
        let mut now = self.now.lock();
        let Some(stage) = now.stage.after(event) else {
            return false;
        };

        if stage != now.stage {
            now.stage = stage;
            now.start = Instant::now();
            self.moved.notify_all();
        }
        true
    }

    /// From now on nobody waits for a backend.
    pub(crate) fn hurry(&self) {
        self.now.lock().patient = false;
        self.moved.notify_all();
    }

    /// The stage, and for how long it is that.
    pub(crate) fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let now = self.now.lock();
        let ms = now.start.elapsed().as_millis();

        writeln!(f, "{:?} for {ms} ms", now.stage)
    }

    /// Ends the waits for a backend, but not those to come.
    pub(crate) fn cancel(&self) {
        let mut now = self.now.lock();

        now.cancels = now.cancels.wrapping_add(1);
        self.moved.notify_all();
    }

    /// Waits while the backend has an offer that it has not taken yet, but not for long: whoever is
    /// there takes it soon. So the first command after a restore or a reconnect does not fail.
    /// Fails if it is cancelled.
    pub(crate) fn await_offer(&self) -> Result<(), Failure> {
        let mut now = self.now.lock();
        let cancels = now.cancels;

        while now.stage.is_promising() && now.patient {
            let left = (OFFER_WAIT - now.start.elapsed()).as_millis();
            let Ok(left @ 1..) = u32::try_from(left) else {
                break;
            };

            // The freezer has to get hold of the task, and a command that has not started may be
            // ended by any signal.
            if let CondVarTimeoutResult::Signal { .. } = self
                .moved
                .wait_interruptible_timeout(&mut now, msecs_to_jiffies(left))
            {
                break;
            }
            if now.cancels != cancels {
                return Err(Failure::Cancelled);
            }
        }
        Ok(())
    }
}
