// SPDX-License-Identifier: GPL-2.0

//! One command from submit to answer: the wait with its limit, cancelling, the grace that a
//! cancelled command has, the answer that comes too late, and the errno that each of these means.
//! `Documentation/protocol.rst` has the errnos as a table.

use crate::{
    protocol::{
        frontend::{
            ends_wait,
            End,
            Ready,
            Running, //
        },
        layout,
        packet::{
            BadAnswer,
            BadRequest,
            Request, //
        },
        Byte,
        OutOfPage,
        Page, //
    },
    xen::{
        bus,
        event::{
            Event,
            EventChannel,
            Handler,
            News,
            Wait, //
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

/// The least time that a command has, in milliseconds. The core allows some commands 750 ms, and
/// some vTPMs have told of durations of 1 ms: neither has a slow disk or a busy host in mind.
const LEAST_LIMIT_MS: u32 = 60_000;

/// How long a cancelled command may take to end, in milliseconds.
const GRACE_MS: u32 = 5_000;

const _: () = assert!(PAGE_SIZE == layout::PAGE_SIZE);

/// Why a command has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
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

/// How the waiting task and those who want something of it meet: the interrupt handler, whoever
/// cancels, and the driver when the backend goes away. It outlives the single connection.
#[pin_data]
pub(crate) struct Control {
    #[pin]
    news: News,
    /// A command is submitted, and the next event that finds the page answered is its end.
    awaited: Atomic<bool>,
    /// The running command is to be cancelled.
    cancel: Atomic<bool>,
    /// The connection is about to end.
    hang_up: Atomic<bool>,
}

impl Control {
    /// No command is running.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            news <- News::new(),
            awaited: Atomic::new(false),
            cancel: Atomic::new(false),
            hang_up: Atomic::new(false),
        })
    }

    /// Cancels the running command, if there is one.
    pub(crate) fn cancel(&self) {
        self.cancel.store(true, Relaxed);
        self.news.announce();
    }

    /// Ends the running command, if there is one, and those to come until
    /// [`connected`](Self::connected). Does not wait for it.
    pub(crate) fn hang_up(&self) {
        self.hang_up.xchg(true, Full);
        self.news.announce();
    }

    /// From now on an event that finds the page answered is an expected one. To be called before
    /// the page is given to the backend, and before each look at it: an event that comes between a
    /// look and the wait then still ends the wait.
    fn expect(&self) {
        self.awaited.xchg(true, Full);
    }

    /// Commands may run again.
    pub(crate) fn connected(&self) {
        self.hang_up.store(false, Relaxed);
    }
}

/// What runs when the backend notifies.
struct Doorbell {
    page: RingPage,
    control: Arc<Control>,
}

impl Handler for Doorbell {
    fn handle(&self) -> Event {
        if ends_wait(self.page.state()) && self.control.awaited.xchg(false, Full) {
            self.control.news.announce();
            Event::Expected
        } else {
            Event::Spurious
        }
    }
}

/// A page and an event channel that are shared with a backend.
pub(crate) struct Channel {
    event: EventChannel<Doorbell>,
    /// `None` while a command runs, and for ever once the page is wedged.
    ready: Option<Ready>,
    control: Arc<Control>,
}

impl Channel {
    /// Makes a fresh page and an event channel for `dev`'s backend.
    pub(crate) fn new(dev: &bus::Device<Bound>, control: Arc<Control>) -> Result<Self> {
        let doorbell = Doorbell {
            page: RingPage::new(dev)?,
            control: control.clone(),
        };

        Ok(Self {
            event: EventChannel::new(dev, c"vtpm", KBox::pin(doorbell, GFP_KERNEL)?)?,
            ready: Some(Ready::fresh()),
            control,
        })
    }

    /// The page's grant reference.
    pub(crate) fn grant(&self) -> u32 {
        self.page().grant()
    }

    /// The event channel's port.
    pub(crate) fn port(&self) -> u32 {
        self.event.port()
    }

    /// Whether the page is given up. A fresh connection is the only way on.
    pub(crate) fn is_wedged(&self) -> bool {
        self.ready.is_none()
    }

    fn page(&self) -> &RingPage {
        &self.event.handler().page
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
        let request = packet.get(..length).unwrap_or_default();
        let request = Request::new(request).map_err(Failure::Request)?;

        // What was asked for before this command is not asked of it, but for a hang-up: that one
        // is looked for after old news is forgotten, so that it is either seen here or announced.
        self.control.news.forget();
        self.control.cancel.xchg(false, Full);
        if self.control.hang_up.load(Relaxed) {
            return Err(Failure::NoBackend);
        }

        let ready = self.ready.take().ok_or(Failure::Wedged)?;
        self.control.expect();
        let running = match ready.submit(self.page(), &request, locality) {
            Ok(running) => running,
            Err((ready, OutOfPage)) => {
                self.ready = Some(ready);
                return Err(Failure::Request(BadRequest::TooLong));
            }
        };
        self.event.notify();

        let result = self.await_end(running, duration.max(msecs_to_jiffies(LEAST_LIMIT_MS)));
        self.control.awaited.store(false, Relaxed);
        match result? {
            End::Finished(finished) => {
                let (ready, answer) = finished.answer(self.page(), packet);

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
    fn await_end(&mut self, mut running: Running, mut limit: Jiffies) -> Result<End, Failure> {
        let mut failure = None;

        loop {
            running = match running.look(self.page()) {
                Ok(end) => return Ok(end),
                Err(running) => running,
            };
            if let Some(failure) = failure {
                return self.call_off(running, failure);
            }

            // Whatever ends the wait, the page has one more look.
            match self.control.news.wait_killable(limit) {
                Wait::News(left) => limit = left,
                Wait::TimedOut => failure = Some(Failure::TimedOut),
                Wait::Killed => failure = Some(Failure::Killed),
            }
            if self.control.hang_up.load(Relaxed) {
                failure = Some(Failure::NoBackend);
            } else if self.control.cancel.load(Relaxed) {
                failure = failure.or(Some(Failure::Cancelled));
            }
            self.control.expect();
        }
    }

    /// Cancels the command, for the reason that `failure` names, and gives the backend the grace
    /// to let go of the page. Without that the page is wedged.
    fn call_off(&mut self, running: Running, failure: Failure) -> Result<End, Failure> {
        let mut cancelling = running.cancel(self.page());
        let mut grace = msecs_to_jiffies(GRACE_MS);

        self.event.notify();
        loop {
            self.control.expect();
            cancelling = match cancelling.look(self.page()) {
                // Whoever only wanted the command to end soon may have its answer. For the others
                // it comes too late.
                Ok(end) if failure == Failure::Cancelled => return Ok(end),
                Ok(End::Finished(finished)) => {
                    self.ready = Some(finished.discard(self.page()));
                    return Err(failure);
                }
                Ok(End::Abandoned(ready)) => {
                    self.ready = Some(ready);
                    return Err(failure);
                }
                Err(cancelling) => cancelling,
            };
            if grace == 0 || self.control.hang_up.load(Relaxed) {
                cancelling.abandon_page(self.page());
                return Err(failure);
            }
            grace = match self.control.news.wait(grace) {
                Wait::News(left) => left,
                Wait::TimedOut | Wait::Killed => 0,
            };
        }
    }
}

impl Page for RingPage {
    fn state(&self) -> u8 {
        self.load_acquire_u8::<{ layout::STATE }>()
    }

    fn set_state(&self, value: u8) {
        self.store_release_u8::<{ layout::STATE }>(value);
    }

    fn byte(&self, field: Byte) -> u8 {
        match field {
            Byte::Locality => self.load_u8::<{ layout::LOCALITY }>(),
            Byte::Pad => self.load_u8::<{ layout::PAD }>(),
            Byte::NrExtraPages => self.load_u8::<{ layout::NR_EXTRA_PAGES }>(),
        }
    }

    fn set_byte(&self, field: Byte, value: u8) {
        match field {
            Byte::Locality => self.store_u8::<{ layout::LOCALITY }>(value),
            Byte::Pad => self.store_u8::<{ layout::PAD }>(value),
            Byte::NrExtraPages => self.store_u8::<{ layout::NR_EXTRA_PAGES }>(value),
        }
    }

    fn length(&self) -> u32 {
        self.load_le32::<{ layout::LENGTH }>()
    }

    fn set_length(&self, value: u32) {
        self.store_le32::<{ layout::LENGTH }>(value);
    }

    fn read(&self, offset: usize, into: &mut [u8]) -> Result<(), OutOfPage> {
        RingPage::read(self, offset, into).map_err(|_| OutOfPage)
    }

    fn write(&self, offset: usize, from: &[u8]) -> Result<(), OutOfPage> {
        RingPage::write(self, offset, from).map_err(|_| OutOfPage)
    }

    fn wipe(&self, offset: usize) -> Result<(), OutOfPage> {
        RingPage::wipe(self, offset).map_err(|_| OutOfPage)
    }
}
