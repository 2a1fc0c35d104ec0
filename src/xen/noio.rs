// SPDX-License-Identifier: GPL-2.0

//! A scope in which no allocation waits for I/O.
//!
//! C header: [`include/linux/sched/mm.h`](srctree/include/linux/sched/mm.h)

use crate::xen_sys;
use kernel::types::NotThreadSafe;

/// As long as this exists, the current task's allocations are GFP_NOIO. For code that must not wait
/// for a disk, such as one whose own device is resumed later.
pub(crate) struct NoIo {
    flags: u32,
    _task: NotThreadSafe,
}

impl NoIo {
    /// Enters the scope.
    pub(crate) fn enter() -> Self {
        Self {
            // SAFETY: There are no requirements.
            flags: unsafe { xen_sys::rust_helper_memalloc_noio_save() },
            _task: NotThreadSafe,
        }
    }
}

impl Drop for NoIo {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: These are the flags of this very task, since `Self` stays with it.
        unsafe { xen_sys::rust_helper_memalloc_noio_restore(self.flags) };
    }
}
