// SPDX-License-Identifier: GPL-2.0

//! What `kernel::sync::Completion` has no calls for yet: to complete once, and to wait with a
//! timeout. And the clock that timeouts are counted by.
//!
//! C header: [`include/linux/completion.h`](srctree/include/linux/completion.h)

use kernel::{
    bindings,
    prelude::*,
    time::Jiffies,
    types::Opaque, //
};

/// How a wait ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// The completion was completed.
    Completed,
    /// The timeout is over.
    TimedOut,
    /// A fatal signal is pending for the waiting task.
    Interrupted,
}

/// A completion that is used again and again.
#[pin_data]
pub(crate) struct Completion {
    #[pin]
    inner: Opaque<bindings::completion>,
}

// SAFETY: A `struct completion` may be used from any thread.
unsafe impl Send for Completion {}

// SAFETY: All methods take the completion's lock.
unsafe impl Sync for Completion {}

impl Completion {
    /// Makes a completion that is not completed.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            inner <- Opaque::ffi_init(|slot: *mut bindings::completion| {
                // SAFETY: `slot` is valid for initialisation, and pinned.
                unsafe { bindings::init_completion(slot) };
            }),
        })
    }

    /// Ends the current wait, or the next one. May be called in interrupt context.
    pub(crate) fn complete(&self) {
        // SAFETY: The completion is initialised.
        unsafe { bindings::complete(self.inner.get()) };
    }

    /// Takes back what was completed so far.
    pub(crate) fn drain(&self) {
        // SAFETY: The completion is initialised.
        while unsafe { bindings::try_wait_for_completion(self.inner.get()) } {}
    }

    /// Sleeps until the completion is completed, the timeout is over or, if it is `killable`, the
    /// task is killed.
    pub(crate) fn wait(&self, timeout: Jiffies, killable: bool) -> Wait {
        // SAFETY: The completion is initialised, and this is process context.
        let left = unsafe {
            if killable {
                bindings::wait_for_completion_killable_timeout(self.inner.get(), timeout)
            } else {
                // CAST: A timeout is at most `MAX_SCHEDULE_TIMEOUT`, which is a `long`.
                bindings::wait_for_completion_timeout(self.inner.get(), timeout) as c_long
            }
        };

        match left {
            0 => Wait::TimedOut,
            left if left > 0 => Wait::Completed,
            _ => Wait::Interrupted,
        }
    }
}

/// A duration in milliseconds.
pub(crate) fn to_ms(duration: Jiffies) -> u64 {
    // CAST: A `long` has 64 bits at most.
    // SAFETY: There are no requirements.
    unsafe { bindings::jiffies64_to_msecs(duration as u64) }
}

/// The time in jiffies. What a wait leaves of its timeout is no measure of time: a wait for what
/// is completed already leaves all of it.
pub(crate) fn now() -> Jiffies {
    // SAFETY: `jiffies` is always there, and the clock's interrupt writes it in one piece.
    unsafe { (&raw const bindings::jiffies).read_volatile() }
}
