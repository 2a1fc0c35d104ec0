// SPDX-License-Identifier: GPL-2.0

//! What [`protocol::command`](crate::protocol::command) runs on in the kernel: a granted page, an
//! event channel, a completion and jiffies; and the errno of each failure.
//! `Documentation/protocol.rst` has the errnos as a table.

use crate::{
    counters::{
        Counter,
        Counters, //
    },
    protocol::{
        command::{
            self,
            CommandSlot,
            Failure,
            Flag,
            Flags,
            Transport,
            WaitContext, //
        },
        layout,
        packet::BadRequest,
        HeaderField,
        OutOfBounds,
        Page, //
    },
    xen::{
        bus,
        completion::{
            self,
            Completion, //
        },
        event::{
            Eoi,
            EventChannel,
            Handler, //
        },
        grant::{
            GrantedPage,
            PAGE_SIZE, //
        },
    },
};
use kernel::{
    bindings,
    prelude::*,
    sync::{
        atomic::{
            ordering::Full,
            Acquire,
            Atomic,
            AtomicFlag,
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

/// How long a command may take when the device or the system is shutting down.
const SHUTDOWN_TIMEOUT_MS: u32 = 1_000;

impl From<Failure> for Error {
    #[inline]
    fn from(failure: Failure) -> Self {
        // CAST: Errnos are small.
        let errno = |errno: u32| Error::from_errno(-(errno as i32));

        match failure {
            Failure::Request(BadRequest::TooShort) => EINVAL,
            Failure::Request(BadRequest::TooLong) => E2BIG,
            Failure::NoBackend => EPIPE,
            Failure::Restart => ERESTARTSYS,
            Failure::Cancelled => errno(bindings::ECANCELED),
            Failure::TimedOut => errno(bindings::ETIME),
            Failure::Interrupted => EINTR,
            Failure::Response(_) => EIO,
        }
    }
}

impl Flag for AtomicFlag {
    #[inline]
    fn get(&self) -> bool {
        self.load(Relaxed)
    }

    #[inline]
    fn set(&self, value: bool) {
        self.store(value, Relaxed);
    }

    #[inline]
    fn swap(&self, value: bool) -> bool {
        self.xchg(value, Full)
    }
}

/// Where the waiting task meets those who want something of it.
#[pin_data]
pub(crate) struct CommandControl {
    #[pin]
    completion: Completion,
    flags: Flags<AtomicFlag>,
    counters: Counters,
    /// Set on unbind and shutdown.
    shutting_down: AtomicFlag,
    /// The running command began after that.
    late: AtomicFlag,
    /// The start of the running command, or of the shutdown if that is later.
    start: Atomic<Jiffies>,
}

impl CommandControl {
    /// No command is running.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            completion <- Completion::new(),
            flags: Flags::new(|| AtomicFlag::new(false)),
            counters: Counters::new(),
            shutting_down: AtomicFlag::new(false),
            late: AtomicFlag::new(false),
            start: Atomic::new(0),
        })
    }

    /// From now on the timeout of a command and its cancel is [`SHUTDOWN_TIMEOUT_MS`]. If a command
    /// runs now, its cancel has as long as ever: vtpm-stubdom does not survive that its page goes
    /// while it is busy.
    pub(crate) fn begin_shutdown(&self) {
        self.start.store(completion::now(), Relaxed);
        // Releases the start.
        self.shutting_down.xchg(true, Full);
        self.completion.complete();
    }

    /// Whether the device or the system is shutting down.
    pub(crate) fn is_shutting_down(&self) -> bool {
        self.shutting_down.load(Acquire)
    }

    /// What is left of a command's timeout.
    fn remaining(&self, timeout: Jiffies) -> Jiffies {
        if !self.is_shutting_down() {
            return timeout;
        }
        let elapsed = completion::now().wrapping_sub(self.start.load(Relaxed));

        timeout.min(msecs_to_jiffies(SHUTDOWN_TIMEOUT_MS).saturating_sub(elapsed))
    }

    /// What happened on all connections.
    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }
}

impl WaitContext for CommandControl {
    type Flag = AtomicFlag;

    #[inline]
    fn flags(&self) -> &Flags<AtomicFlag> {
        &self.flags
    }

    #[inline]
    fn complete(&self) {
        self.completion.complete();
    }

    #[inline]
    fn reinit(&self) {
        self.start.store(completion::now(), Relaxed);
        self.late.store(self.is_shutting_down(), Relaxed);
        self.completion.drain();
    }

    #[inline]
    fn wait(&self, timeout: Jiffies, killable: bool) -> command::Wait {
        // Only a cancelled command is not killable.
        let timeout = if killable || self.late.load(Relaxed) {
            self.remaining(timeout)
        } else {
            timeout
        };
        if timeout == 0 {
            return command::Wait::TimedOut;
        }

        match self.completion.wait(timeout, killable) {
            completion::Wait::Completed => command::Wait::Completed,
            completion::Wait::TimedOut => command::Wait::TimedOut,
            completion::Wait::Interrupted => command::Wait::Interrupted,
        }
    }

    #[inline]
    fn jiffies(ms: u32) -> Jiffies {
        msecs_to_jiffies(ms)
    }

    #[inline]
    fn now(&self) -> Jiffies {
        completion::now()
    }
}

/// The shared page.
type SharedPage = GrantedPage<{ layout::HEADER_SIZE }>;

/// Handles the backend's events.
pub(crate) struct EvtchnHandler {
    page: SharedPage,
    control: Arc<CommandControl>,
}

impl Handler for EvtchnHandler {
    #[inline]
    fn handle(&self) -> Eoi {
        if self.control.event(self.page.state()) {
            return Eoi::Normal;
        }
        self.control.counters.add(Counter::SpuriousEvents, 1);
        Eoi::Spurious
    }
}

impl Transport for EventChannel<EvtchnHandler> {
    type Page = SharedPage;
    type Context = CommandControl;

    #[inline]
    fn page(&self) -> &SharedPage {
        &self.handler().page
    }

    #[inline]
    fn context(&self) -> &CommandControl {
        &self.handler().control
    }

    #[inline]
    fn notify(&self) {
        EventChannel::notify(self);
    }
}

/// A page and an event channel that are shared with a backend.
pub(crate) struct Channel {
    pub(crate) event: EventChannel<EvtchnHandler>,
    pub(crate) slot: CommandSlot,
}

impl Channel {
    /// Makes a page and an event channel for the device's backend.
    pub(crate) fn new(bus: &mut bus::BusGuard<'_>, control: Arc<CommandControl>) -> Result<Self> {
        let page = SharedPage::new(bus)?;
        let handler = KBox::pin(EvtchnHandler { page, control }, GFP_KERNEL)?;

        Ok(Self {
            event: EventChannel::new(bus, handler)?,
            slot: CommandSlot::new(),
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
}

impl Page for SharedPage {
    #[inline]
    fn state(&self) -> u8 {
        self.load_acquire_u8::<{ layout::STATE }>()
    }

    #[inline]
    fn set_state(&self, value: u8) {
        self.store_release_u8::<{ layout::STATE }>(value);
    }

    #[inline]
    fn byte(&self, field: HeaderField) -> u8 {
        match field {
            HeaderField::Locality => self.load_u8::<{ layout::LOCALITY }>(),
            HeaderField::Pad => self.load_u8::<{ layout::PAD }>(),
            HeaderField::NrExtraPages => self.load_u8::<{ layout::NR_EXTRA_PAGES }>(),
        }
    }

    #[inline]
    fn set_byte(&self, field: HeaderField, value: u8) {
        match field {
            HeaderField::Locality => self.store_u8::<{ layout::LOCALITY }>(value),
            HeaderField::Pad => self.store_u8::<{ layout::PAD }>(value),
            HeaderField::NrExtraPages => self.store_u8::<{ layout::NR_EXTRA_PAGES }>(value),
        }
    }

    #[inline]
    fn length(&self) -> u32 {
        self.load_le32::<{ layout::LENGTH }>()
    }

    #[inline]
    fn set_length(&self, value: u32) {
        self.store_le32::<{ layout::LENGTH }>(value);
    }

    #[inline]
    fn read(&self, offset: usize, into: &mut [u8]) -> Result<(), OutOfBounds> {
        GrantedPage::read(self, offset, into).map_err(|_| OutOfBounds)
    }

    #[inline]
    fn write(&self, offset: usize, from: &[u8]) -> Result<(), OutOfBounds> {
        GrantedPage::write(self, offset, from).map_err(|_| OutOfBounds)
    }

    #[inline]
    fn wipe(&self, offset: usize) -> Result<(), OutOfBounds> {
        self.zero_from(offset).map_err(|_| OutOfBounds)
    }
}
