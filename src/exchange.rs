// SPDX-License-Identifier: GPL-2.0

//! What [`protocol::exchange`](crate::protocol::exchange) runs on in the kernel: a granted page,
//! an event channel, a completion and jiffies; and the errno that each failure means.
//! `Documentation/protocol.rst` has the errnos as a table.

use crate::{
    counters::Counters,
    protocol::{
        exchange::{
            self,
            Control as _,
            Exchange,
            Failure,
            Flag,
            Flags,
            Line,
            Ticks,
            Wait, //
        },
        layout,
        packet::BadRequest,
        Memory,
        OutOfPage,
        Page, //
    },
    xen::{
        bus,
        event::{
            self,
            Event,
            EventChannel,
            Handler,
            News, //
        },
        grant::{
            RingPage,
            PAGE_SIZE, //
        },
    },
};
use kernel::{
    bindings,
    device::Bound,
    prelude::*,
    sync::{
        atomic::{
            ordering::Full,
            Atomic,
            Relaxed, //
        },
        Arc,
    },
    time::{
        msecs_to_jiffies,
        Jiffies, //
    },
};

const _: () = assert!(PAGE_SIZE == layout::PAGE_SIZE);

/// How long a command may take, with its cancelling, when the device or the system is going down.
const LAST_WORDS_MS: u32 = 1_000;

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let errno = match failure {
            Failure::Request(BadRequest::TooShort) => bindings::EINVAL,
            Failure::Request(BadRequest::TooLong) => bindings::E2BIG,
            Failure::NoBackend => bindings::EPIPE,
            Failure::Cancelled => bindings::ECANCELED,
            Failure::TimedOut => bindings::ETIME,
            Failure::Killed => bindings::EINTR,
            Failure::Answer(_) => bindings::EIO,
            Failure::Wedged => bindings::ESHUTDOWN,
        };

        // CAST: Errnos are small.
        Error::from_errno(-(errno as i32))
    }
}

impl Flag for Atomic<bool> {
    fn get(&self) -> bool {
        self.load(Relaxed)
    }

    fn set(&self, value: bool) {
        self.store(value, Relaxed);
    }

    fn swap(&self, value: bool) -> bool {
        self.xchg(value, Full)
    }
}

/// How the waiting task and those who want something of it meet.
#[pin_data]
pub(crate) struct Control {
    #[pin]
    news: News,
    flags: Flags<Atomic<bool>>,
    counters: Counters,
    /// There is no time any more, but for last words.
    hurry: Atomic<bool>,
    /// When the running command began, or the hurry, if that was later. Means nothing without
    /// hurry.
    start: Atomic<Jiffies>,
}

impl Control {
    /// No command is running.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            news <- News::new(),
            flags: Flags::new(|| Atomic::new(false)),
            counters: Counters::new(),
            hurry: Atomic::new(false),
            start: Atomic::new(0),
        })
    }

    /// From now on a command has [`LAST_WORDS_MS`], and no grace.
    pub(crate) fn hurry(&self) {
        self.start.store(News::now(), Relaxed);
        self.hurry.xchg(true, Full);
        self.announce();
    }

    /// How long the running command may be waited for, which is `limit` if there is no hurry.
    fn left(&self, limit: Ticks) -> Ticks {
        if !self.hurry.load(Relaxed) {
            return limit;
        }
        let gone = News::now().wrapping_sub(self.start.load(Relaxed));

        limit.min(msecs_to_jiffies(LAST_WORDS_MS).saturating_sub(gone))
    }

    /// What happened on all connections.
    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }
}

impl exchange::Control for Control {
    type Flag = Atomic<bool>;

    fn flags(&self) -> &Flags<Atomic<bool>> {
        &self.flags
    }

    fn announce(&self) {
        self.news.announce();
    }

    fn forget(&self) {
        self.start.store(News::now(), Relaxed);
        self.news.forget();
    }

    fn wait(&self, limit: Ticks, killable: bool) -> Wait {
        let limit = match self.left(limit) {
            0 => return Wait::TimedOut,
            left => left,
        };
        let wait = if killable {
            self.news.wait_killable(limit)
        } else {
            self.news.wait(limit)
        };

        match wait {
            event::Wait::News => Wait::News,
            event::Wait::TimedOut => Wait::TimedOut,
            event::Wait::Killed => Wait::Killed,
        }
    }

    fn ticks(ms: u32) -> Ticks {
        msecs_to_jiffies(ms)
    }

    fn now(&self) -> Ticks {
        News::now()
    }
}

/// What runs when the backend notifies.
struct Doorbell {
    page: RingPage,
    control: Arc<Control>,
}

impl Handler for Doorbell {
    fn handle(&self) -> Event {
        let expected = self.control.event(self.page.state());

        self.control.counters.event(expected);
        if expected {
            Event::Expected
        } else {
            Event::Spurious
        }
    }
}

impl Line for EventChannel<Doorbell> {
    type Page = RingPage;
    type Control = Control;

    fn page(&self) -> &RingPage {
        &self.handler().page
    }

    fn control(&self) -> &Control {
        &self.handler().control
    }

    fn notify(&self) {
        EventChannel::notify(self);
    }
}

/// A page and an event channel that are shared with a backend.
pub(crate) struct Channel {
    event: EventChannel<Doorbell>,
    exchange: Exchange,
}

impl Channel {
    /// Makes a fresh page and an event channel for `dev`'s backend.
    pub(crate) fn new(dev: &bus::Device<Bound>, control: Arc<Control>) -> Result<Self> {
        let page = RingPage::new(dev)?;
        let doorbell = KBox::pin(Doorbell { page, control }, GFP_KERNEL)?;

        Ok(Self {
            event: EventChannel::new(dev, c"vtpm", doorbell)?,
            exchange: Exchange::fresh(),
        })
    }

    /// The page's grant reference.
    pub(crate) fn grant(&self) -> u32 {
        self.event.page().grant()
    }

    /// The event channel's port.
    pub(crate) fn port(&self) -> u32 {
        self.event.port()
    }

    /// Whether the page is given up. A fresh connection is the only way on.
    pub(crate) fn is_wedged(&self) -> bool {
        self.exchange.is_wedged()
    }

    /// Carries out the command in the first `length` bytes of `packet`, and writes the answer
    /// over it. Returns the answer's length.
    pub(crate) fn exchange(
        &mut self,
        packet: &mut [u8],
        length: usize,
        locality: u8,
        duration: Jiffies,
    ) -> Result<usize, Failure> {
        self.exchange
            .run(&self.event, packet, length, locality, duration)
    }
}

impl Memory for RingPage {
    fn load_acquire<const AT: usize>(&self) -> u8 {
        self.load_acquire_u8::<AT>()
    }

    fn store_release<const AT: usize>(&self, value: u8) {
        self.store_release_u8::<AT>(value);
    }

    fn load<const AT: usize>(&self) -> u8 {
        self.load_u8::<AT>()
    }

    fn store<const AT: usize>(&self, value: u8) {
        self.store_u8::<AT>(value);
    }

    fn load_le32<const AT: usize>(&self) -> u32 {
        RingPage::load_le32::<AT>(self)
    }

    fn store_le32<const AT: usize>(&self, value: u32) {
        RingPage::store_le32::<AT>(self, value);
    }

    fn copy_from(&self, offset: usize, into: &mut [u8]) -> Result<(), OutOfPage> {
        self.read(offset, into).map_err(|_| OutOfPage)
    }

    fn copy_to(&self, offset: usize, from: &[u8]) -> Result<(), OutOfPage> {
        self.write(offset, from).map_err(|_| OutOfPage)
    }

    fn zero(&self, offset: usize) -> Result<(), OutOfPage> {
        self.wipe(offset).map_err(|_| OutOfPage)
    }
}
