// SPDX-License-Identifier: GPL-2.0

//! One command from submit to answer: the wait with its limit, cancelling, the grace that a
//! cancelled command has, and the answer that comes too late. What the kernel has to give for it,
//! a wait, flags and a page, are traits, so that host tests run this very code against model
//! checkers' versions of them.

use super::{
    frontend::{
        ends_wait,
        End,
        Ready,
        Running, //
    },
    packet::{
        BadAnswer,
        BadRequest,
        Request, //
    },
    page::{
        OutOfPage,
        Page, //
    },
};

/// The least time that a command has, in milliseconds. The core allows some commands 750 ms, and
/// some vTPMs have told of durations of 1 ms: neither has a slow disk or a busy host in mind.
pub const LEAST_LIMIT_MS: u32 = 60_000;

/// The most time that a command has, in milliseconds. A TPM 1.2 tells itself how long its commands
/// take, up to 71 minutes; the longest that the core knows of for a TPM 2.0 is 5.
pub const MOST_LIMIT_MS: u32 = 600_000;

/// How long a cancelled command may take to end, in milliseconds.
pub const GRACE_MS: u32 = 5_000;

/// The clock's own unit: in the kernel, jiffies. The clock may wrap.
pub type Ticks = usize;

/// Why a command has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The request is shorter than a TPM header, or longer than the page has room for.
    Request(BadRequest),
    /// There is no backend, or it went away while the command ran.
    NoBackend,
    /// The backend abandoned the command, by itself or because it was asked to.
    Cancelled,
    /// It took too long and was cancelled.
    TimedOut,
    /// The waiting task was killed, and the command cancelled.
    Killed,
    /// The answer is not one that a TPM could have given.
    Answer(BadAnswer),
    /// The backend answered neither way to an earlier CANCEL, and a new connection is awaited.
    Wedged,
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
    /// A command is submitted, and the next event that finds the page answered ends a wait.
    awaited: F,
    /// The backend has a notification to send, which is one for a SUBMIT and one for a CANCEL.
    due: F,
    /// The running command is to be cancelled.
    cancel: F,
    /// The connection is about to end.
    hang_up: F,
}

impl<F: Flag> Flags<F> {
    /// No command is running. `flag` makes one that is false.
    pub fn new(flag: impl Fn() -> F) -> Self {
        Self {
            awaited: flag(),
            due: flag(),
            cancel: flag(),
            hang_up: flag(),
        }
    }
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// There is news.
    News,
    /// The time is over.
    TimedOut,
    /// A fatal signal is pending for the waiting task.
    Killed,
}

/// How the waiting task and those who want something of it meet: the interrupt handler, whoever
/// cancels, and the driver when the backend goes away. It outlives the single connection.
pub trait Control {
    /// The flags' type.
    type Flag: Flag;

    /// The flags.
    fn flags(&self) -> &Flags<Self::Flag>;

    /// Ends the current wait, or the next one. May be called in interrupt context.
    fn announce(&self);

    /// Forgets what was announced so far.
    fn forget(&self);

    /// Sleeps until something is announced, `limit` is over or, if it is `killable`, the task is
    /// killed. What is announced while nobody waits is kept.
    fn wait(&self, limit: Ticks, killable: bool) -> Wait;

    /// Milliseconds in the clock's unit.
    fn ticks(ms: u32) -> Ticks;

    /// What the clock shows.
    fn now(&self) -> Ticks;

    /// Cancels the running command, if there is one.
    fn cancel(&self) {
        self.flags().cancel.set(true);
        self.announce();
    }

    /// Ends the running command, if there is one, and those to come until
    /// [`connected`](Self::connected). Does not wait for it.
    fn hang_up(&self) {
        self.flags().hang_up.swap(true);
        self.announce();
    }

    /// Commands may run again.
    fn connected(&self) {
        self.flags().hang_up.set(false);
    }

    /// What to do when the backend notified: whether it had to. `state` is what the page says.
    ///
    /// An answer that is gone again when the waiter looks is announced each time it comes, but
    /// only the first is worth more than an event without a reason: a backend that plays with the
    /// state must not get its events for nothing.
    fn event(&self, state: u8) -> bool {
        if !ends_wait(state) || !self.flags().awaited.swap(false) {
            return false;
        }
        // First, because what is announced may be the end of this command and the next one's start.
        let due = self.flags().due.swap(false);

        self.announce();
        due
    }

    /// From now on an event that finds the page answered is announced. To be called before the
    /// page is given to the backend, and before each look at it: an event that comes between a
    /// look and the wait then still ends the wait.
    fn expect(&self) {
        self.flags().awaited.swap(true);
    }
}

/// A time that is counted by the clock, and not by what the waits left of it: a wait that ends at
/// once would leave all of it, however often that happens.
struct Deadline {
    start: Ticks,
    limit: Ticks,
}

impl Deadline {
    /// From now on.
    fn new<C: Control>(control: &C, limit: Ticks) -> Self {
        Self {
            start: control.now(),
            limit,
        }
    }

    /// Waits for news until then.
    fn wait<C: Control>(&self, control: &C, killable: bool) -> Wait {
        let gone = control.now().wrapping_sub(self.start);

        match self.limit.checked_sub(gone) {
            None | Some(0) => Wait::TimedOut,
            Some(left) => control.wait(left, killable),
        }
    }
}

/// The way to a backend.
pub trait Line {
    /// The shared page's type.
    type Page: Page;

    /// The meeting point's type.
    type Control: Control;

    /// The shared page.
    fn page(&self) -> &Self::Page;

    /// Where the handler of this line's events announces them.
    fn control(&self) -> &Self::Control;

    /// Notifies the backend.
    fn notify(&self);
}

/// The exchanges on one line.
#[derive(Debug)]
pub struct Exchange {
    /// `None` while a command runs, and for ever once the page is wedged.
    ready: Option<Ready>,
}

impl Exchange {
    /// For a line whose page is all zeroes and that no backend has seen yet.
    pub fn fresh() -> Self {
        Self {
            ready: Some(Ready::fresh()),
        }
    }

    /// Whether the page is given up. A fresh connection is the only way on.
    pub fn is_wedged(&self) -> bool {
        self.ready.is_none()
    }

    /// Carries out the command in the first `length` bytes of `packet`, and writes the answer
    /// over it. Returns the answer's length. A command has the time `duration`, but no
    /// less than [`LEAST_LIMIT_MS`] and no more than [`MOST_LIMIT_MS`].
    pub fn run<L: Line>(
        &mut self,
        line: &L,
        packet: &mut [u8],
        length: usize,
        locality: u8,
        duration: Ticks,
    ) -> Result<usize, Failure> {
        let flags = line.control().flags();
        let request = packet.get(..length).unwrap_or_default();
        let request = Request::new(request).map_err(Failure::Request)?;

        // What was asked for before this command is not asked of it, but for a hang-up: that one
        // is looked for after old news is forgotten, so that it is either seen here or announced.
        line.control().forget();
        flags.cancel.swap(false);
        if flags.hang_up.get() {
            return Err(Failure::NoBackend);
        }

        let ready = self.ready.take().ok_or(Failure::Wedged)?;
        flags.due.set(true);
        line.control().expect();
        let running = match ready.submit(line.page(), &request, locality) {
            Ok(running) => running,
            Err((ready, OutOfPage)) => {
                self.ready = Some(ready);
                return Err(Failure::Request(BadRequest::TooLong));
            }
        };
        line.notify();

        let ticks = L::Control::ticks;
        let limit = duration
            .max(ticks(LEAST_LIMIT_MS))
            .min(ticks(MOST_LIMIT_MS));
        let deadline = Deadline::new(line.control(), limit);
        let result = self.await_end(line, running, &deadline);
        // As a swap like the handler's, so that the two have an order that is easy to see.
        flags.awaited.swap(false);
        match result? {
            End::Finished(finished) => {
                let (ready, answer) = finished.answer(line.page(), packet);

                self.ready = Some(ready);
                answer.map_err(Failure::Answer)
            }
            End::Abandoned(ready) => {
                self.ready = Some(ready);
                Err(Failure::Cancelled)
            }
        }
    }

    /// Waits until the command ends by itself or has to be called off.
    fn await_end<L: Line>(
        &mut self,
        line: &L,
        mut running: Running,
        deadline: &Deadline,
    ) -> Result<End, Failure> {
        let flags = line.control().flags();
        let mut failure = None;

        loop {
            running = match running.look(line.page()) {
                Ok(end) => return Ok(end),
                Err(running) => running,
            };
            if let Some(failure) = failure {
                return self.call_off(line, running, failure);
            }

            // Whatever ends the wait, the page has one more look.
            match deadline.wait(line.control(), true) {
                Wait::News => {}
                Wait::TimedOut => failure = Some(Failure::TimedOut),
                Wait::Killed => failure = Some(Failure::Killed),
            }
            if flags.hang_up.get() {
                failure = Some(Failure::NoBackend);
            } else if flags.cancel.get() {
                failure = failure.or(Some(Failure::Cancelled));
            }
            line.control().expect();
        }
    }

    /// Cancels the command, for the reason that `failure` names, and gives the backend the grace
    /// to let go of the page. Without that the page is wedged.
    fn call_off<L: Line>(
        &mut self,
        line: &L,
        running: Running,
        failure: Failure,
    ) -> Result<End, Failure> {
        line.control().flags().due.set(true);
        let mut cancelling = running.cancel(line.page());
        let grace = Deadline::new(line.control(), L::Control::ticks(GRACE_MS));
        let mut over = false;

        line.notify();
        loop {
            line.control().expect();
            cancelling = match cancelling.look(line.page()) {
                // Whoever only wanted the command to end soon may have its answer. For the others
                // it comes too late.
                Ok(end) if failure == Failure::Cancelled => return Ok(end),
                Ok(End::Finished(finished)) => {
                    self.ready = Some(finished.discard(line.page()));
                    return Err(failure);
                }
                Ok(End::Abandoned(ready)) => {
                    self.ready = Some(ready);
                    return Err(failure);
                }
                Err(cancelling) => cancelling,
            };
            if over || line.control().flags().hang_up.get() {
                cancelling.abandon_page(line.page());
                return Err(failure);
            }
            over = grace.wait(line.control(), false) != Wait::News;
        }
    }
}
