// SPDX-License-Identifier: GPL-2.0

//! One command from submit to response: the wait with its timeout, cancelling, and the response
//! that comes too late. What the kernel provides for it, a wait, flags and a page, are traits, so
//! that host tests run this very code on model checkers' versions of them.

use super::{
    frontend::{
        is_complete,
        Completed,
        Idle,
        Submitted, //
    },
    layout::State,
    packet::{
        BadRequest,
        BadResponse,
        Request, //
    },
    page::{
        OutOfBounds,
        Page, //
    },
};

/// The shortest timeout of a command, in milliseconds. The core allows some commands 750 ms, and
/// some vTPMs report durations of 1 ms, which do not account for a slow disk or a busy host.
pub const MIN_TIMEOUT_MS: u32 = 60_000;

/// The longest timeout of a command, in milliseconds. A TPM 1.2 itself says how long its commands
/// take, up to 71 minutes; the longest that the core knows of for a TPM 2.0 is 5.
pub const MAX_TIMEOUT_MS: u32 = 600_000;

/// The timeout of a command, in milliseconds, after one timed out and until one has a response: a
/// backend that is silent costs its users [`MIN_TIMEOUT_MS`] once, and not with each command.
pub const SILENT_TIMEOUT_MS: u32 = 5_000;

/// How long a cancelled command may take to end, in milliseconds.
pub const CANCEL_TIMEOUT_MS: u32 = 5_000;

/// The clock's own unit, in the kernel jiffies. The clock may wrap.
pub type Jiffies = usize;

/// Why a command has no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The request is shorter than a TPM header, or longer than the page has room for.
    Request(BadRequest),
    /// There is no connection, or it ended while the command ran.
    NoBackend,
    /// A signal came before the command was sent.
    Restart,
    /// The backend abandoned the command, by itself or because it was asked to.
    Cancelled,
    /// It took too long and was cancelled.
    TimedOut,
    /// The waiting task was killed, and the command cancelled.
    Interrupted,
    /// The response is not one that a TPM could have given.
    Response(BadResponse),
}

/// A boolean that several processors use at the same time.
pub trait Flag {
    /// Reads it. Not ordered.
    fn get(&self) -> bool;

    /// Writes it. Not ordered.
    fn set(&self, value: bool);

    /// Writes it and returns what it was. Fully ordered against all that comes before and after.
    fn swap(&self, value: bool) -> bool;
}

/// What others want of the running command.
pub struct Flags<F> {
    /// A command is submitted, and the next event that finds it completed ends a wait.
    irq_armed: F,
    /// The backend owes an event for the SUBMIT.
    submit_event: F,
    /// The backend owes an event for the CANCEL.
    cancel_event: F,
    /// The backend owes an event for an earlier command.
    late_event: F,
    /// The running command is to be cancelled.
    cancel: F,
    /// The connection is about to end.
    abort: F,
    /// A command timed out, and none had a response since.
    silent: F,
}

impl<F: Flag> Flags<F> {
    /// No command is running. `flag` makes one that is false.
    pub fn new(flag: impl Fn() -> F) -> Self {
        Self {
            irq_armed: flag(),
            submit_event: flag(),
            cancel_event: flag(),
            late_event: flag(),
            cancel: flag(),
            abort: flag(),
            silent: flag(),
        }
    }

    /// Whether the backend owed the event that has come.
    fn take_event(&self) -> bool {
        self.submit_event.swap(false)
            || self.cancel_event.swap(false)
            || self.late_event.swap(false)
    }

    /// A command is submitted. The backend may still owe an event for the one before.
    fn owe_event(&self) {
        if self.submit_event.get() || self.cancel_event.get() {
            self.late_event.set(true);
        }
        self.cancel_event.set(false);
        self.submit_event.set(true);
    }
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// The completion was completed.
    Completed,
    /// The timeout is over.
    TimedOut,
    /// A fatal signal is pending for the waiting task.
    Interrupted,
}

/// What the waiting task shares with the interrupt handler, a task that cancels, and the driver
/// when the backend goes away. It outlives the single connection.
pub trait WaitContext {
    /// The flags' type.
    type Flag: Flag;

    /// The flags.
    fn flags(&self) -> &Flags<Self::Flag>;

    /// Ends the current wait, or the next one. May be called in interrupt context.
    fn complete(&self);

    /// Takes back what was completed so far: a command begins.
    fn reinit(&self);

    /// Sleeps until the completion is completed, the timeout is over or, if it is `killable`, the
    /// task is killed. A completion while nobody waits is kept.
    fn wait(&self, timeout: Jiffies, killable: bool) -> Wait;

    /// Converts milliseconds to the clock's unit.
    fn jiffies(ms: u32) -> Jiffies;

    /// The clock's time.
    fn now(&self) -> Jiffies;

    /// Cancels the running command, if there is one.
    fn cancel(&self) {
        self.flags().cancel.set(true);
        self.complete();
    }

    /// Ends the running command, if there is one, and those to come until
    /// [`clear_abort`](Self::clear_abort). Does not wait for it.
    fn abort(&self) {
        self.flags().abort.swap(true);
        self.complete();
    }

    /// Commands may run again.
    fn clear_abort(&self) {
        self.flags().abort.set(false);
    }

    /// Handles the backend's event, with `state` as the page has it. Returns whether there was a
    /// reason for the event: the backend owes one for a SUBMIT and one for a CANCEL.
    ///
    /// A completion that is gone again when the waiter looks ends a wait each time, but only the
    /// first event is worth more than one without a reason: a backend that plays with the state
    /// must not get its events for nothing.
    fn event(&self, state: u8) -> bool {
        let flags = self.flags();
        let complete = is_complete(state);

        if complete && flags.irq_armed.swap(false) {
            // Consume the credit before completing: the waiter may start the next command at once.
            let expected = flags.take_event();

            self.complete();
            return expected;
        }
        // The waiter may have seen the completion before the event came, or CANCEL has overwritten
        // it; or the next command is submitted by now.
        if complete || state == State::Cancel as u8 {
            flags.take_event()
        } else {
            flags.late_event.swap(false)
        }
    }

    /// From now on an event that finds the command completed ends a wait. To be called before the
    /// page is given to the backend, and before each poll: an event that comes between a poll and
    /// the wait then still ends the wait.
    fn arm_irq(&self) {
        self.flags().irq_armed.swap(true);
    }
}

/// A timeout that is counted by the clock, and not by what the waits left of it: a wait that ends
/// at once would leave all of it, however often that happens.
struct Deadline {
    start: Jiffies,
    timeout: Jiffies,
}

impl Deadline {
    /// Starts the timeout.
    fn new<C: WaitContext>(context: &C, timeout: Jiffies) -> Self {
        Self {
            start: context.now(),
            timeout,
        }
    }

    /// Waits for the completion until the timeout is over.
    fn wait<C: WaitContext>(&self, context: &C, killable: bool) -> Wait {
        let elapsed = context.now().wrapping_sub(self.start);

        match self.timeout.checked_sub(elapsed) {
            None | Some(0) => Wait::TimedOut,
            Some(left) => context.wait(left, killable),
        }
    }
}

/// The way to a backend.
pub trait Transport {
    /// The shared page's type.
    type Page: Page;

    /// The wait context's type.
    type Context: WaitContext;

    /// The shared page.
    fn page(&self) -> &Self::Page;

    /// Where the handler of this transport's events completes waits.
    fn context(&self) -> &Self::Context;

    /// Notifies the backend.
    fn notify(&self);
}

/// The one command that a page has room for.
#[derive(Debug)]
pub struct CommandSlot {
    /// `None` while a command runs, and for good once the page is wedged.
    idle: Option<Idle>,
}

impl CommandSlot {
    /// For a page that is all zeroes and that no backend has seen yet.
    // No Default: that a page is new is for the caller to say.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self {
            idle: Some(Idle::new()),
        }
    }

    /// Whether the page is given up. Another connection is the only way on.
    pub fn is_wedged(&self) -> bool {
        self.idle.is_none()
    }

    /// Carries out the command in the first `length` bytes of `packet`, and writes the response
    /// over it. Returns the response's length. The timeout is `duration`, but no less than
    /// [`MIN_TIMEOUT_MS`] and no more than [`MAX_TIMEOUT_MS`]; or [`SILENT_TIMEOUT_MS`].
    pub fn transmit<T: Transport>(
        &mut self,
        transport: &T,
        packet: &mut [u8],
        length: usize,
        locality: u8,
        duration: Jiffies,
    ) -> Result<usize, Failure> {
        let (page, context) = (transport.page(), transport.context());
        let flags = context.flags();
        let request = packet.get(..length).unwrap_or_default();
        let request = Request::new(request).map_err(Failure::Request)?;

        // What was asked for before this command is not asked of it, but for an abort: that one is
        // looked for after the completion was taken back, so that it is either seen here or
        // completes a wait.
        context.reinit();
        flags.cancel.swap(false);
        if flags.abort.get() {
            return Err(Failure::NoBackend);
        }

        let idle = self.idle.take().ok_or(Failure::NoBackend)?;
        flags.owe_event();
        context.arm_irq();
        let submitted = match idle.submit(page, &request, locality) {
            Ok(submitted) => submitted,
            Err((idle, OutOfBounds)) => {
                self.idle = Some(idle);
                return Err(Failure::Request(BadRequest::TooLong));
            }
        };
        transport.notify();

        let jiffies = T::Context::jiffies;
        let timeout = if flags.silent.get() {
            jiffies(SILENT_TIMEOUT_MS)
        } else {
            duration
                .max(jiffies(MIN_TIMEOUT_MS))
                .min(jiffies(MAX_TIMEOUT_MS))
        };
        let deadline = Deadline::new(context, timeout);
        let result = self.wait_for_response(transport, submitted, &deadline);
        // A swap like the handler's, so that the two have an order that is easy to see.
        flags.irq_armed.swap(false);
        match result {
            Ok(Completed::Finished(finished)) => {
                let (idle, response) = finished.response(page, packet);

                self.idle = Some(idle);
                flags.silent.set(false);
                response.map_err(Failure::Response)
            }
            Ok(Completed::Abandoned(idle)) => {
                self.idle = Some(idle);
                Err(Failure::Cancelled)
            }
            Err(failure) => {
                if failure == Failure::TimedOut {
                    flags.silent.set(true);
                }
                Err(failure)
            }
        }
    }

    /// Waits until the command completes by itself or has to be cancelled.
    fn wait_for_response<T: Transport>(
        &mut self,
        transport: &T,
        mut submitted: Submitted,
        deadline: &Deadline,
    ) -> Result<Completed, Failure> {
        let context = transport.context();
        let flags = context.flags();
        let mut failure = None;

        loop {
            submitted = match submitted.poll(transport.page()) {
                Ok(completed) => return Ok(completed),
                Err(submitted) => submitted,
            };
            if let Some(failure) = failure {
                return self.cancel_and_wait(transport, submitted, failure);
            }

            // Whatever ends the wait, the page is polled once more.
            match deadline.wait(context, true) {
                Wait::Completed => {}
                Wait::TimedOut => failure = Some(Failure::TimedOut),
                Wait::Interrupted => failure = Some(Failure::Interrupted),
            }
            if flags.abort.get() {
                failure = Some(Failure::NoBackend);
            } else if flags.cancel.get() {
                failure = failure.or(Some(Failure::Cancelled));
            }
            context.arm_irq();
        }
    }

    /// Cancels the command, for the reason that `failure` names, and waits for the backend to let
    /// go of the page. If it does not, the page is wedged.
    fn cancel_and_wait<T: Transport>(
        &mut self,
        transport: &T,
        submitted: Submitted,
        failure: Failure,
    ) -> Result<Completed, Failure> {
        let (page, context) = (transport.page(), transport.context());

        context.flags().cancel_event.set(true);
        let mut cancelling = submitted.cancel(page);
        let deadline = Deadline::new(context, T::Context::jiffies(CANCEL_TIMEOUT_MS));
        let mut over = false;

        transport.notify();
        loop {
            context.arm_irq();
            cancelling = match cancelling.poll(page) {
                // A task that cancelled may have the response. For the others it comes too late.
                Ok(completed) if failure == Failure::Cancelled => return Ok(completed),
                Ok(Completed::Finished(finished)) => {
                    self.idle = Some(finished.discard(page));
                    return Err(failure);
                }
                Ok(Completed::Abandoned(idle)) => {
                    self.idle = Some(idle);
                    return Err(failure);
                }
                Err(cancelling) => cancelling,
            };
            if over || context.flags().abort.get() {
                cancelling.give_up_page(page);
                return Err(failure);
            }
            over = deadline.wait(context, false) != Wait::Completed;
        }
    }
}
