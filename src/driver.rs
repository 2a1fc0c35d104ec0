// SPDX-License-Identifier: GPL-2.0

//! The vTPM frontend on xenbus: it offers the backend a page and an event channel, registers the
//! TPM once the backend is there, and keeps it registered while backends come and go.

use crate::{
    protocol::stage::{
        Event,
        Stage, //
    },
    registration::Tpm,
    vtpm::{
        debug_files,
        Vtpm, //
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
        reboot::Notifier,
    },
};
use kernel::{
    device::Core,
    prelude::*,
    sync::Arc,
    time::{
        delay::fsleep,
        Delta,
        Instant,
        Monotonic, //
    },
    workqueue, //
};

/// How long `probe()` waits for the backend. libxl gives backends 10 s to show up, too.
const PROBE_WAIT: Delta = Delta::from_millis(10_000);

/// How long `unbind()` waits for the backend to let go of the page.
const UNBIND_WAIT: Delta = Delta::from_millis(1_000);

/// How long it waits for a backend to notice that its last frontend has gone.
const STALE_WAIT: Delta = Delta::from_millis(1_000);

/// How often `probe()` and `unbind()` ask for the backend's state meanwhile. Both may run in the
/// very thread that takes xenstore's watches, so that a watch would not help them.
const POLL: Delta = Delta::from_millis(10);

/// Waits until the backend's state makes `decide` say something, or until `limit` after `start`.
fn await_backend(
    dev: &bus::Device<Core<'_>>,
    start: Instant<Monotonic>,
    limit: Delta,
    decide: impl Fn(State) -> Option<bool>,
) -> bool {
    loop {
        if let Some(decision) = decide(dev.backend_state()) {
            return decision;
        }
        if start.elapsed() >= limit {
            return false;
        }
        fsleep(POLL);
    }
}

/// What belongs to one bound device.
pub(crate) struct Frontend {
    tpm: Arc<Tpm>,
    vtpm: Arc<Vtpm>,
    _notifier: Pin<KBox<Notifier<Vtpm>>>,
    /// Not essential: without memory for it there is none.
    _folder: Option<Folder<Arc<Vtpm>>>,
}

/// Connects to the backend and registers the TPM, if the backend is there in time. What it is too
/// late for is done by [`backend_changed()`](bus::Driver::backend_changed).
fn connect(dev: &bus::Device<Core<'_>>, vtpm: &Vtpm, tpm: &Tpm) -> Result {
    let start = Instant::now();

    // A backend that is connected has not noticed yet that its last frontend has gone. If that one
    // went without a word, as with a kernel that crashed and started this one, it never will. Nor
    // does one get out of Closing whose frontend had no memory for its last word.
    let parted = |state| (!matches!(state, State::Connected | State::Closing)).then_some(true);
    if !await_backend(dev, start, STALE_WAIT, parted) {
        dev_warn!(dev, "the backend has an old connection: closing that\n");
        dev.switch_state(State::Closing);
        await_backend(dev, start, PROBE_WAIT, |state| {
            (state != State::Connected).then_some(true)
        });
        dev.switch_state(State::Closed);
    }
    let waits = await_backend(dev, start, PROBE_WAIT, |state| match state {
        State::Initialising | State::InitWait | State::Initialised => Some(true),
        State::Connected | State::Closing => None,
        State::Closed | State::Unknown => Some(false),
    });
    if waits {
        vtpm.offer(dev, Event::BackendReady)?;
    }

    let accepted = waits
        && await_backend(dev, start, PROBE_WAIT, |state| match state {
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

    if vtpm.accept(dev) {
        tpm.prepare(dev);
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
    // It has been waited for in `probe()`.
    const ESSENTIAL: bool = false;

    fn probe(dev: &bus::Device<Core<'_>>) -> impl PinInit<Frontend, Error> {
        let bind = || {
            let vtpm = Vtpm::new(dev)?;
            let tpm = Tpm::new(vtpm.clone())?;

            connect(dev, &vtpm, &tpm)?;
            Ok(Frontend {
                _notifier: KBox::pin_init(Notifier::new(vtpm.clone()), GFP_KERNEL)?,
                _folder: folder::<Self, _, _>(dev, vtpm.clone(), debug_files).ok(),
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
                if this.vtpm.accept(dev) {
                    this.tpm.prepare(dev);
                    // Where it waits already, it finds the new chip, and the new connection.
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
        await_backend(dev, Instant::now(), UNBIND_WAIT, |state| match state {
            State::Connected | State::Closing => None,
            _ => Some(true),
        });
    }
}
