// SPDX-License-Identifier: GPL-2.0

//! The vTPM frontend on xenbus: it offers the backend a page and an event channel, registers the
//! TPM once the backend is connected, and keeps it registered while backends come and go.

use crate::{
    debugfs,
    protocol::state::{
        ConnEvent,
        ConnState, //
    },
    registration,
    vtpm::Vtpm,
    xen::{
        bus::{
            self,
            BusLock,
            State, //
        },
        completion::now,
        reboot::RebootNotifier,
    },
};
use kernel::{
    debugfs::Scope,
    device::Core,
    prelude::*,
    sync::Arc,
    time::{
        delay::fsleep,
        msecs_to_jiffies,
        Delta,
        Jiffies, //
    },
};

/// How long `probe()` waits for a backend to take the vTPM. libxl gives backends 10 s, too.
const CONNECT_TIMEOUT_MS: u32 = 10_000;

/// How long it waits in all for one that has taken it (InitWait) to connect: that may have the
/// state of a new TPM to make, and IMA looks for a TPM once.
const SETUP_TIMEOUT_MS: u32 = 20_000;

/// How long `probe()` waits in all, for the backend and for the TPM to be registered.
const PROBE_TIMEOUT_MS: u32 = 30_000;

/// How long `unbind()` waits for the backend to unmap the page.
const UNBIND_TIMEOUT_MS: u32 = 1_000;

/// How long `probe()` waits for a backend to notice that its last frontend has gone.
const STALE_TIMEOUT_MS: u32 = 1_000;

/// The interval at which `probe()` and `unbind()` read the backend's state. Both may run in the
/// very thread that handles xenstore's watches, so that a watch would not help them.
const POLL_INTERVAL: Delta = Delta::from_millis(10);

/// The driver data of one bound device. Dropped in this order.
pub(crate) struct Frontend {
    _notifier: Pin<KBox<RebootNotifier<Vtpm>>>,
    _debugfs: Option<Pin<KBox<Scope<[debugfs::Shown; 2]>>>>,
    vtpm: Arc<Vtpm>,
}

impl Frontend {
    fn new(dev: &bus::Device<Core<'_>>, bus: Arc<BusLock>) -> Result<Self> {
        let vtpm = Vtpm::new(dev, bus)?;
        let name: &kernel::device::Device<_> = dev.as_ref();

        Ok(Self {
            _notifier: KBox::pin_init(RebootNotifier::new(vtpm.clone()), GFP_KERNEL)?,
            // Without memory for it there is none.
            _debugfs: KBox::pin_init(
                Scope::dir(
                    Ok::<_, Error>(debugfs::Shown::all(&vtpm)),
                    name.name(),
                    debugfs::files,
                ),
                GFP_KERNEL,
            )
            .ok(),
            vtpm,
        })
    }

    /// Polls the backend's state while it is one of `states`, but not for longer than `timeout_ms`
    /// after `start`, nor when the system begins to shut down. Returns the last state.
    fn wait_while(
        &self,
        dev: &bus::Device<Core<'_>>,
        states: &[State],
        start: Jiffies,
        timeout_ms: u32,
    ) -> State {
        let timeout = msecs_to_jiffies(timeout_ms);
        let shutting_down = self.vtpm.is_shutting_down();

        loop {
            let state = dev.backend_state();

            if !states.contains(&state)
                || now().wrapping_sub(start) >= timeout
                || self.vtpm.is_shutting_down() != shutting_down
            {
                return state;
            }
            fsleep(POLL_INTERVAL);
        }
    }

    /// Connects to the backend, if it is there in time. Returns whether it is. If not,
    /// [`backend_changed()`](bus::Driver::backend_changed) completes the setup.
    fn connect(&self, dev: &bus::Device<Core<'_>>, bus: &BusLock, start: Jiffies) -> Result<bool> {
        let busy = [State::Connected, State::Closing];
        let ready = [State::Initialising, State::InitWait, State::Initialised];

        // The backend may still be connected to a previous frontend, e.g. of a kernel that crashed
        // before kexec, or stuck in Closing because that frontend could not write Closed. Force it
        // through Closing and Closed.
        if busy.contains(&self.wait_while(dev, &busy, start, STALE_TIMEOUT_MS)) {
            dev_warn!(dev, "the backend has an old connection: closing that\n");
            bus.lock()?.switch_state(State::Closing);
            self.wait_while(dev, &[State::Connected], start, CONNECT_TIMEOUT_MS);
            bus.lock()?.switch_state(State::Closed);
        }
        if !ready.contains(&self.wait_while(dev, &busy, start, CONNECT_TIMEOUT_MS)) {
            return Ok(false);
        }

        self.vtpm.setup_connection(ConnEvent::BackendReady)?;
        self.wait_while(dev, &[State::Initialising], start, CONNECT_TIMEOUT_MS);
        Ok(
            self.wait_while(dev, &ready[1..], start, SETUP_TIMEOUT_MS) == State::Connected
                && self.vtpm.backend_connected(dev),
        )
    }
}

/// The driver.
pub(crate) struct Tpmfront;

impl bus::Driver for Tpmfront {
    type Data = Frontend;

    const DEVICE_TYPE: &'static CStr = c"vtpm";
    // `probe()` has waited for it.
    const NOT_ESSENTIAL: bool = true;

    #[inline]
    fn probe(dev: &bus::Device<Core<'_>>, bus: Arc<BusLock>) -> impl PinInit<Frontend, Error> {
        let start = now();
        let bind = || {
            let this = Frontend::new(dev, bus.clone())?;

            let missing = if !this.connect(dev, &bus, start)? {
                "has no vTPM for us yet"
            } else {
                registration::start(&this.vtpm);
                let elapsed = now().wrapping_sub(start);
                let left = msecs_to_jiffies(PROBE_TIMEOUT_MS).saturating_sub(elapsed);
                if registration::wait(&this.vtpm, left) {
                    return Ok(this);
                }
                "has a TPM that takes long to be ready: not waiting for it"
            };

            if this.vtpm.connection.state() != ConnState::Unsupported {
                dev_warn!(dev, "domain {} {}\n", dev.otherend_id(), missing);
            }
            Ok(this)
        };

        bind()
    }

    #[inline]
    fn backend_changed(dev: &bus::Device<Core<'_>>, this: Pin<&Frontend>, state: State) {
        match state {
            State::Initialising | State::InitWait => this.vtpm.backend_ready(dev),
            State::Initialised | State::Connected => {
                if this.vtpm.backend_connected(dev) {
                    registration::start(&this.vtpm);
                }
            }
            State::Closing | State::Closed => this.vtpm.backend_closed(),
            // A backend whose state is gone has gone. One that cannot be read, or has no meaning,
            // says nothing about the connection.
            State::Unknown => {
                if dev.read_otherend(c"state").is_err_and(|e| e == ENOENT) {
                    this.vtpm.backend_closed();
                }
            }
        }
    }

    #[inline]
    fn resume(_dev: &bus::Device<Core<'_>>, this: Pin<&Frontend>) {
        this.vtpm.connect(ConnEvent::Resumed);
    }

    #[inline]
    fn unbind(dev: &bus::Device<Core<'_>>, this: Pin<&Frontend>) {
        // tpm_chip_unregister() sends TPM2_Shutdown; limit that to one second.
        this.vtpm.begin_shutdown();
        this.vtpm.flush_reconnect();
        registration::unregister(&this.vtpm);
        if this.vtpm.disconnect() == ConnState::Wedged {
            return;
        }

        // With the page unmapped, its grant need not be kept back from reuse.
        this.wait_while(
            dev,
            &[State::Connected, State::Closing],
            now(),
            UNBIND_TIMEOUT_MS,
        );
    }
}

impl Drop for Frontend {
    #[inline]
    fn drop(&mut self) {
        // Has been done by `unbind()`, unless `probe()` failed.
        self.vtpm.begin_shutdown();
        self.vtpm.flush_reconnect();
        registration::unregister(&self.vtpm);
    }
}
