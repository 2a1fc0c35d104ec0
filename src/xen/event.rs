// SPDX-License-Identifier: GPL-2.0

//! An event channel to a device's backend, with late end-of-interrupt.
//!
//! C header: [`include/xen/events.h`](srctree/include/xen/events.h)

use crate::{
    xen::bus,
    xen_sys, //
};
use core::ptr::from_ref;
use kernel::{
    bindings,
    error::to_result,
    prelude::*,
    sync::aref::ARef, //
};

/// How an event is ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Eoi {
    /// There was a reason for it. The channel is unmasked for the next event at once.
    Normal,
    /// There was none. Xen's core delays the next event once there were two of these without a
    /// normal one between them, so that a storm costs the sender.
    Spurious,
}

/// Handles the events of a channel.
pub(crate) trait Handler: Send + Sync {
    /// Handles one event. Runs in interrupt context: in hard interrupt context, but on PREEMPT_RT.
    fn handle(&self) -> Eoi;
}

/// An event channel with its handler.
///
/// # Invariants
///
/// `irq` is bound to `port`, its name is that of `_dev`, and `handler` is the cookie of its
/// handler, which is pinned until the interrupt is unbound.
pub(crate) struct EventChannel<H: Handler> {
    irq: c_uint,
    port: xen_sys::evtchn_port_t,
    // Dropped after `drop()` has unbound the interrupt.
    handler: Pin<KBox<H>>,
    _dev: ARef<bus::Device>,
}

impl<H: Handler> EventChannel<H> {
    /// Allocates a port for the device's backend and binds it to `handler`, which may run before
    /// this returns. The interrupt has the device's name.
    pub(crate) fn new(bus: &mut bus::BusGuard<'_>, handler: Pin<KBox<H>>) -> Result<Self> {
        let dev: ARef<bus::Device> = (&**bus).into();
        let name: &kernel::device::Device = (*dev).as_ref();
        let mut port = 0;

        // SAFETY: The device is bound, and so knows its backend. A failure changes the device's
        // state, which the guard allows.
        to_result(unsafe { xen_sys::xenbus_alloc_evtchn(bus.as_raw(), &mut port) })?;

        // SAFETY: `handler` stays where it is until `drop()` has unbound the interrupt;
        // `Self::interrupt` takes a pointer to it. `name` is the device's, which is kept for
        // longer.
        let irq = unsafe {
            xen_sys::bind_evtchn_to_irqhandler_lateeoi(
                port,
                Some(Self::interrupt),
                0,
                name.name().as_char_ptr(),
                from_ref(&*handler).cast_mut().cast(),
            )
        };
        // A binding that failed has closed the port, unless the interrupt's descriptor could not be
        // allocated. To close it again might close a new owner's port; to lose a port when there is
        // no memory is the lesser evil.
        to_result(irq)?;

        // INVARIANT: The binding succeeded.
        Ok(Self {
            // CAST: Not negative, or `to_result()` had returned.
            irq: irq as c_uint,
            port,
            handler,
            _dev: dev,
        })
    }

    extern "C" fn interrupt(irq: c_int, handler: *mut c_void) -> bindings::irqreturn_t {
        // SAFETY: By the type invariants the cookie is a pinned `H` that outlives the binding.
        let handler = unsafe { &*handler.cast::<H>() };
        let flags = match handler.handle() {
            Eoi::Normal => 0,
            Eoi::Spurious => xen_sys::XEN_EOI_FLAG_SPURIOUS,
        };

        // SAFETY: `irq` is bound with late EOI, and this is its one EOI for this interrupt.
        unsafe { xen_sys::xen_irq_lateeoi(irq as c_uint, flags) };
        xen_sys::compat::IRQ_HANDLED
    }

    /// The port, for the backend to bind to.
    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    /// The handler.
    pub(crate) fn handler(&self) -> &H {
        &self.handler
    }

    /// Notifies the backend.
    pub(crate) fn notify(&self) {
        // SAFETY: By the type invariants `irq` is bound to an event channel.
        unsafe { xen_sys::notify_remote_via_irq(self.irq as c_int) };
    }
}

impl<H: Handler> Drop for EventChannel<H> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariants this is the interrupt's cookie. The call returns when the
        // handler does not run and will not run again, and closes the port; only then
        // `self.handler` is dropped.
        unsafe {
            xen_sys::unbind_from_irqhandler(self.irq, from_ref(&*self.handler).cast_mut().cast())
        };
    }
}
