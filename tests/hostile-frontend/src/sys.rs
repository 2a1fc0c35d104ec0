// SPDX-License-Identifier: GPL-2.0

//! What a frontend needs of libxengnttab, libxenevtchn and libxenstore beyond what the backend calls:
//! granting pages, allocating ports, and writing values that are not text.

use std::ffi::{c_char, c_int, c_uint, c_ulong, c_void, CStr};
use std::io;
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicU8;

use xen_tpm_protocol::layout::PAGE_SIZE;

/// An opaque handle of one of the libraries.
#[repr(C)]
struct Opaque {
    _opaque: [u8; 0],
}

#[link(name = "xengnttab")]
unsafe extern "C" {
    fn xengntshr_open(logger: *mut c_void, flags: c_uint) -> *mut Opaque;
    fn xengntshr_close(h: *mut Opaque) -> c_int;
    fn xengntshr_share_pages(
        h: *mut Opaque,
        domid: u32,
        count: c_int,
        refs: *mut u32,
        writable: c_int,
    ) -> *mut c_void;
    fn xengntshr_unshare(h: *mut Opaque, start: *mut c_void, count: u32) -> c_int;
}

#[link(name = "xenevtchn")]
unsafe extern "C" {
    fn xenevtchn_open(logger: *mut c_void, flags: c_uint) -> *mut Opaque;
    fn xenevtchn_close(h: *mut Opaque) -> c_int;
    fn xenevtchn_bind_unbound_port(h: *mut Opaque, domid: u32) -> c_int;
    fn xenevtchn_notify(h: *mut Opaque, port: u32) -> c_int;
}

#[link(name = "xenstore")]
unsafe extern "C" {
    fn xs_open(flags: c_ulong) -> *mut Opaque;
    fn xs_close(h: *mut Opaque);
    fn xs_write(
        h: *mut Opaque,
        t: u32,
        path: *const c_char,
        data: *const c_void,
        len: c_uint,
    ) -> bool;
}

/// A page that is granted to another domain until it is dropped.
///
/// # Invariants
///
/// `handle` is open; `page` is the address of [`PAGE_SIZE`] bytes that are mapped through it.
#[derive(Debug)]
pub(crate) struct SharedPage {
    handle: NonNull<Opaque>,
    page: NonNull<c_void>,
    /// Its grant reference.
    pub(crate) grant: u32,
}

// SAFETY: The library's handle is a descriptor, and its functions are called by `drop` alone, once.
unsafe impl Send for SharedPage {}
// SAFETY: As before; the page's bytes are accessed by atomics only.
unsafe impl Sync for SharedPage {}

impl SharedPage {
    /// Grants a new page to the domain `domid`.
    pub(crate) fn new(domid: u16) -> io::Result<Self> {
        // SAFETY: No logger means that libxengnttab makes its own.
        let handle = unsafe { xengntshr_open(ptr::null_mut(), 0) };
        let handle = NonNull::new(handle).ok_or_else(io::Error::last_os_error)?;
        let mut grant = 0;
        // SAFETY: The handle is open, and `grant` has room for the one reference.
        let page =
            unsafe { xengntshr_share_pages(handle.as_ptr(), domid.into(), 1, &mut grant, 1) };

        // INVARIANT: What is not null is one mapped page.
        match NonNull::new(page) {
            Some(page) => Ok(Self {
                handle,
                page,
                grant,
            }),
            None => {
                let error = io::Error::last_os_error();
                // SAFETY: The handle is open, and nobody uses it afterwards.
                unsafe { xengntshr_close(handle.as_ptr()) };
                Err(error)
            }
        }
    }

    /// Its bytes, which the other domain sees and changes.
    pub(crate) fn bytes(&self) -> &[AtomicU8] {
        let first = self.page.as_ptr().cast::<AtomicU8>();
        // SAFETY: The page is mapped as long as `self` lives, and accessed by atomics only.
        unsafe { std::slice::from_raw_parts(first, PAGE_SIZE) }
    }
}

impl Drop for SharedPage {
    fn drop(&mut self) {
        // SAFETY: The page is mapped through the handle, and nobody uses it afterwards.
        unsafe { xengntshr_unshare(self.handle.as_ptr(), self.page.as_ptr(), 1) };
        // SAFETY: The handle is open, and nobody uses it afterwards.
        unsafe { xengntshr_close(self.handle.as_ptr()) };
    }
}

/// A port that waits for another domain to bind to it.
///
/// # Invariants
///
/// `handle` is open.
#[derive(Debug)]
pub(crate) struct Port {
    handle: NonNull<Opaque>,
    /// Its number.
    pub(crate) number: u32,
}

// SAFETY: `xenevtchn_notify` is one ioctl(2) on the handle's descriptor, which any thread may make.
unsafe impl Send for Port {}
// SAFETY: As before.
unsafe impl Sync for Port {}

impl Port {
    /// Allocates a port for the domain `domid`.
    pub(crate) fn new(domid: u16) -> io::Result<Self> {
        // SAFETY: No logger means that libxenevtchn makes its own.
        let handle = unsafe { xenevtchn_open(ptr::null_mut(), 0) };
        // INVARIANT: What is not null is open.
        let mut port = Self {
            handle: NonNull::new(handle).ok_or_else(io::Error::last_os_error)?,
            number: 0,
        };
        // SAFETY: The handle is open by the type invariant.
        let number = unsafe { xenevtchn_bind_unbound_port(port.handle.as_ptr(), domid.into()) };
        port.number = u32::try_from(number).map_err(|_| io::Error::last_os_error())?;
        Ok(port)
    }

    /// Sends an event. That nobody is bound is no error here.
    pub(crate) fn notify(&self) {
        // SAFETY: The handle is open by the type invariant.
        unsafe { xenevtchn_notify(self.handle.as_ptr(), self.number) };
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        // SAFETY: The handle is open by the type invariant; closing it unbinds the port.
        unsafe { xenevtchn_close(self.handle.as_ptr()) };
    }
}

/// Writes any bytes to nodes.
///
/// # Invariants
///
/// The handle is open.
#[derive(Debug)]
pub(crate) struct RawStore(NonNull<Opaque>);

impl RawStore {
    /// Connects to xenstored.
    pub(crate) fn open() -> io::Result<Self> {
        // SAFETY: No preconditions.
        let handle = unsafe { xs_open(0) };
        // INVARIANT: What is not null is open.
        NonNull::new(handle)
            .map(Self)
            .ok_or_else(io::Error::last_os_error)
    }

    /// Writes a node; false if xenstored refused.
    pub(crate) fn write(&self, path: &CStr, value: &[u8]) -> bool {
        let Ok(len) = c_uint::try_from(value.len()) else {
            return false;
        };
        // SAFETY: The handle is open by the type invariant, the path ends in NUL, `value` has `len`
        // bytes; 0 is no transaction.
        unsafe {
            xs_write(
                self.0.as_ptr(),
                0,
                path.as_ptr(),
                value.as_ptr().cast(),
                len,
            )
        }
    }
}

impl Drop for RawStore {
    fn drop(&mut self) {
        // SAFETY: The handle is open by the type invariant, and nobody uses it afterwards.
        unsafe { xs_close(self.0.as_ptr()) };
    }
}
