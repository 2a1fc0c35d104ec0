// SPDX-License-Identifier: GPL-2.0

//! A page that is granted to another domain, which may write to it at any moment.
//!
//! C header: [`include/xen/xenbus.h`](srctree/include/xen/xenbus.h)

use crate::{
    xen::bus,
    xen_sys, //
};
use core::ptr::{
    self,
    NonNull, //
};
use kernel::{
    bindings,
    device::Bound,
    error::to_result,
    prelude::*,
    sync::atomic::{
        Acquire,
        Atomic,
        Relaxed,
        Release, //
    },
};

/// The size of a granted page, whatever the kernel's own page size is.
pub(crate) const PAGE_SIZE: usize = 4096;

/// A zeroed page, granted for reading and writing to the device's other end.
///
/// No reference into the page is ever handed out: single fields are atomics, everything else is
/// copied to or from private memory.
///
/// # Invariants
///
/// - `page` points to [`PAGE_SIZE`] bytes that this object owns, aligned to their size.
/// - `grant` is the page's grant reference.
/// - This domain accesses the page through this type only.
pub(crate) struct RingPage {
    page: NonNull<u8>,
    grant: xen_sys::grant_ref_t,
}

// SAFETY: The page and the grant may be given back from any thread.
unsafe impl Send for RingPage {}

// SAFETY: Fields are accessed atomically, and copies tolerate concurrent writers by design.
unsafe impl Sync for RingPage {}

impl RingPage {
    /// Allocates a page of zeroes and grants it to `dev`'s other end.
    pub(crate) fn new(dev: &bus::Device<Bound>) -> Result<Self> {
        let mut page = ptr::null_mut();
        let mut grant = 0;

        // SAFETY: `dev` is a valid xenbus device, which is bound and so knows its other end;
        // `page` and `grant` have room for the one page and the one reference that are asked for.
        to_result(unsafe {
            xen_sys::xenbus_setup_ring(dev.as_raw(), bindings::GFP_KERNEL, &mut page, 1, &mut grant)
        })?;

        // INVARIANT: `xenbus_setup_ring()` succeeded, and nobody else knows the page.
        Ok(Self {
            page: NonNull::new(page.cast()).ok_or(ENOMEM)?,
            grant,
        })
    }

    /// The grant reference, for the other end to map.
    pub(crate) fn grant(&self) -> u32 {
        self.grant
    }

    /// The atomic at `AT` bytes from the page's start.
    fn atomic<T: kernel::sync::atomic::AtomicType, const AT: usize>(&self) -> &Atomic<T> {
        const {
            assert!(AT + size_of::<T>() <= PAGE_SIZE);
            assert!(AT % align_of::<T>() == 0);
        }
        // SAFETY: By the type invariants the page is valid for as long as `self` is, and the
        // assertions above keep the aligned access within it. This domain accesses the field only
        // through here, that is atomically; the other end's writes are outside of Rust's and the
        // kernel's memory model, but can only ever change which value is read: all bit patterns of
        // the integers that this private function is used for are valid.
        unsafe { Atomic::from_ptr(self.page.as_ptr().add(AT).cast::<T>()) }
    }

    /// Reads the byte at `AT`, before everything that is read later.
    pub(crate) fn load_acquire_u8<const AT: usize>(&self) -> u8 {
        // CAST: The bits are the same.
        self.atomic::<i8, AT>().load(Acquire) as u8
    }

    /// Writes the byte at `AT`, after everything that was written earlier. The other end runs on
    /// another processor even where this kernel has but one; on x86, whose stores stay in order,
    /// and on arm64, whose kernels are never without SMP, the release is a full one for it too.
    pub(crate) fn store_release_u8<const AT: usize>(&self, value: u8) {
        // CAST: The bits are the same.
        self.atomic::<i8, AT>().store(value as i8, Release);
    }

    /// Reads the byte at `AT`.
    pub(crate) fn load_u8<const AT: usize>(&self) -> u8 {
        // CAST: The bits are the same.
        self.atomic::<i8, AT>().load(Relaxed) as u8
    }

    /// Writes the byte at `AT`.
    pub(crate) fn store_u8<const AT: usize>(&self, value: u8) {
        // CAST: The bits are the same.
        self.atomic::<i8, AT>().store(value as i8, Relaxed);
    }

    /// Reads the little-endian number at `AT`.
    pub(crate) fn load_le32<const AT: usize>(&self) -> u32 {
        u32::from_le(self.atomic::<u32, AT>().load(Relaxed))
    }

    /// Writes the little-endian number at `AT`.
    pub(crate) fn store_le32<const AT: usize>(&self, value: u32) {
        self.atomic::<u32, AT>().store(value.to_le(), Relaxed);
    }

    /// The address of `len` bytes from `offset` on, [`ERANGE`] when they are not within the page.
    fn range(&self, offset: usize, len: usize) -> Result<*mut c_void> {
        match offset.checked_add(len) {
            // SAFETY: `offset` is within the page, which is valid by the type invariants.
            Some(end) if end <= PAGE_SIZE => Ok(unsafe { self.page.as_ptr().add(offset) }.cast()),
            _ => Err(ERANGE),
        }
    }

    /// Copies from the page to private memory. [`ERANGE`] and nothing copied when the bytes are
    /// not all within the page.
    pub(crate) fn read(&self, offset: usize, into: &mut [u8]) -> Result {
        let from = self.range(offset, into.len())?;

        // SAFETY: `from` and `into` are valid for `into.len()` bytes and do not overlap, as nobody
        // else can have a slice of the page. The copying is C's: to it, bytes that change
        // meanwhile are just bytes.
        unsafe { bindings::memcpy(into.as_mut_ptr().cast(), from, into.len()) };
        Ok(())
    }

    /// Copies private memory to the page. [`ERANGE`] and nothing copied when the bytes would not
    /// all be within the page.
    pub(crate) fn write(&self, offset: usize, from: &[u8]) -> Result {
        let into = self.range(offset, from.len())?;

        // SAFETY: As in `read()`, the other way round.
        unsafe { bindings::memcpy(into, from.as_ptr().cast(), from.len()) };
        Ok(())
    }

    /// Overwrites the page with zeroes from `offset` on. [`ERANGE`] when that is not in the page.
    pub(crate) fn wipe(&self, offset: usize) -> Result {
        let len = PAGE_SIZE.checked_sub(offset).ok_or(ERANGE)?;
        let into = self.range(offset, len)?;

        // SAFETY: `into` is valid for `len` bytes. As a call of C's on memory that has escaped it
        // cannot be left out by the compiler.
        unsafe { bindings::memset(into, 0, len) };
        Ok(())
    }
}

impl Drop for RingPage {
    fn drop(&mut self) {
        let mut page = self.page.as_ptr().cast();

        // For the page's next user; what the other end writes from here on is its own loss. The
        // whole page is within the page.
        let _ = self.wipe(0);
        // SAFETY: By the type invariants `page` and `grant` are those of `xenbus_setup_ring()`,
        // and nobody uses them after this. While the other end still maps the page, the kernel
        // keeps it back from reuse.
        unsafe { xen_sys::xenbus_teardown_ring(&mut page, 1, &mut self.grant) };
    }
}
