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
    error::to_result,
    prelude::*,
    sync::atomic::{
        Acquire,
        Atomic,
        AtomicType,
        Relaxed,
        Release, //
    },
};

/// The size of a granted page, whatever the kernel's own page size is.
pub(crate) const PAGE_SIZE: usize = 4096;

/// A zeroed page, granted for reading and writing to the device's backend: a header of `HEADER`
/// bytes, whose fields are accessed atomically, and a payload that is copied.
///
/// No reference into the page is ever handed out.
///
/// # Invariants
///
/// - `page` points to [`PAGE_SIZE`] bytes that this object owns, aligned to their size.
/// - `grant` is the page's grant reference.
/// - This domain accesses the first `HEADER` bytes as atomics only, and the others never as such,
///   but for the drop, which has the page to itself.
pub(crate) struct GrantedPage<const HEADER: usize> {
    page: NonNull<u8>,
    grant: xen_sys::grant_ref_t,
}

// SAFETY: The page and the grant may be given back from any thread.
unsafe impl<const HEADER: usize> Send for GrantedPage<HEADER> {}

// SAFETY: The header is accessed atomically. Copies of the payload are made for a peer that writes
// to it at any moment, and bear other writers in this domain as well: see `payload()`.
unsafe impl<const HEADER: usize> Sync for GrantedPage<HEADER> {}

impl<const HEADER: usize> GrantedPage<HEADER> {
    /// Allocates a page of zeroes and grants it to the device's backend.
    pub(crate) fn new(bus: &mut bus::BusGuard<'_>) -> Result<Self> {
        let mut page = ptr::null_mut();
        let mut grant = 0;

        // SAFETY: The device is bound, and so knows its backend; `page` and `grant` have room for
        // the one page and the one reference that are asked for. A failure changes the device's
        // state, which the guard allows.
        to_result(unsafe {
            xen_sys::xenbus_setup_ring(bus.as_raw(), bindings::GFP_KERNEL, &mut page, 1, &mut grant)
        })?;

        // INVARIANT: `xenbus_setup_ring()` succeeded, and nobody else knows the page.
        Ok(Self {
            page: NonNull::new(page.cast()).ok_or(ENOMEM)?,
            grant,
        })
    }

    /// The grant reference, for the backend to map.
    pub(crate) fn grant(&self) -> u32 {
        self.grant
    }

    /// The header's atomic at `AT` bytes from the page's start.
    #[inline]
    fn atomic<T: AtomicType, const AT: usize>(&self) -> &Atomic<T> {
        const {
            assert!(HEADER <= PAGE_SIZE);
            assert!(AT + size_of::<T>() <= HEADER);
            assert!(AT % align_of::<T>() == 0);
        }
        // SAFETY: By the type invariants the page is valid for as long as `self` is, and this
        // domain accesses the header as atomics only; the assertions above keep this aligned access
        // within it. The backend's writes are outside of Rust's and the kernel's memory model, but
        // can only ever change which value is read: all bit patterns of the integers that this
        // private function is used for are valid.
        unsafe { Atomic::from_ptr(self.page.as_ptr().add(AT).cast::<T>()) }
    }

    /// Reads the byte at `AT`, before everything that is read later.
    pub(crate) fn load_acquire_u8<const AT: usize>(&self) -> u8 {
        // CAST: The bits are the same.
        self.atomic::<i8, AT>().load(Acquire) as u8
    }

    /// Writes the byte at `AT`, after everything that was written earlier. The backend runs on
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

    /// The address of `len` bytes of the payload, from `offset` in the page on. [`ERANGE`] when
    /// they are not all within the payload.
    ///
    /// The bytes may change while they are copied. Copies go through the kernel's `memcpy()` and
    /// `memset()` on memory whose address has escaped to C: the compiler cannot know what it holds,
    /// neither reads a byte again after the copy nor leaves a write out, and whatever bytes are
    /// copied are valid ones.
    #[inline]
    fn payload(&self, offset: usize, len: usize) -> Result<*mut c_void> {
        match offset.checked_add(len) {
            Some(end) if offset >= HEADER && end <= PAGE_SIZE => {
                // SAFETY: `offset` is within the page, which is valid by the type invariants.
                Ok(unsafe { self.page.as_ptr().add(offset) }.cast())
            }
            _ => Err(ERANGE),
        }
    }

    /// Copies from the payload to private memory. [`ERANGE`], and nothing is copied, when the bytes
    /// are not all within it.
    pub(crate) fn read(&self, offset: usize, into: &mut [u8]) -> Result {
        let from = self.payload(offset, into.len())?;

        // SAFETY: `from` and `into` are valid for `into.len()` bytes and do not overlap, as nobody
        // has a slice of the page.
        unsafe { bindings::memcpy(into.as_mut_ptr().cast(), from, into.len()) };
        Ok(())
    }

    /// Copies private memory to the payload. [`ERANGE`], and nothing is copied, when the bytes
    /// would not all be within it.
    pub(crate) fn write(&self, offset: usize, from: &[u8]) -> Result {
        let into = self.payload(offset, from.len())?;

        // SAFETY: As in `read()`, the other way round.
        unsafe { bindings::memcpy(into, from.as_ptr().cast(), from.len()) };
        Ok(())
    }

    /// Overwrites the payload with zeroes from `offset` to the page's end. [`ERANGE`] when `offset`
    /// is not in the payload.
    pub(crate) fn zero_from(&self, offset: usize) -> Result {
        let len = PAGE_SIZE.checked_sub(offset).ok_or(ERANGE)?;
        let into = self.payload(offset, len)?;

        // SAFETY: `into` is valid for `len` bytes.
        unsafe { bindings::memset(into, 0, len) };
        Ok(())
    }
}

impl<const HEADER: usize> Drop for GrantedPage<HEADER> {
    #[inline]
    fn drop(&mut self) {
        let page = self.page.as_ptr().cast();

        // Nothing is left for the page's next user, but for what the backend still writes.
        // The page is named, which `xenbus_teardown_ring()` leaves out: where the kernel's pages
        // are larger than Xen's, it keeps back another page from reuse than this one
        // (drivers/xen/grant-table.c, gnttab_add_deferred()).
        // SAFETY: By the type invariants the page has so many bytes, and `&mut self` is the only
        // access to it. `page` and `grant` are those of `xenbus_setup_ring()`, which allocated one
        // page of the kernel's, and nobody uses them after this. While the backend still maps the
        // page, the kernel keeps it back from reuse; then it frees it.
        unsafe {
            bindings::memset(page, 0, PAGE_SIZE);
            xen_sys::gnttab_end_foreign_access(self.grant, xen_sys::rust_helper_virt_to_page(page));
        }
    }
}
