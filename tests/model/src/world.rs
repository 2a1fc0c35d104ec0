// SPDX-License-Identifier: GPL-2.0

//! A world for one exchange in which the backend writes whatever it likes at any moment, and in
//! which cancels, hang-ups, signals and time come as they like.
//!
//! The page has no bytes: each value that is read from it is a choice, as if the backend had just
//! written it. That is more than any backend can do, and all that the reader ever sees of one.
//! What the frontend does is watched: the first step against the rules panics.

mod page;

use std::cell::{Cell, RefCell};

use xen_tpm_protocol::exchange::{
    Control, Exchange, Failure, Flag, Flags, Line, Ticks, Wait, GRACE_MS, LEAST_LIMIT_MS,
    MOST_LIMIT_MS,
};
use xen_tpm_protocol::layout::MAX_PACKET;
use xen_tpm_protocol::packet::HEADER_SIZE;
use xen_tpm_protocol::State;

use crate::choice::Choices;

/// How many steps an exchange may take after its time is over and all is quiet: many more than it
/// needs, many less than for ever.
const LAST_STEPS: u32 = 40;

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

/// A flag of one thread.
#[derive(Debug, Default)]
pub struct PlainFlag(Cell<bool>);

impl Flag for PlainFlag {
    fn get(&self) -> bool {
        self.0.get()
    }

    fn set(&self, value: bool) {
        self.0.set(value);
    }

    fn swap(&self, value: bool) -> bool {
        self.0.replace(value)
    }
}

/// What the running command is, and what happened to it.
#[derive(Clone, Debug, Default)]
struct Command {
    request: Vec<u8>,
    locality: u8,
    limit: Ticks,
    start: Ticks,
    cancelled: bool,
    /// When SUBMIT or CANCEL was written, or the first look at the clock after that.
    since: Ticks,
    clock_read: bool,
    /// Accesses to the page and notifications.
    accesses: u32,
    length_written: bool,
    payload_written: bool,
    bytes_written: u32,
    /// A look at the state is in order.
    may_look: bool,
    length_read: Option<u32>,
    answer: Option<Vec<u8>>,
    cancel_asked: bool,
    killed: bool,
    notifications_owed: u32,
    /// Events that were let pass as expected ones.
    expected: u32,
    steps_after_end: u32,
}

impl Command {
    /// How long the backend has for what it was asked last.
    fn time(&self) -> Ticks {
        if self.cancelled {
            World::ticks(GRACE_MS)
        } else {
            self.limit
        }
    }
}

/// How much happens in a world.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bounds {
    /// How many cancels and hang-ups there are.
    pub interventions: u32,
    /// How many times a wait ends before its limit, an event comes, or time passes while the
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
    /// Whether the payload has bytes of a request or an answer.
    dirty: Cell<bool>,
    now: Cell<Ticks>,
    news: Cell<bool>,
    hung_up: Cell<bool>,
    /// How much is left that others may want of the exchange.
    interventions: Cell<u32>,
    /// How often time may pass, and news may come, without a limit being reached.
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
            // About to wrap.
            now: Cell::new(Ticks::MAX - 30),
            news: Cell::new(false),
            hung_up: Cell::new(false),
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
    pub fn exchange(
        &self,
        exchange: &mut Exchange,
        room: usize,
        length: usize,
        duration: Ticks,
    ) -> Result<usize, Failure> {
        // Another one for each command.
        let fill = self.steps.get() as u8 | 1;
        let mut packet = vec![fill; room];
        let before = self.owner.get();
        let was_hung_up = self.hung_up.get();
        let limit = duration.clamp(Self::ticks(LEAST_LIMIT_MS), Self::ticks(MOST_LIMIT_MS));

        *self.command.borrow_mut() = Command {
            request: packet.get(..length).unwrap_or_default().to_vec(),
            locality: fill,
            limit,
            start: self.now.get(),
            since: self.now.get(),
            ..Command::default()
        };
        let result = exchange.run(self, &mut packet, length, fill, duration);
        let command = self.command.borrow();

        assert!(!self.dirty.get(), "{result:?}: the payload is not wiped");
        assert_eq!(
            command.notifications_owed, 0,
            "the backend was not notified"
        );
        assert_eq!(exchange.is_wedged(), self.owner.get() == Owner::GivenUp);
        assert!(
            !matches!(self.owner.get(), Owner::Backend { .. }),
            "the backend has the page, and nobody looks any more"
        );
        assert!(!was_hung_up || result.is_err(), "a command after a hang-up");

        let over = self.past(command.start) >= command.limit;
        match result {
            Ok(n) => {
                let answer = command.answer.as_deref().expect("an answer out of nothing");
                assert_eq!(Some(n as u32), command.length_read);
                assert_eq!(answer, &packet[..n], "not what was copied out of the page");
                assert_eq!(
                    (n as u32).to_be_bytes(),
                    packet[2..6],
                    "not the packet's length"
                );
                assert!(
                    !command.cancelled || command.cancel_asked,
                    "an answer to a command that was given up"
                );
            }
            Err(Failure::Request(_)) => {
                assert!(!(HEADER_SIZE..=MAX_PACKET).contains(&length) || length > room);
                assert_eq!(command.accesses, 0);
            }
            Err(Failure::Wedged) => {
                assert_eq!((before, command.accesses), (Owner::GivenUp, 0));
            }
            Err(Failure::NoBackend) => assert!(self.hung_up.get()),
            Err(Failure::TimedOut) => assert!(over, "it had {} more", command.limit),
            Err(Failure::Killed) => assert!(command.killed),
            Err(Failure::Cancelled) => assert!(
                command.cancel_asked || self.owner.get() == Owner::Frontend(Some(State::Idle)),
                "neither was a cancel asked for nor IDLE seen"
            ),
            Err(Failure::Answer(_)) => {
                assert!(
                    packet.iter().all(|byte| *byte == 0),
                    "half an answer is left"
                );
            }
        }
        result
    }

    /// Lets the driver reconnect, or not, where the connection is of no use any more.
    pub fn go_on(&self, exchange: &mut Exchange) {
        if (exchange.is_wedged() || self.hung_up.get()) && self.choose(2) == 1 {
            *exchange = self.reconnect();
        }
    }

    /// A new connection: fresh page, same meeting point.
    fn reconnect(&self) -> Exchange {
        self.connected();
        self.hung_up.set(false);
        self.owner.set(Owner::Frontend(None));
        Exchange::fresh()
    }

    /// Time since `then`.
    fn past(&self, then: Ticks) -> Ticks {
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
                self.hung_up.set(true);
                self.hang_up();
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
            if self.event(State::Finish as u8) {
                self.command.borrow_mut().expected += 1;
            }
        }
        let command = self.command.borrow();
        let owed = 1 + u32::from(command.cancelled);
        assert!(
            command.expected <= owed,
            "a storm counts as expected events"
        );
    }
}

impl Control for World<'_> {
    type Flag = PlainFlag;

    fn flags(&self) -> &Flags<PlainFlag> {
        &self.flags
    }

    fn announce(&self) {
        self.news.set(true);
    }

    fn forget(&self) {
        self.step();
        // A cancel that came so far is none of this command's.
        self.command.borrow_mut().cancel_asked = false;
        self.news.set(false);
    }

    fn wait(&self, limit: Ticks, killable: bool) -> Wait {
        self.step();
        self.storm();
        if self.bounds.flicker {
            self.command.borrow_mut().may_look = true;
            return Wait::News;
        }

        let mut command = self.command.borrow_mut();
        assert!(limit > 0);
        assert_eq!(
            command.notifications_owed, 0,
            "sleeps without having notified"
        );
        assert_eq!(killable, !command.cancelled);
        let (gone, time) = (self.past(command.since), command.time());
        assert!(
            gone + limit <= time,
            "{gone} are gone of {time}, and it sleeps for {limit}"
        );
        let asked = self.hung_up.get() || command.cancel_asked && !command.cancelled;
        assert!(
            !asked || self.news.get(),
            "sleeps over a hang-up or a cancel"
        );
        command.may_look = true;

        if self.news.replace(false) {
            return Wait::News;
        }
        if self.restlessness.get() > 0 {
            let way = self.choose(if killable { 5 } else { 4 });
            if way > 0 {
                self.restlessness.set(self.restlessness.get() - 1);
            }
            let passed = match way {
                1 => 0,
                2 => 1,
                3 => limit - 1,
                4 => {
                    command.killed = true;
                    return Wait::Killed;
                }
                _ => limit,
            };
            self.now.set(self.now.get().wrapping_add(passed));
            return if way == 0 { Wait::TimedOut } else { Wait::News };
        }
        self.now.set(self.now.get().wrapping_add(limit));
        Wait::TimedOut
    }

    fn ticks(ms: u32) -> Ticks {
        ms as Ticks / 1000
    }

    fn now(&self) -> Ticks {
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

impl Line for World<'_> {
    type Page = Self;
    type Control = Self;

    fn page(&self) -> &Self {
        self
    }

    fn control(&self) -> &Self {
        self
    }

    fn notify(&self) {
        let mut command = self.access();
        assert!(matches!(self.owner.get(), Owner::Backend { .. }));
        assert_eq!(command.notifications_owed, 1, "notified without a reason");
        command.notifications_owed = 0;
    }
}
