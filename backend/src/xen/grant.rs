// SPDX-License-Identifier: GPL-2.0

//! A page that another domain granted.

use std::ffi::c_void;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, AtomicU8, Ordering};

use xen_tpm_protocol::layout::PAGE_SIZE;
use xen_tpm_protocol::{Memory, OutOfBounds};

use super::{sys, Error};

/// A page of another domain, mapped for reading and writing. The other domain may change it at any
/// time: each access is atomic, and nobody gets a reference to its bytes.
///
/// # Invariants
///
/// `page` is the address of [`PAGE_SIZE`] mapped bytes, aligned to a page, which nobody else unmaps.
#[derive(Debug)]
pub struct GrantedPage {
    page: NonNull<u8>,
}

/// An open handle on the grant device.
///
/// # Invariants
///
/// The pointer came from `xengnttab_open` and was not closed.
#[derive(Debug)]
struct Handle(NonNull<sys::GnttabHandle>);

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: The handle is open by the type invariant, and nobody uses it afterwards.
        unsafe { sys::xengnttab_close(self.0.as_ptr()) };
    }
}

impl GrantedPage {
    /// Maps the page that the domain `domid` granted as `grant`. The device is closed again, so that nothing
    /// else can be mapped through it: the mapping holds what it needs.
    pub fn map(domid: u16, grant: u32) -> Result<Self, Error> {
        // SAFETY: No logger means that libxengnttab makes its own.
        let handle = unsafe { sys::xengnttab_open(ptr::null_mut(), 0) };
        // INVARIANT: A handle that is not null is open.
        let handle = NonNull::new(handle)
            .map(Handle)
            .ok_or_else(|| Error::last("opening", "/dev/xen/gntdev"))?;
        // SAFETY: The handle is open by its invariant.
        let page = unsafe {
            sys::xengnttab_map_grant_ref(
                handle.0.as_ptr(),
                u32::from(domid),
                grant,
                sys::PROT_READ_WRITE,
            )
        };

        // INVARIANT: A mapping that is not null is one page.
        NonNull::new(page.cast::<u8>())
            .map(|page| Self { page })
            .ok_or_else(|| Error::last("mapping grant", format!("{grant} of domain {domid}")))
    }

    /// The byte at `offset`.
    fn at(&self, offset: usize) -> &AtomicU8 {
        assert!(offset < PAGE_SIZE);
        // SAFETY: The byte is within the mapping by the check and the type invariant.
        let byte = unsafe { self.page.as_ptr().add(offset) };
        // SAFETY: The mapping lives as long as `self`, and this process accesses it by atomics only.
        unsafe { AtomicU8::from_ptr(byte) }
    }

    /// The number at `AT`.
    fn number<const AT: usize>(&self) -> &AtomicU32 {
        const { assert!(AT + size_of::<AtomicU32>() <= PAGE_SIZE) };
        const { assert!(AT % align_of::<AtomicU32>() == 0) };
        // SAFETY: The field is within the mapping by the type invariant.
        let field = unsafe { self.page.as_ptr().add(AT) };
        // SAFETY: As in `at`; aligned, because the page is and the check above, which keeps it within, too.
        unsafe { AtomicU32::from_ptr(field.cast::<u32>()) }
    }

    /// The `len` bytes from `offset` on.
    fn range(
        &self,
        offset: usize,
        len: usize,
    ) -> Result<impl Iterator<Item = &AtomicU8>, OutOfBounds> {
        match offset.checked_add(len) {
            Some(end) if end <= PAGE_SIZE => Ok((offset..end).map(|at| self.at(at))),
            _ => Err(OutOfBounds),
        }
    }
}

impl Memory for GrantedPage {
    fn load_acquire<const AT: usize>(&self) -> u8 {
        self.at(AT).load(Ordering::Acquire)
    }

    fn store_release<const AT: usize>(&self, value: u8) {
        self.at(AT).store(value, Ordering::Release);
    }

    fn load<const AT: usize>(&self) -> u8 {
        self.at(AT).load(Ordering::Relaxed)
    }

    fn store<const AT: usize>(&self, value: u8) {
        self.at(AT).store(value, Ordering::Relaxed);
    }

    fn load_le32<const AT: usize>(&self) -> u32 {
        u32::from_le(self.number::<AT>().load(Ordering::Relaxed))
    }

    fn store_le32<const AT: usize>(&self, value: u32) {
        self.number::<AT>().store(value.to_le(), Ordering::Relaxed);
    }

    fn copy_from(&self, offset: usize, into: &mut [u8]) -> Result<(), OutOfBounds> {
        let range = self.range(offset, into.len())?;
        for (to, from) in into.iter_mut().zip(range) {
            *to = from.load(Ordering::Relaxed);
        }
        Ok(())
    }

    fn copy_to(&self, offset: usize, from: &[u8]) -> Result<(), OutOfBounds> {
        for (from, to) in from.iter().zip(self.range(offset, from.len())?) {
            to.store(*from, Ordering::Relaxed);
        }
        Ok(())
    }

    fn zero(&self, offset: usize) -> Result<(), OutOfBounds> {
        let len = PAGE_SIZE.checked_sub(offset).ok_or(OutOfBounds)?;
        for byte in self.range(offset, len)? {
            byte.store(0, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl Drop for GrantedPage {
    fn drop(&mut self) {
        let page = self.page.as_ptr().cast::<c_void>();
        // SAFETY: It is mapped by the type invariant, and no reference into it outlives `self`.
        let _ = unsafe { rustix::mm::munmap(page, PAGE_SIZE) };
    }
}
