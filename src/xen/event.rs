// SPDX-License-Identifier: GPL-2.0

//! An event channel to a device's other end with late end-of-interrupt, and a way to sleep until
//! its handler, or somebody else, has news.
//!
//! C headers: [`include/xen/events.h`](srctree/include/xen/events.h),
//! [`include/linux/completion.h`](srctree/include/linux/completion.h)

use crate::{
    xen::bus,
    xen_sys, //
};
use core::ptr::from_ref;
use kernel::{
    bindings,
    device::Bound,
    error::to_result,
    prelude::*,
    sync::aref::ARef,
    time::Jiffies,
    types::Opaque, //
};

/// What a handler made of an event.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// It was waited for. The channel is open for the next one at once.
    Expected,
    /// Nobody waited for it. Xen's core keeps the channel shut for the longer, the more of these
    /// come in a row, so that a storm costs the sender.
    Spurious,
}

/// What runs, in hard interrupt context, when the other end notifies.
pub(crate) trait Handler: Send + Sync {
    /// Takes one event.
    fn handle(&self) -> Event;
}

/// An allocated port that is not bound to an interrupt yet.
struct Port {
    dev: ARef<bus::Device>,
    port: xen_sys::evtchn_port_t,
}

impl Port {
    fn new(dev: &bus::Device<Bound>) -> Result<Self> {
        let mut port = 0;

        // SAFETY: `dev` is a valid xenbus device that knows its other end, as it is bound.
        to_result(unsafe { xen_sys::xenbus_alloc_evtchn(dev.as_raw(), &mut port) })?;
        Ok(Self {
            dev: dev.into(),
            port,
        })
    }

    /// Hands the port over to whoever closes it from now on.
    fn into_inner(self) -> xen_sys::evtchn_port_t {
        let port = self.port;

        // SAFETY: The field is not used again, as `forget()` follows.
        drop(unsafe { core::ptr::read(&self.dev) });
        core::mem::forget(self);
        port
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        // SAFETY: The device is valid, and the port was allocated for it and is bound to nothing.
        // A failure is reported by the callee, and there is nothing that could be done about it.
        unsafe { xen_sys::xenbus_free_evtchn(self.dev.as_raw(), self.port) };
    }
}

/// An event channel with its handler.
///
/// # Invariants
///
/// `irq` is bound to `port`, and `handler` is the cookie of its handler, which is pinned until
/// the interrupt is unbound.
pub(crate) struct EventChannel<H: Handler> {
    irq: c_uint,
    port: xen_sys::evtchn_port_t,
    handler: Pin<KBox<H>>,
}

impl<H: Handler> EventChannel<H> {
    /// Allocates a port for `dev`'s other end and binds it to `handler`, which may run before
    /// this returns.
    pub(crate) fn new(
        dev: &bus::Device<Bound>,
        name: &'static CStr,
        handler: Pin<KBox<H>>,
    ) -> Result<Self> {
        let port = Port::new(dev)?;

        // SAFETY: `handler` stays where it is until `drop()` has unbound the interrupt;
        // `Self::interrupt` takes a pointer to it. `name` is never freed.
        let irq = unsafe {
            xen_sys::bind_evtchn_to_irqhandler_lateeoi(
                port.port,
                Some(Self::interrupt),
                0,
                name.as_char_ptr(),
                from_ref(&*handler).cast_mut().cast(),
            )
        };
        to_result(irq)?;

        // INVARIANT: The binding succeeded. Unbinding closes the port, too.
        Ok(Self {
            // CAST: Not negative, or `to_result()` had returned.
            irq: irq as c_uint,
            port: port.into_inner(),
            handler,
        })
    }

    extern "C" fn interrupt(irq: c_int, handler: *mut c_void) -> bindings::irqreturn_t {
        // SAFETY: By the type invariants the cookie is a pinned `H` that outlives the binding.
        let handler = unsafe { &*handler.cast::<H>() };
        let flags = match handler.handle() {
            Event::Expected => 0,
            Event::Spurious => xen_sys::XEN_EOI_FLAG_SPURIOUS,
        };

        // SAFETY: `irq` is bound with late EOI, and this is its one EOI for this interrupt.
        unsafe { xen_sys::xen_irq_lateeoi(irq as c_uint, flags) };
        xen_sys::compat::IRQ_HANDLED
    }

    /// The port, for the other end to bind to.
    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    /// The handler.
    pub(crate) fn handler(&self) -> &H {
        &self.handler
    }

    /// Notifies the other end.
    pub(crate) fn notify(&self) {
        // SAFETY: By the type invariants `irq` is bound to an event channel.
        unsafe { xen_sys::notify_remote_via_irq(self.irq as c_int) };
    }
}

impl<H: Handler> Drop for EventChannel<H> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants this is the interrupt's cookie. The call returns when the
        // handler does not run and will not run again; only then `self.handler` is dropped.
        unsafe {
            xen_sys::unbind_from_irqhandler(self.irq, from_ref(&*self.handler).cast_mut().cast())
        };
    }
}

/// How a wait ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// There is news.
    News,
    /// The time is over.
    TimedOut,
    /// A fatal signal is pending for the waiting task.
    Killed,
}

/// Something to wait for, with a limit. News that comes while nobody waits is kept.
#[pin_data]
pub(crate) struct News {
    #[pin]
    completion: Opaque<bindings::completion>,
}

// SAFETY: A `struct completion` may be used from any thread.
unsafe impl Send for News {}

// SAFETY: All methods of a `struct completion` may be called concurrently.
unsafe impl Sync for News {}

impl News {
    /// The clock that limits are counted by. What a wait leaves of its limit is no measure: news
    /// that came before it costs it no time.
    pub(crate) fn now() -> Jiffies {
        // SAFETY: `jiffies` is always there, and the clock's interrupt writes it in one piece.
        unsafe { (&raw const bindings::jiffies).read_volatile() }
    }

    /// Nothing new yet.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            completion <- Opaque::ffi_init(|slot: *mut bindings::completion| {
                // SAFETY: `slot` is valid for initialisation, and pinned.
                unsafe { bindings::init_completion(slot) };
            }),
        })
    }

    /// Forgets what came so far. For the one waiter only, while it does not wait.
    pub(crate) fn forget(&self) {
        // SAFETY: The completion is initialised.
        unsafe { xen_sys::rust_helper_reinit_completion(self.completion.get()) };
    }

    /// Ends the current wait, or the next one. May be called in interrupt context.
    pub(crate) fn announce(&self) {
        // SAFETY: The completion is initialised.
        unsafe { bindings::complete(self.completion.get()) };
    }

    /// Sleeps until there is news, `limit` is over, or the task is killed.
    pub(crate) fn wait_killable(&self, limit: Jiffies) -> Wait {
        // SAFETY: The completion is initialised, and this is process context.
        let left =
            unsafe { bindings::wait_for_completion_killable_timeout(self.completion.get(), limit) };

        match left {
            0 => Wait::TimedOut,
            left if left > 0 => Wait::News,
            _ => Wait::Killed,
        }
    }

    /// Sleeps until there is news or `limit` is over, whatever signals come.
    pub(crate) fn wait(&self, limit: Jiffies) -> Wait {
        // SAFETY: The completion is initialised, and this is process context.
        match unsafe { bindings::wait_for_completion_timeout(self.completion.get(), limit) } {
            0 => Wait::TimedOut,
            _ => Wait::News,
        }
    }
}
