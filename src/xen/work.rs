// SPDX-License-Identifier: GPL-2.0

//! Waiting for work items, for which `kernel::workqueue` (as of 7.3) has no calls.
//!
//! C header: [`include/linux/workqueue.h`](srctree/include/linux/workqueue.h)

use kernel::{
    bindings, container_of,
    sync::Arc,
    workqueue::{
        HasDelayedWork,
        HasWork,
        Work, //
    },
};

/// The raw form of an item's work.
fn raw_work<T: HasWork<T, ID>, const ID: u64>(item: &Arc<T>) -> *mut bindings::work_struct {
    // SAFETY: The item is alive as long as `item`, and the pointer is only used to find its field.
    let work = unsafe { T::raw_get_work(Arc::as_ptr(item).cast_mut()) };

    // SAFETY: The field is within the item.
    unsafe { Work::raw_get(work) }
}

/// Waits until an item that was enqueued has run, and runs no longer. Nothing may enqueue it
/// meanwhile. A module has to call this before it can be unloaded.
pub(crate) fn flush<T: HasWork<T, ID>, const ID: u64>(item: &Arc<T>) {
    // SAFETY: The work item is initialised, as `Work` has no other way to be made, and stays alive.
    unsafe { bindings::flush_work(raw_work(item)) };
}

/// As [`flush`], for an item that may be delayed: it runs now.
pub(crate) fn flush_delayed<T: HasDelayedWork<T, ID>, const ID: u64>(item: &Arc<T>) {
    let work = raw_work::<T, ID>(item);

    // SAFETY: By `HasDelayedWork` this is the `work` of a `delayed_work`, which is initialised and
    // stays alive.
    unsafe { bindings::flush_delayed_work(container_of!(work, bindings::delayed_work, work)) };
}
