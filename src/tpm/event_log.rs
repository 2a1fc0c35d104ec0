// SPDX-License-Identifier: GPL-2.0

//! A chip's log of what was measured before the kernel ran, as the core shows those of firmware:
//! `tpmN/binary_bios_measurements` in securityfs. The core (as of 7.3) asks firmware alone for one.
//!
//! C headers: [`include/linux/security.h`](srctree/include/linux/security.h),
//! [`include/linux/fs.h`](srctree/include/linux/fs.h)

use super::chip::ChipOps;
use core::{
    marker::PhantomData,
    ptr, //
};
use kernel::{
    error::from_err_ptr,
    prelude::*,
    sync::{
        Arc,
        ArcBorrow,
        UniqueArc, //
    }, //
};

#[cfg(CONFIG_SECURITYFS)]
use kernel::bindings;

/// With what the header defines inline for a kernel without securityfs, so that bindgen has none.
#[cfg(not(CONFIG_SECURITYFS))]
mod bindings {
    pub(super) use kernel::bindings::*;
    use kernel::{
        ffi::{
            c_char,
            c_void, //
        },
        prelude::ENODEV, //
    };

    pub(super) unsafe fn securityfs_create_dir(_: *const c_char, _: *mut dentry) -> *mut dentry {
        ENODEV.to_ptr()
    }

    pub(super) unsafe fn securityfs_create_file(
        _: *const c_char,
        _: umode_t,
        _: *mut dentry,
        _: *mut c_void,
        _: *const file_operations,
    ) -> *mut dentry {
        ENODEV.to_ptr()
    }

    pub(super) unsafe fn securityfs_remove(_: *mut dentry) {}
}

/// The longest log that there is room for.
pub(crate) const MAX_EVENT_LOG: usize = 3 * 4096;

/// A log.
pub(crate) struct EventLog {
    bytes: [u8; MAX_EVENT_LOG],
    length: usize,
}

impl EventLog {
    /// Makes an empty log.
    pub(crate) fn new() -> Result<UniqueArc<Self>> {
        UniqueArc::init(
            init!(Self {
                bytes <- pin_init::init_zeroed(),
                length: 0,
            }),
            GFP_KERNEL,
        )
    }

    /// The log's bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        // There never are more.
        self.bytes.get(..self.length).unwrap_or_default()
    }

    /// Adds what `write` writes to the room that is left. It returns how much that is, or `None`
    /// for nothing that could be added.
    pub(crate) fn extend(&mut self, write: impl FnOnce(&mut [u8]) -> Option<usize>) -> Result {
        let length = self.length;
        let room = self.bytes.get_mut(length..).unwrap_or_default();
        let left = room.len();

        match write(room) {
            Some(more) if more <= left => {
                self.length = length + more;
                Ok(())
            }
            _ => Err(EINVAL),
        }
    }
}

/// The directory of a chip, with the file. Open files keep the log for longer.
///
/// # Invariants
///
/// `dir` is a directory in securityfs that this object made; the one file in it, if there is one,
/// has `_log` as its private data.
pub(super) struct EventLogDir<T: ChipOps> {
    dir: *mut bindings::dentry,
    // Dropped after `drop()` has removed the file.
    _log: Arc<EventLog>,
    ops: PhantomData<fn() -> T>,
}

// SAFETY: securityfs has locks of its own.
unsafe impl<T: ChipOps> Send for EventLogDir<T> {}

// SAFETY: As above.
unsafe impl<T: ChipOps> Sync for EventLogDir<T> {}

impl<T: ChipOps> EventLogDir<T> {
    const FILE_OPS: &'static bindings::file_operations = &bindings::file_operations {
        owner: T::MODULE.as_ptr(),
        open: Some(Self::open),
        read: Some(Self::read),
        release: Some(Self::release),
        ..pin_init::zeroed()
    };

    /// Makes the directory and the file.
    pub(super) fn new(name: &CStr, log: Arc<EventLog>) -> Result<Self> {
        // SAFETY: The name is terminated. Without a parent it is in securityfs' root.
        let dir = from_err_ptr(unsafe {
            bindings::securityfs_create_dir(name.as_char_ptr(), ptr::null_mut())
        })?;
        let data = Arc::as_ptr(&log);

        // INVARIANT: It was just made.
        let this = Self {
            dir,
            _log: log,
            ops: PhantomData,
        };
        // SAFETY: The directory is there; the operations are never freed and, as they name their
        // module, not unloaded while the file is open; the log is there as long as the file.
        from_err_ptr(unsafe {
            bindings::securityfs_create_file(
                c"binary_bios_measurements".as_char_ptr(),
                0o440,
                dir,
                data.cast_mut().cast(),
                Self::FILE_OPS,
            )
        })?;
        Ok(this)
    }

    extern "C" fn open(inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        // SAFETY: The VFS gives a valid inode and a valid file. Under this lock securityfs makes
        // the count of links zero when it removes the file, which is before the log may go: while
        // it is not zero, the inode's data is that of `new()`.
        unsafe {
            let lock = &raw mut (*inode).i_rwsem;

            bindings::down_write(lock);
            let there = (*inode).__bindgen_anon_1.i_nlink != 0;
            if there {
                let log = ArcBorrow::<EventLog>::from_raw((*inode).i_private.cast());

                (*file).private_data = Arc::into_raw(log.into()).cast_mut().cast();
            }
            bindings::up_write(lock);
            if there {
                0
            } else {
                ENODEV.to_errno()
            }
        }
    }

    extern "C" fn read(
        file: *mut bindings::file,
        to: *mut c_char,
        count: usize,
        position: *mut bindings::loff_t,
    ) -> isize {
        // SAFETY: The file is open: `open()` has stored a reference in it.
        let log = unsafe { ArcBorrow::<EventLog>::from_raw((*file).private_data.cast()) };

        // SAFETY: `to` and `count` are user space's, which this function checks.
        unsafe {
            bindings::simple_read_from_buffer(
                to.cast(),
                count,
                position,
                log.bytes().as_ptr().cast(),
                log.bytes().len(),
            )
        }
    }

    extern "C" fn release(_inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        // SAFETY: `open()` has stored a reference, which nobody uses after this.
        drop(unsafe { Arc::<EventLog>::from_raw((*file).private_data.cast()) });
        0
    }
}

impl<T: ChipOps> Drop for EventLogDir<T> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariants; what is in the directory is removed with it.
        unsafe { bindings::securityfs_remove(self.dir) };
    }
}
