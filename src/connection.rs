// SPDX-License-Identifier: GPL-2.0

//! The state of the connection for all who ask, the wait for a backend that is connecting, and the
//! back-off of reconnects.

use crate::{
    protocol::{
        backoff::Backoff,
        command::Failure,
        state::{
            ConnEvent,
            ConnState, //
        },
    },
    xen::completion::{
        now,
        to_ms, //
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
        Jiffies, //
    },
};

/// How long a command waits for a backend that is connecting, before it fails.
const CONNECT_TIMEOUT_MS: u32 = 10_000;

/// A connection that was of use for so long was a good one.
const STABLE_MS: u32 = 1_000;

struct Inner {
    state: ConnState,
    /// Since when.
    since: Jiffies,
    /// Whether commands wait for a backend that is connecting.
    wait_allowed: bool,
    /// The command that waits is cancelled.
    cancelled: bool,
    backoff: Backoff,
    /// A connection is to be made after a delay.
    delayed: bool,
}

/// The connection's state. Its lock is held for moments only, so that nobody who asks waits for a
/// command.
#[pin_data]
pub(crate) struct Connection {
    #[pin]
    inner: Mutex<Inner>,
    #[pin]
    changed: CondVar,
}

impl Connection {
    /// There is no connection yet.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            inner <- new_mutex!(Inner {
                state: ConnState::Disconnected,
                since: now(),
                wait_allowed: true,
                cancelled: false,
                backoff: Backoff::new(),
                delayed: false,
            }),
            changed <- new_condvar!(),
        })
    }

    /// The state. It may have changed by now.
    pub(crate) fn state(&self) -> ConnState {
        self.inner.lock().state
    }

    /// Changes the state as the event demands. Returns the state, if it is another one now.
    pub(crate) fn advance(&self, event: ConnEvent) -> Option<ConnState> {
        let mut inner = self.inner.lock();
        let state = inner.state.next(event)?;

        match state {
            ConnState::Initialised => {
                inner.backoff.attempt();
                inner.delayed = false;
            }
            ConnState::Disconnected => inner.delayed = false,
            _ => {}
        }
        if state == inner.state {
            return None;
        }
        let now = now();
        if inner.state == ConnState::Connected
            && now.wrapping_sub(inner.since) >= msecs_to_jiffies(STABLE_MS)
        {
            inner.backoff.reset();
        }
        inner.state = state;
        inner.since = now;
        self.changed.notify_all();
        Some(state)
    }

    /// From now on no command waits for a backend.
    pub(crate) fn begin_shutdown(&self) {
        self.inner.lock().wait_allowed = false;
        self.changed.notify_all();
    }

    /// Shows the state, and for how long it has been that.
    pub(crate) fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.inner.lock();

        writeln!(
            f,
            "{:?} for {} ms",
            inner.state,
            to_ms(now().wrapping_sub(inner.since))
        )
    }

    /// Cancels the command that waits for a backend, if one does.
    pub(crate) fn cancel(&self) {
        self.inner.lock().cancelled = true;
        self.changed.notify_all();
    }

    /// Waits while a backend is connecting, but not for long: a backend that is running connects
    /// quickly. So the first command after a restore or a reconnect does not fail.
    pub(crate) fn wait_connected(&self) -> Result<(), Failure> {
        let mut inner = self.inner.lock();

        if inner.state == ConnState::Connected {
            return Ok(());
        }
        // The TPM core has one command at a time, so a cancel that came earlier is another's.
        inner.cancelled = false;
        let start = now();
        while inner.state.is_connecting() && inner.wait_allowed {
            let timeout = msecs_to_jiffies(CONNECT_TIMEOUT_MS);
            let Some(left @ 1..) = timeout.checked_sub(now().wrapping_sub(start)) else {
                break;
            };

            // A signal, which may be the freezer's: nothing was sent yet, and the system call can
            // be restarted.
            if let CondVarTimeoutResult::Signal { .. } =
                self.changed.wait_interruptible_timeout(&mut inner, left)
            {
                return Err(Failure::Restart);
            }
            if inner.cancelled {
                return Err(Failure::Cancelled);
            }
        }
        inner.state.failure().map_or(Ok(()), Err)
    }

    /// The delay before the next connection, in milliseconds.
    pub(crate) fn backoff_ms(&self) -> u32 {
        self.inner.lock().backoff.delay_ms()
    }

    /// A connection is to be made after a delay, unless the backend closes meanwhile.
    pub(crate) fn set_delayed(&self) {
        self.inner.lock().delayed = true;
    }

    /// Whether the delayed connection is still to be made. Then it no longer is.
    pub(crate) fn take_delayed(&self) -> bool {
        core::mem::take(&mut self.inner.lock().delayed)
    }
}
