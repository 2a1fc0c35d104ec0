// SPDX-License-Identifier: GPL-2.0

//! To be told that the system goes down, before devices are shut down.
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

/// Who is told.
pub(crate) trait GoingDown: Send + Sync {
    /// The system halts, reboots, or starts another kernel.
    fn going_down(&self);
}

/// Tells somebody, until it is dropped.
///
/// # Invariants
///
/// `block` is registered with `Self::notify`, but while it is made and dropped.
#[pin_data(PinnedDrop)]
pub(crate) struct Notifier<T: GoingDown> {
    #[pin]
    block: Opaque<bindings::notifier_block>,
    target: Arc<T>,
}

// SAFETY: The block is only used by the chain, which has a lock.
unsafe impl<T: GoingDown> Send for Notifier<T> {}

// SAFETY: As above.
unsafe impl<T: GoingDown> Sync for Notifier<T> {}

impl<T: GoingDown> Notifier<T> {
    /// Tells `target` from now on.
    pub(crate) fn new(target: Arc<T>) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            target,
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
        // SAFETY: By the type invariants the block is a `Notifier<T>`'s, which stays alive as long
        // as it is on the chain.
        let this = unsafe { &*kernel::container_of!(block, Self, block) };

        this.target.going_down();
        // NOTIFY_DONE: nothing that the others had to know.
        0
    }
}

#[pinned_drop]
impl<T: GoingDown> PinnedDrop for Notifier<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: The block is initialised. One that is not on the chain is not found there; when
        // this returns the callback does not run and will not run again.
        unsafe { xen_sys::unregister_reboot_notifier(self.block.get()) };
    }
}
