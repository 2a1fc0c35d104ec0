// SPDX-License-Identifier: GPL-2.0

//! The end of a work item: what `kernel::workqueue` has no call for yet.
//!
//! C header: [`include/linux/workqueue.h`](srctree/include/linux/workqueue.h)

use kernel::{
    bindings,
    sync::Arc,
    workqueue::{
        HasWork,
        Work, //
    },
};

/// Waits until an item that was enqueued has run, and runs no longer. Whoever may enqueue it again
/// has stopped doing so. A module has to call this before it can go.
pub(crate) fn finish<T: HasWork<T>>(item: &Arc<T>) {
    // SAFETY: The item is alive as long as `item`, and the pointer is only used to find its field.
    let work = unsafe { T::raw_get_work(Arc::as_ptr(item).cast_mut()) };
    // SAFETY: The field is within the item.
    let work = unsafe { Work::raw_get(work) };

    // SAFETY: The work item is initialised, as `Work` has no other way to be made, and stays alive.
    unsafe { bindings::flush_work(work) };
}
