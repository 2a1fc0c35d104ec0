// SPDX-License-Identifier: GPL-2.0

//! A world for one command in which the backend writes whatever it likes at any moment, and in
//! which cancels, aborts, signals and time come as they like.
//!
//! The page has no bytes: each value that is read from it is a choice, as if the backend had just
//! written it. That is more than any backend can do, and all that the reader ever sees of one.
//! What the frontend does is watched: the first step against the rules panics.

mod flag;
mod page;

use std::cell::{Cell, RefCell};

use xen_tpm_protocol::command::{
    CommandSlot, Failure, Flags, Jiffies, Transport, Wait, WaitContext, CANCEL_TIMEOUT_MS,
    MAX_TIMEOUT_MS, MIN_TIMEOUT_MS, SILENT_TIMEOUT_MS,
};
use xen_tpm_protocol::layout::MAX_PACKET;
use xen_tpm_protocol::packet::HEADER_SIZE;
use xen_tpm_protocol::State;

use crate::choice::Choices;
pub use flag::PlainFlag;

/// How many steps a command may take after its time is over and all is quiet: many more than it
/// needs, many less than for ever.
const LAST_STEPS: u32 = 40;

/// When a world begins: the clock is about to wrap.
const START: Jiffies = Jiffies::MAX - 30;

/// Whose the page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// The frontend's: the page is fresh, or this was seen in it.
    Frontend(Option<State>),
    /// The backend's, since SUBMIT or since CANCEL.
    Backend { cancelled: bool },
    /// Nobody's any more.
    GivenUp,
}

/// What the running command is, and what happened to it.
#[derive(Clone, Debug, Default)]
struct Command {
    request: Vec<u8>,
    locality: u8,
    timeout: Jiffies,
    start: Jiffies,
    cancelled: bool,
    /// When SUBMIT or CANCEL was written, or the first look at the clock after that.
    since: Jiffies,
    clock_read: bool,
    /// Accesses to the page and notifications.
    accesses: u32,
    length_written: bool,
    payload_written: bool,
    bytes_written: u32,
    /// A look at the state is in order.
    may_look: bool,
    length_read: Option<u32>,
    response: Option<Vec<u8>>,
    cancel_asked: bool,
    killed: bool,
    notifications_owed: u32,
    /// Events that were let pass as expected ones.
    expected: u32,
    steps_after_end: u32,
}

impl Command {
    /// How long the backend has for what it was asked last.
    fn time(&self) -> Jiffies {
        if self.cancelled {
            World::jiffies(CANCEL_TIMEOUT_MS)
        } else {
            self.timeout
        }
    }
}

/// How much happens in a world.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bounds {
    /// How many cancels and aborts there are.
    pub interventions: u32,
    /// How many times a wait ends before its timeout, an event comes, or time passes while the
    /// frontend does not sleep.
    pub restlessness: u32,
    /// Fewer states, lengths and packets, for more commands.
    pub coarse: bool,
    /// In place of all this: the backend neither ends a command nor lets anybody sleep. Time
    /// passes with each step.
    pub flicker: bool,
}

/// The world.
pub struct World<'a> {
    choices: RefCell<&'a mut dyn Choices>,
    bounds: Bounds,
    flags: Flags<PlainFlag>,
    owner: Cell<Owner>,
    /// Whether the payload has bytes of a request or a response.
    dirty: Cell<bool>,
    now: Cell<Jiffies>,
    completed: Cell<bool>,
    /// The backend owes an event for an earlier command.
    late: Cell<bool>,
    /// The last command that ended in one of these ways timed out, and had no response.
    silent: Cell<bool>,
    aborted: Cell<bool>,
    /// How much is left that others may want of the command.
    interventions: Cell<u32>,
    /// How often time may pass, and news may come, without a timeout being reached.
    restlessness: Cell<u32>,
    command: RefCell<Command>,
    steps: Cell<u64>,
}

impl<'a> World<'a> {
    /// A fresh page.
    pub fn new(choices: &'a mut dyn Choices, bounds: Bounds) -> Self {
        Self {
            choices: RefCell::new(choices),
            bounds,
            flags: Flags::new(PlainFlag::default),
            owner: Cell::new(Owner::Frontend(None)),
            dirty: Cell::new(false),
            now: Cell::new(START),
            completed: Cell::new(false),
            late: Cell::new(false),
            silent: Cell::new(false),
            aborted: Cell::new(false),
            interventions: Cell::new(bounds.interventions),
            restlessness: Cell::new(bounds.restlessness),
            command: RefCell::default(),
            steps: Cell::new(0),
        }
    }

    /// How many steps there were so far: accesses, looks at the clock, waits.
    pub fn steps(&self) -> u64 {
        self.steps.get()
    }

    fn choose(&self, n: usize) -> usize {
        self.choices.borrow_mut().choose(n)
    }

    /// Chooses among the first `few`, or among all `n`.
    fn choose_few(&self, few: usize, n: usize) -> usize {
        self.choose(if self.bounds.coarse { few } else { n })
    }

    /// Runs one command and checks how it ended. `room` is the size of the buffer, `length` how
    /// much of it is the request.
    pub fn command(
        &self,
        slot: &mut CommandSlot,
        room: usize,
        length: usize,
        duration: Jiffies,
    ) -> Result<usize, Failure> {
        // Another one for each command.
        let fill = self.steps.get() as u8 | 1;
        let mut packet = vec![fill; room];
        let before = self.owner.get();
        let was_aborted = self.aborted.get();
        let timeout = if self.silent.get() {
            Self::jiffies(SILENT_TIMEOUT_MS)
        } else {
            duration.clamp(Self::jiffies(MIN_TIMEOUT_MS), Self::jiffies(MAX_TIMEOUT_MS))
        };

        {
            let last = self.command.borrow();
            let owed = u32::from(last.payload_written) + u32::from(last.cancelled);
            self.late
                .set(self.late.get() || last.expected < owed + u32::from(self.late.get()));
        }
        *self.command.borrow_mut() = Command {
            request: packet.get(..length).unwrap_or_default().to_vec(),
            locality: fill,
            timeout,
            start: self.now.get(),
            since: self.now.get(),
            ..Command::default()
        };
        let result = slot.transmit(self, &mut packet, length, fill, duration);
        let command = self.command.borrow();

        assert!(!self.dirty.get(), "{result:?}: the payload is not wiped");
        assert_eq!(
            command.notifications_owed, 0,
            "the backend was not notified"
        );
        assert_eq!(slot.is_wedged(), self.owner.get() == Owner::GivenUp);
        assert!(
            !matches!(self.owner.get(), Owner::Backend { .. }),
            "the backend has the page, and nobody looks any more"
        );
        assert!(!was_aborted || result.is_err(), "a command after an abort");

        let over = self.past(command.start) >= command.timeout;
        match result {
            Ok(n) => {
                let response = command
                    .response
                    .as_deref()
                    .expect("a response out of nothing");
                assert_eq!(Some(n as u32), command.length_read);
                assert_eq!(
                    response,
                    &packet[..n],
                    "not what was copied out of the page"
                );
                assert_eq!(
                    (n as u32).to_be_bytes(),
                    packet[2..6],
                    "not the packet's length"
                );
                assert!(
                    !command.cancelled || command.cancel_asked,
                    "a response to a command that was given up"
                );
            }
            Err(Failure::Request(_)) => {
                assert!(!(HEADER_SIZE..=MAX_PACKET).contains(&length) || length > room);
                assert_eq!(command.accesses, 0);
            }
            Err(Failure::NoBackend) => {
                assert!(self.aborted.get() || (before, command.accesses) == (Owner::GivenUp, 0))
            }
            Err(Failure::Restart) => panic!("a signal is none of the protocol's"),
            Err(Failure::TimedOut) => assert!(over, "it had {} more", command.timeout),
            Err(Failure::Interrupted) => assert!(command.killed),
            Err(Failure::Cancelled) => assert!(
                command.cancel_asked || self.owner.get() == Owner::Frontend(Some(State::Idle)),
                "neither was a cancel asked for nor IDLE seen"
            ),
            Err(Failure::Response(_)) => {
                assert!(
                    packet.iter().all(|byte| *byte == 0),
                    "half a response is left"
                );
            }
        }
        match result {
            Ok(_) | Err(Failure::Response(_)) => self.silent.set(false),
            Err(Failure::TimedOut) => self.silent.set(true),
            Err(_) => {}
        }
        result
    }

    /// Lets the driver reconnect, or not, where the connection is of no use any more.
    pub fn go_on(&self, slot: &mut CommandSlot) {
        if (slot.is_wedged() || self.aborted.get()) && self.choose(2) == 1 {
            *slot = self.reconnect();
        }
    }

    /// Lets the driver reconnect.
    pub fn reconnect_to(&self, slot: &mut CommandSlot) {
        *slot = self.reconnect();
    }

    /// Time since the beginning.
    pub fn elapsed(&self) -> Jiffies {
        self.past(START)
    }

    /// A new connection: fresh page, same wait context.
    fn reconnect(&self) -> CommandSlot {
        self.clear_abort();
        self.aborted.set(false);
        self.owner.set(Owner::Frontend(None));
        CommandSlot::new()
    }

    /// Time since `then`.
    fn past(&self, then: Jiffies) -> Jiffies {
        self.now.get().wrapping_sub(then)
    }

    /// Others may do something before each step.
    fn step(&self) {
        self.steps.set(self.steps.get() + 1);
        if self.bounds.flicker {
            self.now.set(self.now.get().wrapping_add(1));
        }
        {
            let mut command = self.command.borrow_mut();
            let over = self.past(command.since) >= command.time();
            if over {
                command.steps_after_end += 1;
                assert!(command.steps_after_end < LAST_STEPS, "it does not end");
            }
        }

        if self.interventions.get() == 0 {
            return;
        }
        match self.choose(3) {
            1 => {
                self.intervene();
                self.command.borrow_mut().cancel_asked = true;
                self.cancel();
            }
            2 => {
                self.intervene();
                self.aborted.set(true);
                self.abort();
            }
            _ => {}
        }
    }

    fn intervene(&self) {
        self.interventions.set(self.interventions.get() - 1);
    }

    /// An access to the page by the frontend.
    fn access(&self) -> std::cell::RefMut<'_, Command> {
        self.step();
        assert_ne!(
            self.owner.get(),
            Owner::GivenUp,
            "a page that was given up is used"
        );
        let mut command = self.command.borrow_mut();
        command.accesses += 1;
        command
    }

    /// A write, which only the page's owner may do.
    fn own(&self) -> std::cell::RefMut<'_, Command> {
        let command = self.access();
        assert!(
            matches!(self.owner.get(), Owner::Frontend(_)),
            "written to the backend's page"
        );
        command
    }

    /// The backend notifies, as often as it likes, with the page as it likes.
    fn storm(&self) {
        let events = match self.restlessness.get() {
            0 => 0,
            left => self.choose(3).min(left as usize),
        };
        self.restlessness
            .set(self.restlessness.get() - events as u32);
        for _ in 0..events {
            // A CANCEL can overwrite what the event is about.
            let cancelled = self.command.borrow().cancelled;
            let state = match cancelled && self.choose(2) == 1 {
                true => State::Cancel,
                false => State::Finish,
            };
            if self.event(state as u8) {
                self.command.borrow_mut().expected += 1;
            }
        }
        let command = self.command.borrow();
        // One for the SUBMIT, one for the CANCEL, and one that is late.
        let owed = 1 + u32::from(command.cancelled) + u32::from(self.late.get());
        assert!(
            command.expected <= owed,
            "a storm counts as expected events"
        );
    }
}

impl WaitContext for World<'_> {
    type Flag = PlainFlag;

    fn flags(&self) -> &Flags<PlainFlag> {
        &self.flags
    }

    fn complete(&self) {
        self.completed.set(true);
    }

    fn reinit(&self) {
        self.step();
        // A cancel that came so far is none of this command's.
        self.command.borrow_mut().cancel_asked = false;
        self.completed.set(false);
    }

    fn wait(&self, timeout: Jiffies, killable: bool) -> Wait {
        self.step();
        self.storm();
        if self.bounds.flicker {
            self.command.borrow_mut().may_look = true;
            return Wait::Completed;
        }

        let mut command = self.command.borrow_mut();
        assert!(timeout > 0);
        assert_eq!(
            command.notifications_owed, 0,
            "sleeps without having notified"
        );
        assert_eq!(killable, !command.cancelled);
        let (gone, time) = (self.past(command.since), command.time());
        assert!(
            gone + timeout <= time,
            "{gone} are gone of {time}, and it sleeps for {timeout}"
        );
        let asked = self.aborted.get() || command.cancel_asked && !command.cancelled;
        assert!(
            !asked || self.completed.get(),
            "sleeps over an abort or a cancel"
        );
        command.may_look = true;

        if self.completed.replace(false) {
            return Wait::Completed;
        }
        if self.restlessness.get() > 0 {
            let way = self.choose(if killable { 5 } else { 4 });
            if way > 0 {
                self.restlessness.set(self.restlessness.get() - 1);
            }
            let passed = match way {
                1 => 0,
                2 => 1,
                3 => timeout - 1,
                4 => {
                    command.killed = true;
                    return Wait::Interrupted;
                }
                _ => timeout,
            };
            self.now.set(self.now.get().wrapping_add(passed));
            return if way == 0 {
                Wait::TimedOut
            } else {
                Wait::Completed
            };
        }
        self.now.set(self.now.get().wrapping_add(timeout));
        Wait::TimedOut
    }

    fn jiffies(ms: u32) -> Jiffies {
        ms as Jiffies / 1000
    }

    fn now(&self) -> Jiffies {
        self.step();
        if self.restlessness.get() > 0 && self.choose(2) == 1 {
            self.restlessness.set(self.restlessness.get() - 1);
            self.now.set(self.now.get().wrapping_add(1));
        }
        let mut command = self.command.borrow_mut();
        command.may_look = true;
        if !command.clock_read {
            command.since = self.now.get();
            command.clock_read = true;
        }
        self.now.get()
    }
}

impl Transport for World<'_> {
    type Page = Self;
    type Context = Self;

    fn page(&self) -> &Self {
        self
    }

    fn context(&self) -> &Self {
        self
    }

    fn notify(&self) {
        let mut command = self.access();
        assert!(matches!(self.owner.get(), Owner::Backend { .. }));
        assert_eq!(command.notifications_owed, 1, "notified without a reason");
        command.notifications_owed = 0;
    }
}
