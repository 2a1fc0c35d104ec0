// SPDX-License-Identifier: GPL-2.0

//! One vTPM: its connection to the backend, from the offer to the end, and the commands on it.

use crate::{
    exchange::{
        Channel,
        Control, //
    },
    identity::Identity,
    locality::Locality,
    pace::Pace,
    protocol::{
        exchange::{
            Control as _,
            Failure, //
        },
        layout,
        life::{
            Life,
            Version,
            QUESTION, //
        },
        stage::{
            Event,
            Stage, //
        },
    },
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
        reboot::GoingDown,
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
    time::Jiffies, //
};

/// Room for an answer to [`QUESTION`].
const ANSWER: usize = 64;

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
    #[pin]
    identity: Identity,
    again: Pace,
    lost: Pace,
}

impl Vtpm {
    pub(crate) fn new(dev: &bus::Device<Bound>) -> Result<Arc<Self>> {
        let dev = dev.into();
        let control = Arc::pin_init(Control::new(), GFP_KERNEL)?;

        Arc::pin_init(
            pin_init!(Self {
                dev,
                control,
                locality: Atomic::new(0),
                link <- new_mutex!(None),
                standing <- Standing::new(),
                identity <- Identity::new(),
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
    pub(crate) fn stage(&self) -> Stage {
        self.standing.stage()
    }

    /// Moves the connection on, if the event is one for its stage.
    fn advance(&self, _link: &mut Link, event: Event) -> bool {
        self.standing.advance(event)
    }

    /// The device or the system is going down: nothing is waited for any more, but last words for a
    /// second.
    pub(crate) fn hurry(&self) {
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
    pub(crate) fn offer(&self, dev: &bus::Device<Bound>, event: Event) -> Result {
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

    /// The backend took the channel that it was offered. Returns whether that is news, and which
    /// TPM it is can be found out: to [`compare`](Self::compare) it, or to register it.
    pub(crate) fn accept(&self, dev: &bus::Device<Core<'_>>) -> bool {
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
            self.advance(&mut link, Event::OtherProtocol);
            return false;
        }

        dev.switch_state(State::Connected);
        self.control.connected();
        if self.control.counters().connected() && self.again.allows() {
            dev_info!(dev, "connected again, to domain {}\n", dev.backend_domain());
        }
        self.identity.connected(dev);
        self.advance(&mut link, Event::BackendConnected);
        if self.identity.version().is_none() {
            self.advance(&mut link, Event::SameTpm);
        }
        true
    }

    /// A TPM of this version is registered, and every later one has to be the same.
    pub(crate) fn registered(&self, version: Version) {
        self.identity.registered(version);
        self.compare();
    }

    /// Finds out whether the TPM is the one that is registered, before anybody else has a command
    /// carried out. Its answer may take long.
    pub(crate) fn compare(&self) {
        let mut link = self.link.lock();
        let (Stage::Asked | Stage::Up, Some(version)) = (self.stage(), self.identity.version())
        else {
            return;
        };
        let mut packet = [0; ANSWER];

        packet[..QUESTION].copy_from_slice(&version.question());
        let life = match self.carry_out(&mut link, &mut packet, QUESTION, 0) {
            Ok(length) => version.life(packet.get(..length).unwrap_or_default()),
            // Whoever hung up sees to the rest.
            Err(Failure::NoBackend) => return,
            Err(_) if self.stage() == Stage::Wedged => return,
            // Others will be told by their own commands that it does not work.
            Err(_) => Life::Untold,
        };
        let event = if self.identity.is_same(&self.dev, life) {
            Event::SameTpm
        } else {
            Event::OtherTpm
        };
        self.advance(&mut link, event);
    }

    /// The backend is here and waits for an offer.
    pub(crate) fn make_up(&self, dev: &bus::Device<Bound>) {
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
    pub(crate) fn close(&self, dev: &bus::Device<Bound>) {
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
        self.standing.await_offer()?;
        // A backend that does not tell which TPM it has is not waited for by those who could not be
        // killed meanwhile.
        if let Some(failure) = self.stage().failure() {
            return Err(failure);
        }

        let mut link = self.link.lock();
        if let Some(failure) = self.stage().failure() {
            return Err(failure);
        }
        self.carry_out(&mut link, packet, length, duration)
    }

    /// Carries out a command on the channel that there is, and gives that up if it is wedged by it.
    fn carry_out(
        &self,
        link: &mut Link,
        packet: &mut [u8],
        length: usize,
        duration: Jiffies,
    ) -> Result<usize, Failure> {
        let channel = link.as_mut().ok_or(Failure::NoBackend)?;

        let result = channel.exchange(packet, length, self.locality(), duration);
        // Whoever hung up sees to the rest.
        if channel.is_wedged() && result != Err(Failure::NoBackend) {
            self.reconnect(link);
        }
        result
    }
}

/// Whether the backend says that it speaks the protocol of this driver.
fn speaks_protocol(dev: &bus::Device<Core<'_>>) -> bool {
    dev.backend_value(c"feature-protocol-v2")
        .is_ok_and(|value| layout::speaks_protocol(value.bytes()))
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
        let counters = self.control.counters();
        let start = counters.begin();
        let result = self.exchange(packet, length, duration);

        counters.command(length, start, &result);
        Ok(result?)
    }

    fn cancel(&self) {
        self.control.cancel();
        self.standing.cancel();
    }
}

impl GoingDown for Vtpm {
    fn going_down(&self) {
        self.hurry();
    }
}

/// The files in debugfs.
pub(crate) fn debug_files<'data>(vtpm: &'data Arc<Vtpm>, folder: &ScopedDir<'data, '_>) {
    folder.read_callback_file(c"state", vtpm, &|vtpm, f| vtpm.standing.show(f));
    folder.read_callback_file(c"counters", vtpm, &|vtpm, f| {
        vtpm.control.counters().show(f)
    });
    folder.read_callback_file(c"latency", vtpm, &|vtpm, f| {
        vtpm.control.counters().show_latency(f)
    });
}
