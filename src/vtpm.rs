// SPDX-License-Identifier: GPL-2.0

//! One vTPM: its connection to the backend, and the commands on it.

use crate::{
    channel::{
        Channel,
        CommandControl, //
    },
    connection::Connection,
    counters::Counter,
    event_log,
    identity::TpmIdentity,
    protocol::{
        command::WaitContext as _,
        layout,
        state::{
            ConnEvent,
            ConnState, //
        },
    },
    ratelimit::{
        RateLimit,
        Throttle, //
    },
    tpm::{
        event_log::EventLog,
        registrar::Registrar, //
    },
    xen::{
        bus::{
            self,
            BusLock,
            State, //
        },
        completion::{
            self,
            Completion, //
        },
        noio::NoIo,
        reboot::RebootHandler,
        store,
        work, //
    },
    xen_sys::trace,
};
use kernel::{
    device::{
        Bound,
        Core, //
    },
    new_mutex,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            AtomicFlag,
            Relaxed, //
        },
        Arc,
        Mutex,
        MutexGuard, //
    },
    time::{
        msecs_to_jiffies,
        Jiffies, //
    },
    workqueue::{
        self,
        DelayedWork,
        Work,
        WorkItem, //
    },
};

/// How long after a failed attempt to make a connection the next one is made.
const RETRY_MS: u32 = 1_000;

/// How long the core may take in all to register the TPM. The number of its commands is the TPM's
/// choice: a TPM 1.2 can have its self test asked for 49 days long.
const REGISTER_TIMEOUT_MS: u32 = 300_000;

/// The work items of a [`Vtpm`].
pub(crate) const RECONNECT: u64 = 0;
pub(crate) const REGISTER: u64 = 1;
#[cfg(CONFIG_TCG_TPM2_HMAC)]
pub(crate) const ENABLE: u64 = 2;

/// What a command runs on.
pub(crate) struct Link {
    /// The last channel that was offered. It is kept until the next one comes, because the backend
    /// may not have let go of its page yet.
    pub(crate) channel: Option<Channel>,
    /// Whether the state is [`ConnState::Connected`].
    pub(crate) connected: bool,
    pub(crate) tpm: TpmIdentity,
    /// What the backend has of the guest's boot, for a TPM that is not registered yet.
    pub(crate) event_log: Option<Arc<EventLog>>,
}

/// One vTPM: what the TPM's callbacks and the device's have in common.
#[pin_data]
pub(crate) struct Vtpm {
    pub(crate) dev: ARef<bus::Device>,
    bus: Arc<BusLock>,
    pub(crate) registrar: Arc<Registrar<Vtpm>>,
    pub(crate) control: Arc<CommandControl>,
    /// At most 255.
    locality: Atomic<u32>,
    /// The domain of the last connection's backend.
    pub(crate) backend: Atomic<i32>,
    /// Held while a command runs; [`CommandControl`] is how to cut that short. The connection's
    /// state, and the device's state in xenstore, are changed under it only.
    #[pin]
    pub(crate) link: Mutex<Link>,
    #[pin]
    pub(crate) connection: Connection,
    /// There is a registration. For those who do not wait for it.
    pub(crate) registered: AtomicFlag,
    /// When the last attempt to register the TPM began.
    register_start: Atomic<Jiffies>,
    /// An attempt to register the TPM has ended.
    #[pin]
    pub(crate) attempted: Completion,
    pub(crate) throttle: Throttle,
    setup_ratelimit: RateLimit,
    connected_ratelimit: RateLimit,
    closed_ratelimit: RateLimit,
    timeout_ratelimit: RateLimit,
    pub(crate) register_ratelimit: RateLimit,
    pub(crate) event_log_ratelimit: RateLimit,
    #[pin]
    reconnect: DelayedWork<Vtpm, RECONNECT>,
    #[pin]
    register: Work<Vtpm, REGISTER>,
    #[cfg(CONFIG_TCG_TPM2_HMAC)]
    #[pin]
    enable: DelayedWork<Vtpm, ENABLE>,
}

kernel::impl_has_delayed_work! {
    impl HasDelayedWork<Self, RECONNECT> for Vtpm { self.reconnect }
}

kernel::impl_has_work! {
    impl HasWork<Self, REGISTER> for Vtpm { self.register }
}

#[cfg(CONFIG_TCG_TPM2_HMAC)]
kernel::impl_has_delayed_work! {
    impl HasDelayedWork<Self, ENABLE> for Vtpm { self.enable }
}

/// The delayed connection.
impl WorkItem<RECONNECT> for Vtpm {
    type Pointer = Arc<Self>;

    #[inline]
    fn run(this: Arc<Self>) {
        if this.connection.take_delayed() {
            this.connect(ConnEvent::BackendReady);
        }
    }
}

impl Vtpm {
    pub(crate) fn new(dev: &bus::Device<Bound>, bus: Arc<BusLock>) -> Result<Arc<Self>> {
        let registrar = Registrar::new(dev.as_ref())?;
        let dev = dev.into();
        let control = Arc::pin_init(CommandControl::new(), GFP_KERNEL)?;

        Arc::pin_init(
            pin_init!(Self {
                dev,
                bus,
                registrar,
                control,
                locality: Atomic::new(0),
                backend: Atomic::new(0),
                link <- new_mutex!(Link {
                    channel: None,
                    connected: false,
                    tpm: TpmIdentity::new(),
                    event_log: None,
                }),
                connection <- Connection::new(),
                registered: AtomicFlag::new(false),
                register_start: Atomic::new(0),
                attempted <- Completion::new(),
                throttle: Throttle::new(),
                setup_ratelimit: RateLimit::new(),
                connected_ratelimit: RateLimit::new(),
                closed_ratelimit: RateLimit::new(),
                timeout_ratelimit: RateLimit::new(),
                register_ratelimit: RateLimit::new(),
                event_log_ratelimit: RateLimit::new(),
                reconnect <- kernel::new_delayed_work!("Vtpm::reconnect"),
                register <- kernel::new_work!("Vtpm::register"),
                #[cfg(CONFIG_TCG_TPM2_HMAC)]
                enable <- kernel::new_delayed_work!("Vtpm::enable"),
            }),
            GFP_KERNEL,
        )
    }

    /// The locality of the requests.
    pub(crate) fn locality(&self) -> u8 {
        // CAST: Only ever set from a `u8`.
        self.locality.load(Relaxed) as u8
    }

    /// Sets the locality of the requests to come.
    pub(crate) fn set_locality(&self, locality: u8) {
        self.locality.store(locality.into(), Relaxed);
    }

    /// The device or the system is shutting down: do not wait for the backend any more; commands
    /// time out after one second.
    pub(crate) fn begin_shutdown(&self) {
        self.control.begin_shutdown();
        self.connection.begin_shutdown();
        self.attempted.complete();
    }

    /// Whether the device or the system is shutting down.
    pub(crate) fn is_shutting_down(&self) -> bool {
        self.control.is_shutting_down()
    }

    /// Ends a running command, and fails all others until the next connection.
    pub(crate) fn abort_commands(&self) {
        self.control.abort();
    }

    /// Ends a running command, fails all others until the next connection, and gives access to what
    /// they run on.
    fn lock_aborted(&self) -> MutexGuard<'_, Link> {
        self.control.abort();
        self.link.lock()
    }

    /// Changes the connection's state as the event demands.
    pub(crate) fn advance(&self, link: &mut Link, event: ConnEvent) {
        if let Some(state) = self.connection.advance(event) {
            link.connected = state == ConnState::Connected;
            trace::connection((*self.dev).as_ref(), state);
        }
    }

    /// Publishes a page and an event channel for the backend, in place of those that there were, if
    /// `event` demands it.
    pub(crate) fn setup_connection(&self, event: ConnEvent) -> Result {
        // This may run before the disk is resumed that memory could be swapped to.
        let _noio = NoIo::enter();

        if self.connection.state().next(event).is_none() {
            return Ok(());
        }
        let mut link = self.lock_aborted();
        if self.connection.state().next(event).is_none() {
            return Ok(());
        }
        let mut bus = self.bus.lock()?;

        // The old channel goes before the new one comes.
        self.advance(&mut link, ConnEvent::BackendClosed);
        link.channel = None;
        let channel = Channel::new(&mut bus, self.control.clone())?;

        // The state is written together with the rest. Otherwise xenbus could be woken by the rest,
        // find the old state, and by then compare it with a newer one: it would take the device
        // for a new one and remove this one.
        store::write_all(
            bus.nodename(),
            &[
                (c"ring-ref", channel.grant()),
                (c"event-channel", channel.port()),
                (c"feature-protocol-v2", layout::FEATURE),
                (c"state", State::Initialised.as_raw()),
            ],
        )?;
        // Now for xenbus's own copy of the state.
        bus.switch_state(State::Initialised);

        link.channel = Some(channel);
        self.advance(&mut link, event);
        Ok(())
    }

    /// As [`setup_connection`](Self::setup_connection), and tries again after a failure.
    pub(crate) fn connect(self: &Arc<Self>, event: ConnEvent) {
        if let Err(e) = self.setup_connection(event) {
            if self.setup_ratelimit.check() {
                dev_err!(
                    self.dev,
                    "no connection to the backend ({:?}): trying again\n",
                    e
                );
            }
            self.connect_later(RETRY_MS);
        }
    }

    /// Makes a connection after a delay, unless the backend closes meanwhile.
    fn connect_later(self: &Arc<Self>, ms: u32) {
        if self.is_shutting_down() {
            return;
        }
        self.connection.set_delayed();
        // A freezable one does not run while the device is restored. If it is enqueued already it
        // runs earlier.
        let _ = workqueue::system_freezable()
            .enqueue_delayed::<_, RECONNECT>(self.clone(), msecs_to_jiffies(ms));
    }

    /// The backend waits for the frontend's details. The more connections in a row were of no use,
    /// the longer it has to.
    pub(crate) fn backend_ready(self: &Arc<Self>, dev: &bus::Device<Core<'_>>) {
        if self
            .connection
            .state()
            .next(ConnEvent::BackendReady)
            .is_none()
        {
            return;
        }
        // The toolstack is removing the device.
        if dev
            .read_otherend(c"online")
            .is_ok_and(|online| online.bytes() == b"0")
        {
            self.backend_closed();
            return;
        }
        match self.connection.backoff_ms() {
            0 => self.connect(ConnEvent::BackendReady),
            ms => {
                // Nobody sends on a page that the backend has forgotten.
                self.disconnect();
                self.connect_later(ms);
            }
        }
    }

    /// The backend is connected. Returns true if the connection is new, in which case the TPM must
    /// be verified or registered.
    pub(crate) fn backend_connected(&self, dev: &bus::Device<Core<'_>>) -> bool {
        // In any other state a command may be running, which nobody here waits for.
        if self
            .connection
            .state()
            .next(ConnEvent::BackendConnected)
            .is_none()
        {
            return false;
        }
        let mut link = self.link.lock();
        let Ok(mut bus) = self.bus.lock() else {
            return false;
        };

        match supports_protocol(dev) {
            Ok(true) => {}
            Ok(false) => {
                dev.dev_error(
                    EINVAL,
                    c"backend's feature-protocol-v2 is not 1: too old for us",
                );
                bus.switch_state(State::Closing);
                self.advance(&mut link, ConnEvent::OtherProtocol);
                return false;
            }
            // Not what the backend says. It is asked to begin again.
            Err(e) => {
                dev.dev_error(e, c"reading feature-protocol-v2");
                bus.switch_state(State::Closing);
                self.advance(&mut link, ConnEvent::BackendClosed);
                return false;
            }
        }

        bus.switch_state(State::Connected);
        self.control.clear_abort();
        self.backend.store(dev.otherend_id(), Relaxed);
        self.control.counters().add(Counter::Connections, 1);
        if self.registered.load(Relaxed) && self.connected_ratelimit.check() {
            dev_info!(dev, "connected again, to domain {}\n", dev.otherend_id());
        }
        link.tpm.connected(dev);
        self.advance(&mut link, ConnEvent::BackendConnected);
        if link.tpm.version().is_none() {
            link.event_log = event_log::read(dev, &self.event_log_ratelimit);
            self.advance(&mut link, ConnEvent::SameTpm);
        }
        true
    }

    /// An attempt to register the TPM begins.
    pub(crate) fn begin_registration(&self) {
        self.register_start.store(completion::now(), Relaxed);
    }

    /// Whether the attempt to register the TPM takes too long.
    pub(crate) fn registration_expired(&self) -> bool {
        let elapsed = completion::now().wrapping_sub(self.register_start.load(Relaxed));

        !self.registered.load(Relaxed) && elapsed > msecs_to_jiffies(REGISTER_TIMEOUT_MS)
    }

    /// A TPM of this version is registered, and every later one has to be the same.
    pub(crate) fn set_registered(&self, version: crate::protocol::epoch::Version) {
        self.link.lock().tpm.registered(version);
        self.registered.store(true, Relaxed);
        self.verify();
    }

    /// The backend neither responded to a command nor to its cancel: asks it to close. When it is
    /// ready again the connection gets another page.
    pub(crate) fn start_reconnect(&self, link: &mut Link) {
        self.timeout_ratelimit.warn(
            &self.dev,
            "the backend does not respond, not even to a cancel: reconnecting",
        );
        if let Ok(mut bus) = self.bus.lock() {
            bus.switch_state(State::Closing);
        }
        self.control.counters().add(Counter::Wedges, 1);
        self.advance(link, ConnEvent::BackendTimeout);
    }

    /// The backend is closing, or asks the frontend to.
    pub(crate) fn backend_closed(&self) {
        let state = self.disconnect();

        if matches!(state, ConnState::Verifying | ConnState::Connected)
            && self.closed_ratelimit.check()
        {
            dev_info!(
                self.dev,
                "the backend in domain {} closed the connection\n",
                self.backend.load(Relaxed)
            );
        }
    }

    /// Closes the connection. Returns what its state was.
    pub(crate) fn disconnect(&self) -> ConnState {
        let mut link = self.lock_aborted();
        let state = self.connection.state();

        self.advance(&mut link, ConnEvent::BackendClosed);
        if let Ok(mut bus) = self.bus.lock() {
            bus.switch_state(State::Closed);
        }
        state
    }

    /// Waits until no work item of the connection runs, nor will. The device is shutting down, and
    /// xenbus calls nobody any more who could enqueue one.
    pub(crate) fn flush_reconnect(self: &Arc<Self>) {
        // An item that runs meanwhile may enqueue itself once more.
        for _ in 0..2 {
            self.connection.take_delayed();
            work::flush_delayed::<_, RECONNECT>(self);
        }
    }
}

/// Whether the backend supports the protocol of this driver. A node that is not there says that it
/// does not; one that cannot be read says nothing.
fn supports_protocol(dev: &bus::Device<Core<'_>>) -> Result<bool> {
    match dev.read_otherend(c"feature-protocol-v2") {
        Ok(value) => Ok(layout::speaks_protocol(value.bytes())),
        Err(ENOENT) => Ok(false),
        Err(e) => Err(e),
    }
}

impl RebootHandler for Vtpm {
    #[inline]
    fn reboot(&self) {
        self.begin_shutdown();
    }
}
