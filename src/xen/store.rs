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
    prelude::*, //
};

/// How often a transaction is tried that conflicts with other writers.
const MAX_TRIES: u32 = 100;

/// Room for the name of an item, such as `event-log/15`.
const MAX_ITEM: usize = 32;

/// A value that was read. Its bytes are what the peer wrote, and not to be trusted.
///
/// # Invariants
///
/// `bytes` points to `len` bytes that were allocated with `kmalloc()` and belong to this object.
pub(crate) struct Value {
    bytes: NonNull<u8>,
    len: usize,
}

impl Value {
    /// Reads a node of a directory. [`ENOENT`] when there is none.
    pub(crate) fn read(dir: &CStr, node: &CStr) -> Result<Self> {
        let none = xen_sys::xenbus_transaction { id: 0 };
        let mut len = 0;

        // SAFETY: Both strings are terminated, and `len` is valid for writing.
        let bytes = from_err_ptr(unsafe {
            xen_sys::xenbus_read(none, dir.as_char_ptr(), node.as_char_ptr(), &mut len)
        })?;

        // INVARIANT: `xenbus_read()` gives its caller a copy of `len` bytes.
        Ok(Self {
            bytes: NonNull::new(bytes.cast()).ok_or(ENOENT)?,
            // CAST: `u32` to `usize` on a 64-bit kernel.
            len: len as usize,
        })
    }

    /// Reads the node `subdir`/`index` of a directory. [`ENOENT`] when there is none.
    pub(crate) fn read_item(dir: &CStr, subdir: &CStr, index: usize) -> Result<Self> {
        let mut node: [c_char; MAX_ITEM] = [0; MAX_ITEM];

        // SAFETY: `node` has so many bytes, of which the last that is written is a NUL; the format
        // takes a terminated string and an unsigned `long`.
        let node = unsafe {
            bindings::snprintf(
                node.as_mut_ptr(),
                MAX_ITEM,
                c"%s/%lu".as_char_ptr(),
                subdir.as_char_ptr(),
                index,
            );
            CStr::from_char_ptr(node.as_ptr())
        };

        Self::read(dir, node)
    }

    /// The value's bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: By the type invariants.
        unsafe { slice::from_raw_parts(self.bytes.as_ptr(), self.len) }
    }
}

impl Drop for Value {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariants; the bytes are not used after this.
        unsafe { bindings::kfree(self.bytes.as_ptr().cast()) };
    }
}

/// A transaction on one directory, that is aborted unless it is committed.
struct Transaction<'a> {
    raw: xen_sys::xenbus_transaction,
    dir: &'a CStr,
}

impl<'a> Transaction<'a> {
    fn start(dir: &'a CStr) -> Result<Self> {
        let mut raw = xen_sys::xenbus_transaction { id: 0 };

        // SAFETY: `raw` is valid for writing.
        to_result(unsafe { xen_sys::xenbus_transaction_start(&mut raw) })?;
        Ok(Self { raw, dir })
    }

    /// Writes a number to a node of the directory.
    fn write(&self, node: &CStr, value: u32) -> Result {
        // SAFETY: All strings are terminated, the transaction was started, and the format takes one
        // unsigned integer.
        to_result(unsafe {
            xen_sys::xenbus_printf(
                self.raw(),
                self.dir.as_char_ptr(),
                node.as_char_ptr(),
                c"%u".as_char_ptr(),
                value,
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
    #[inline]
    fn drop(&mut self) {
        // There is nothing that a failure to abort would leave to do.
        let _ = self.end(true);
    }
}

/// Writes numbers to nodes of a directory, as one transaction, and again while it conflicts with
/// other writers: [`EAGAIN`] after a hundred times.
pub(crate) fn write_all(dir: &CStr, nodes: &[(&CStr, u32)]) -> Result {
    for _ in 0..MAX_TRIES {
        let transaction = Transaction::start(dir)?;

        for (node, value) in nodes {
            transaction.write(node, *value)?;
        }
        match transaction.commit() {
            Err(EAGAIN) => {}
            result => return result,
        }
    }
    Err(EAGAIN)
}
