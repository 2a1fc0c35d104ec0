// SPDX-License-Identifier: GPL-2.0

//! A reboot notifier: called when the system goes down, before devices are shut down.
//!
//! C header: [`include/linux/reboot.h`](srctree/include/linux/reboot.h)

use crate::xen_sys;
use kernel::{
    bindings,
    error::to_result,
    prelude::*,
    sync::Arc,
    types::Opaque, //
};

/// Handles reboots.
pub(crate) trait RebootHandler: Send + Sync {
    /// The system halts, reboots, or starts another kernel.
    fn reboot(&self);
}

/// A registered reboot notifier.
///
/// # Invariants
///
/// `block` is registered with `Self::notify`, except while it is made and dropped.
#[pin_data(PinnedDrop)]
pub(crate) struct RebootNotifier<T: RebootHandler> {
    #[pin]
    block: Opaque<bindings::notifier_block>,
    handler: Arc<T>,
}

// SAFETY: The block is only used by the chain, which has a lock.
unsafe impl<T: RebootHandler> Send for RebootNotifier<T> {}

// SAFETY: As above.
unsafe impl<T: RebootHandler> Sync for RebootNotifier<T> {}

impl<T: RebootHandler> RebootNotifier<T> {
    /// Registers a notifier that calls `handler`.
    pub(crate) fn new(handler: Arc<T>) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            handler,
            block <- Opaque::ffi_init(|slot: *mut bindings::notifier_block| {
                // SAFETY: `slot` is valid for writing.
                unsafe {
                    slot.write(bindings::notifier_block {
                        notifier_call: Some(Self::notify),
                        ..pin_init::zeroed()
                    })
                };
            }),
        })
        .pin_chain(|this| {
            // SAFETY: The block is initialised and pinned, and `drop()` takes it off the chain.
            to_result(unsafe { xen_sys::register_reboot_notifier(this.block.get()) })
        })
    }

    extern "C" fn notify(
        block: *mut bindings::notifier_block,
        _code: c_ulong,
        _data: *mut c_void,
    ) -> c_int {
        let block = Opaque::cast_from(block);
        // SAFETY: By the type invariants the block is a `RebootNotifier<T>`'s, which stays alive as
        // long as it is on the chain.
        let this = unsafe { &*kernel::container_of!(block, Self, block) };

        this.handler.reboot();
        // NOTIFY_DONE
        0
    }
}

#[pinned_drop]
impl<T: RebootHandler> PinnedDrop for RebootNotifier<T> {
    #[inline]
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: The block is initialised. One that is not on the chain is not found there; when
        // this returns the callback does not run and will not run again.
        unsafe { xen_sys::unregister_reboot_notifier(self.block.get()) };
    }
}
