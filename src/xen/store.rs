// SPDX-License-Identifier: GPL-2.0

//! xenstore: single values, and transactions that take effect as a whole or not at all.
//!
//! C header: [`include/xen/xenbus.h`](srctree/include/xen/xenbus.h)

use crate::xen_sys;
use core::{
    ptr::NonNull,
    slice, //
};
use kernel::{
    bindings,
    error::{
        from_err_ptr,
        to_result, //
    },
    fmt,
    prelude::*,
    str::CString, //
};

/// How often a transaction is tried that other writers get in the way of.
const TRIES: u32 = 100;

/// A value that was read. Its bytes are what the other end wrote, and not to be trusted.
///
/// # Invariants
///
/// `bytes` points to `len` bytes that were allocated with `kmalloc()` and belong to this object.
pub(crate) struct Value {
    bytes: NonNull<u8>,
    len: usize,
}

impl Value {
    /// Reads a node of a folder. [`ENOENT`] where there is none.
    pub(crate) fn read(folder: &CStr, node: &CStr) -> Result<Self> {
        let none = xen_sys::xenbus_transaction { id: 0 };
        let mut len = 0;

        // SAFETY: Both strings are terminated, and `len` is valid for writing.
        let bytes = from_err_ptr(unsafe {
            xen_sys::xenbus_read(none, folder.as_char_ptr(), node.as_char_ptr(), &mut len)
        })?;

        // INVARIANT: `xenbus_read()` gives its caller a copy of `len` bytes.
        Ok(Self {
            bytes: NonNull::new(bytes.cast()).ok_or(ENOENT)?,
            // CAST: `u32` to `usize` on a 64-bit kernel.
            len: len as usize,
        })
    }

    /// The value's bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: By the type invariants.
        unsafe { slice::from_raw_parts(self.bytes.as_ptr(), self.len) }
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        // SAFETY: By the type invariants; the bytes are not used after this.
        unsafe { bindings::kfree(self.bytes.as_ptr().cast()) };
    }
}

/// A transaction on one folder, that is aborted unless it is committed.
pub(crate) struct Transaction<'a> {
    raw: xen_sys::xenbus_transaction,
    folder: &'a CStr,
}

impl<'a> Transaction<'a> {
    fn start(folder: &'a CStr) -> Result<Self> {
        let mut raw = xen_sys::xenbus_transaction { id: 0 };

        // SAFETY: `raw` is valid for writing.
        to_result(unsafe { xen_sys::xenbus_transaction_start(&mut raw) })?;
        Ok(Self { raw, folder })
    }

    /// Writes a node of the folder.
    pub(crate) fn write(&self, node: &CStr, value: fmt::Arguments<'_>) -> Result {
        let value = CString::try_from_fmt(value)?;

        // SAFETY: All strings are terminated, and the transaction was started.
        to_result(unsafe {
            xen_sys::xenbus_write(
                self.raw(),
                self.folder.as_char_ptr(),
                node.as_char_ptr(),
                value.as_char_ptr(),
            )
        })
    }

    /// [`EAGAIN`] when something that the transaction touched was changed meanwhile.
    fn commit(self) -> Result {
        let result = self.end(false);

        core::mem::forget(self);
        result
    }

    fn end(&self, abort: bool) -> Result {
        // SAFETY: The transaction was started, and both callers end it only once.
        to_result(unsafe { xen_sys::xenbus_transaction_end(self.raw(), abort) })
    }

    fn raw(&self) -> xen_sys::xenbus_transaction {
        xen_sys::xenbus_transaction { id: self.raw.id }
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        // There is nothing that a failure to abort would leave to do.
        let _ = self.end(true);
    }
}

/// Carries out `writes` on a folder as one transaction, again and again while others get in the
/// way, but not for ever: [`EAGAIN`] after a hundred times.
pub(crate) fn transact(folder: &CStr, writes: impl Fn(&Transaction<'_>) -> Result) -> Result {
    let mut result = Err(EAGAIN);

    for _ in 0..TRIES {
        let transaction = Transaction::start(folder)?;

        writes(&transaction)?;
        result = transaction.commit();
        if result != Err(EAGAIN) {
            break;
        }
    }
    result
}
