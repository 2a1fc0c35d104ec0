// SPDX-License-Identifier: GPL-2.0

//! The vTPM frontend on xenbus: it offers the backend a page and an event channel, registers the
//! TPM once the backend is there, and keeps it registered while backends come and go.

use crate::{
    exchange::{
        Channel,
        Control, //
    },
    locality::Locality,
    pace::Pace,
    protocol::{
        exchange::{
            Control as _,
            Failure, //
        },
        layout,
        stage::{
            Event,
            Stage, //
        },
    },
    registration::Tpm,
    standing::Standing,
    tpm::{
        attribute::{
            Attribute,
            RawAttribute, //
        },
        chip::Operations, //
    },
    xen::{
        bus::{
            self,
            State, //
        },
        debugfs::{
            folder,
            Folder, //
        },
        reboot::{
            GoingDown,
            Notifier, //
        },
        store, //
    },
};
use kernel::{
    debugfs::ScopedDir,
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
            Relaxed, //
        },
        Arc,
        Mutex,
        MutexGuard, //
    },
    time::{
        delay::fsleep,
        Delta,
        Instant,
        Jiffies, //
    },
    workqueue, //
};

/// How long `probe()` waits for the backend. libxl gives backends 10 s to show up, too.
const PROBE_WAIT_MS: u32 = 10_000;

/// How long `unbind()` waits for the backend to let go of the page.
const UNBIND_WAIT_MS: u32 = 1_000;

/// How long it waits for a backend to notice that its last frontend has gone.
const STALE_WAIT_MS: u32 = 1_000;

/// How often `probe()` and `unbind()` ask for the backend's state meanwhile. Both may run in the very
/// thread that takes xenstore's watches, so that a watch would not help them.
const POLL_MS: u32 = 10;

/// The last channel that was offered. It is kept until the next one comes, because the backend may
/// not have let go of its page yet.
type Link = Option<Channel>;

/// One vTPM: what the TPM's callbacks and the device's have in common.
#[pin_data]
pub(crate) struct Vtpm {
    dev: ARef<bus::Device>,
    control: Arc<Control>,
    /// At most 255.
    locality: Atomic<u32>,
    /// Held while a command runs; [`Control`] is how to cut that short. The stage, and the device's
    /// state in xenstore, are changed under it only.
    #[pin]
    link: Mutex<Link>,
    #[pin]
    standing: Standing,
    again: Pace,
    lost: Pace,
}

impl Vtpm {
    fn new(dev: &bus::Device<Bound>) -> Result<Arc<Self>> {
        let dev = dev.into();
        let control = Arc::pin_init(Control::new(), GFP_KERNEL)?;

        Arc::pin_init(
            pin_init!(Self {
                dev,
                control,
                locality: Atomic::new(0),
                link <- new_mutex!(None),
                standing <- Standing::new(),
                again: Pace::new(),
                lost: Pace::new(),
            }),
            GFP_KERNEL,
        )
    }

    /// The locality that requests are sent from.
    pub(crate) fn locality(&self) -> u8 {
        // CAST: Only ever set from a `u8`.
        self.locality.load(Relaxed) as u8
    }

    /// Sets the locality of the requests to come.
    pub(crate) fn set_locality(&self, locality: u8) {
        self.locality.store(locality.into(), Relaxed);
    }

    /// The device.
    pub(crate) fn device(&self) -> &bus::Device {
        &self.dev
    }

    /// Ends a running command, and all to come until the next connection.
    pub(crate) fn interrupt(&self) {
        self.control.hang_up();
    }

    /// Where the connection stands. Without the link it may have changed by now.
    fn stage(&self) -> Stage {
        self.standing.stage()
    }

    /// Moves the connection on, if the event is one for its stage.
    fn advance(&self, _link: &mut Link, event: Event) -> bool {
        self.standing.advance(event)
    }

    /// The device or the system is going down: nothing is waited for any more, but last words for a
    /// second.
    fn hurry(&self) {
        self.control.hurry();
        self.standing.hurry();
    }

    /// Cuts a running command short, keeps others from starting, and gives access to the link.
    fn hang_up(&self) -> MutexGuard<'_, Link> {
        self.control.hang_up();
        self.link.lock()
    }

    /// Offers the backend a fresh channel, in place of the one that there was, if `event` asks for
    /// one.
    fn offer(&self, dev: &bus::Device<Bound>, event: Event) -> Result {
        if self.stage().after(event).is_none() {
            return Ok(());
        }
        let mut link = self.hang_up();

        // The old channel goes before the new one comes.
        self.advance(&mut link, Event::BackendClosed);
        *link = None;
        let channel = Channel::new(dev, self.control.clone())?;

        // The state goes out together with the rest. Otherwise xenbus could be woken by the rest,
        // find the old state, and by then compare it with a newer one: it would take the device
        // for a new one and throw this one away.
        store::transact(dev.folder(), |transaction| {
            transaction.write(c"ring-ref", fmt!("{}", channel.grant()))?;
            transaction.write(c"event-channel", fmt!("{}", channel.port()))?;
            transaction.write(c"feature-protocol-v2", fmt!("{}", layout::FEATURE_VALUE))?;
            transaction.write(c"state", fmt!("{}", State::Initialised.as_raw()))
        })?;
        // Now for xenbus's own copy of the state.
        dev.switch_state(State::Initialised);

        *link = Some(channel);
        self.advance(&mut link, event);
        Ok(())
    }

    /// The backend took the channel that it was offered. Returns whether that is news, and
    /// commands can run from now on.
    fn accept(&self, dev: &bus::Device<Core<'_>>) -> bool {
        // At any other stage a command may be running, which nobody here waits for.
        if self.stage().after(Event::BackendConnected).is_none() {
            return false;
        }
        let mut link = self.link.lock();

        if !speaks_protocol(dev) {
            dev.report(
                EINVAL,
                c"backend's feature-protocol-v2 is not 1: too old for us",
            );
            dev.switch_state(State::Closing);
            self.advance(&mut link, Event::BackendForeign);
            return false;
        }

        dev.switch_state(State::Connected);
        self.control.connected();
        if self.control.counters().connected() && self.again.allows() {
            dev_info!(dev, "connected again, to domain {}\n", dev.backend_domain());
        }
        self.advance(&mut link, Event::BackendConnected)
    }

    /// The backend is here and waits for an offer.
    fn make_up(&self, dev: &bus::Device<Bound>) {
        if let Err(e) = self.offer(dev, Event::BackendReady) {
            dev.report(e, c"offering the backend a page and an event channel");
        }
    }

    /// The backend let go of a page neither for an answer nor for a cancelled command: asks it for
    /// the end of the connection. When it is ready for another one it gets a fresh page.
    fn reconnect(&self, link: &mut Link) {
        if self.lost.allows() {
            dev_warn!(
                self.dev,
                "the backend does not answer, not even to a cancel: reconnecting\n"
            );
        }
        self.dev.switch_state(State::Closing);
        self.control.counters().wedged();
        self.advance(link, Event::BackendSilent);
    }

    /// The backend is going away, or wants us to.
    fn close(&self, dev: &bus::Device<Bound>) {
        let mut link = self.hang_up();

        self.advance(&mut link, Event::BackendClosed);
        dev.closed();
    }

    /// Carries out a command when there is a connection.
    fn exchange(
        &self,
        packet: &mut [u8],
        length: usize,
        duration: Jiffies,
    ) -> Result<usize, Failure> {
        self.standing.await_offer();

        let mut link = self.link.lock();
        if let Some(failure) = self.stage().failure() {
            return Err(failure);
        }
        let channel = (*link).as_mut().ok_or(Failure::NoBackend)?;

        let result = channel.exchange(packet, length, self.locality(), duration);
        // Whoever hung up sees to the rest.
        if channel.is_wedged() && result != Err(Failure::NoBackend) {
            self.reconnect(&mut link);
        }
        result
    }
}

/// Whether the backend says that it speaks the protocol of this driver.
fn speaks_protocol(dev: &bus::Device<Core<'_>>) -> bool {
    dev.backend_value(c"feature-protocol-v2")
        .is_ok_and(|value| layout::speaks_protocol(value.bytes()))
}

/// Waits until the backend's state makes `decide` say something, or until `left` milliseconds,
/// which it counts down, are over.
fn await_backend(
    dev: &bus::Device<Core<'_>>,
    left: &mut u32,
    decide: impl Fn(State) -> Option<bool>,
) -> bool {
    loop {
        if let Some(decision) = decide(dev.backend_state()) {
            return decision;
        }
        if *left == 0 {
            return false;
        }
        fsleep(Delta::from_millis(POLL_MS.into()));
        *left = left.saturating_sub(POLL_MS);
    }
}

/// The `cancel` attribute, in the place of the core's: that one waits for the running command to
/// end before it cancels, and a TPM 2.0 has none.
struct Cancel;

impl Attribute for Cancel {
    type Operations = Vtpm;

    const NAME: &'static CStr = c"cancel";
    const MODE: u16 = 0o200;

    fn store(vtpm: &Vtpm, _text: &CStr) -> Result {
        vtpm.cancel();
        Ok(())
    }
}

impl Operations for Vtpm {
    const ATTRIBUTES: &'static [RawAttribute<Self>] = &[
        RawAttribute::new::<Locality>(),
        RawAttribute::new::<Cancel>(),
    ];

    fn send(&self, packet: &mut [u8], length: usize, duration: Jiffies) -> Result<usize> {
        let start = Instant::now();
        let result = self.exchange(packet, length, duration);

        self.control.counters().command(length, start, &result);
        Ok(result?)
    }

    fn cancel(&self) {
        self.control.cancel();
    }
}

impl GoingDown for Arc<Vtpm> {
    fn going_down(&self) {
        self.hurry();
    }
}

/// The files in debugfs.
fn debug_files<'data>(vtpm: &'data Arc<Vtpm>, folder: &ScopedDir<'data, '_>) {
    folder.read_callback_file(c"state", vtpm, &|vtpm, f| vtpm.standing.show(f));
    folder.read_callback_file(c"counters", vtpm, &|vtpm, f| {
        vtpm.control.counters().show(f)
    });
    folder.read_callback_file(c"latency", vtpm, &|vtpm, f| {
        vtpm.control.counters().show_latency(f)
    });
}

/// What belongs to one bound device.
pub(crate) struct Frontend {
    tpm: Arc<Tpm>,
    vtpm: Arc<Vtpm>,
    _notifier: Pin<KBox<Notifier<Arc<Vtpm>>>>,
    /// Not essential: without memory for it there is none.
    _folder: Option<Folder<Arc<Vtpm>>>,
}

/// Connects to the backend and registers the TPM, if the backend is there in time. What it is too
/// late for is done by [`backend_changed()`](bus::Driver::backend_changed).
fn connect(dev: &bus::Device<Core<'_>>, vtpm: &Vtpm, tpm: &Tpm) -> Result {
    let mut left = PROBE_WAIT_MS;

    // A backend that is connected has not noticed yet that its last frontend has gone. If that one
    // went without a word, as with a kernel that crashed and started this one, it never will.
    let parted = |state| (state != State::Connected).then_some(true);
    if !await_backend(dev, &mut { STALE_WAIT_MS }, parted) {
        dev_warn!(dev, "the backend has an old connection: closing that\n");
        dev.switch_state(State::Closing);
        await_backend(dev, &mut left, parted);
        dev.switch_state(State::Closed);
    }
    let waits = await_backend(dev, &mut left, |state| match state {
        State::Initialising | State::InitWait | State::Initialised => Some(true),
        State::Connected | State::Closing => None,
        State::Closed | State::Unknown => Some(false),
    });
    if waits {
        vtpm.offer(dev, Event::BackendReady)?;
    }

    let accepted = waits
        && await_backend(dev, &mut left, |state| match state {
            State::Initialising | State::InitWait | State::Initialised => None,
            State::Connected => Some(true),
            State::Closing | State::Closed | State::Unknown => Some(false),
        });
    if !accepted {
        dev_warn!(
            dev,
            "domain {} has no vTPM for us yet\n",
            dev.backend_domain()
        );
        return Ok(());
    }

    if vtpm.accept(dev) && tpm.prepare(dev) {
        tpm.register();
    }
    Ok(())
}

/// The driver.
pub(crate) struct Tpmfront;

impl bus::Driver for Tpmfront {
    type Data = Frontend;

    const DEVICE_TYPE: &'static CStr = c"vtpm";
    const FOLDER: &'static CStr = c"xen-tpmfront";

    fn probe(dev: &bus::Device<Core<'_>>) -> impl PinInit<Frontend, Error> {
        let bind = || {
            let vtpm = Vtpm::new(dev)?;
            let tpm = Tpm::new(vtpm.clone())?;

            connect(dev, &vtpm, &tpm)?;
            Ok(Frontend {
                _notifier: KBox::pin_init(Notifier::new(vtpm.clone()), GFP_KERNEL)?,
                _folder: folder(dev, vtpm.clone(), debug_files).ok(),
                tpm,
                vtpm,
            })
        };

        bind()
    }

    fn backend_changed(dev: &bus::Device<Core<'_>>, this: Pin<&Frontend>, state: State) {
        match state {
            State::Initialising | State::InitWait => this.vtpm.make_up(dev),
            State::Initialised | State::Connected => {
                if this.vtpm.accept(dev) && this.tpm.prepare(dev) {
                    // Where it waits already, it finds the new chip.
                    let _ = workqueue::system_long().enqueue(this.tpm.clone());
                }
            }
            State::Closing | State::Closed | State::Unknown => this.vtpm.close(dev),
        }
    }

    fn resume(dev: &bus::Device<Core<'_>>, this: Pin<&Frontend>) -> Result {
        this.vtpm.offer(dev, Event::Resumed)
    }

    fn unbind(dev: &bus::Device<Core<'_>>, this: Pin<&Frontend>) {
        // The core has some last words for a TPM 2.0 that it unregisters.
        this.vtpm.hurry();
        this.tpm.unregister();
        let silent = this.vtpm.stage() == Stage::Wedged;
        this.vtpm.close(dev);
        if silent {
            return;
        }

        // With the page unmapped, its grant need not be kept back from reuse.
        await_backend(dev, &mut { UNBIND_WAIT_MS }, |state| match state {
            State::Connected | State::Closing => None,
            _ => Some(true),
        });
    }
}
