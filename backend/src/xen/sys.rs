// SPDX-License-Identifier: GPL-2.0

//! The few functions of libxenstore, libxenevtchn and libxengnttab that the daemon calls, as their
//! headers (xenstore.h, xenevtchn.h, xengnttab.h; Xen 4.20) declare them. All three have stable ABIs.

use std::ffi::{c_char, c_int, c_uint, c_ulong, c_void};

/// An opaque `struct xs_handle`.
#[repr(C)]
pub(super) struct XsHandle {
    _opaque: [u8; 0],
}

/// An opaque `xenevtchn_handle`.
#[repr(C)]
pub(super) struct EvtchnHandle {
    _opaque: [u8; 0],
}

/// An opaque `xengnttab_handle`.
#[repr(C)]
pub(super) struct GnttabHandle {
    _opaque: [u8; 0],
}

/// `XBT_NULL`: outside of any transaction.
pub(super) const XBT_NULL: u32 = 0;

/// `PROT_READ | PROT_WRITE` of mmap(2), which libxengnttab passes on.
pub(super) const PROT_READ_WRITE: c_int = 1 | 2;

#[link(name = "xenstore")]
unsafe extern "C" {
    pub(super) fn xs_open(flags: c_ulong) -> *mut XsHandle;
    pub(super) fn xs_close(h: *mut XsHandle);
    pub(super) fn xs_fileno(h: *mut XsHandle) -> c_int;
    pub(super) fn xs_directory(
        h: *mut XsHandle,
        t: u32,
        path: *const c_char,
        num: *mut c_uint,
    ) -> *mut *mut c_char;
    pub(super) fn xs_read(
        h: *mut XsHandle,
        t: u32,
        path: *const c_char,
        len: *mut c_uint,
    ) -> *mut c_void;
    pub(super) fn xs_write(
        h: *mut XsHandle,
        t: u32,
        path: *const c_char,
        data: *const c_void,
        len: c_uint,
    ) -> bool;
    pub(super) fn xs_rm(h: *mut XsHandle, t: u32, path: *const c_char) -> bool;
    pub(super) fn xs_watch(h: *mut XsHandle, path: *const c_char, token: *const c_char) -> bool;
    pub(super) fn xs_unwatch(h: *mut XsHandle, path: *const c_char, token: *const c_char) -> bool;
    pub(super) fn xs_check_watch(h: *mut XsHandle) -> *mut *mut c_char;
    pub(super) fn xs_transaction_start(h: *mut XsHandle) -> u32;
    pub(super) fn xs_transaction_end(h: *mut XsHandle, t: u32, abort: bool) -> bool;
}

#[link(name = "xenevtchn")]
unsafe extern "C" {
    pub(super) fn xenevtchn_open(logger: *mut c_void, flags: c_uint) -> *mut EvtchnHandle;
    pub(super) fn xenevtchn_close(h: *mut EvtchnHandle) -> c_int;
    pub(super) fn xenevtchn_fd(h: *mut EvtchnHandle) -> c_int;
    pub(super) fn xenevtchn_restrict(h: *mut EvtchnHandle, domid: u16) -> c_int;
    pub(super) fn xenevtchn_bind_interdomain(
        h: *mut EvtchnHandle,
        domid: u32,
        remote_port: u32,
    ) -> c_int;
    pub(super) fn xenevtchn_unbind(h: *mut EvtchnHandle, port: u32) -> c_int;
    pub(super) fn xenevtchn_notify(h: *mut EvtchnHandle, port: u32) -> c_int;
    pub(super) fn xenevtchn_pending(h: *mut EvtchnHandle) -> c_int;
    pub(super) fn xenevtchn_unmask(h: *mut EvtchnHandle, port: u32) -> c_int;
}

#[link(name = "xengnttab")]
unsafe extern "C" {
    pub(super) fn xengnttab_open(logger: *mut c_void, flags: c_uint) -> *mut GnttabHandle;
    pub(super) fn xengnttab_close(h: *mut GnttabHandle) -> c_int;
    pub(super) fn xengnttab_map_grant_ref(
        h: *mut GnttabHandle,
        domid: u32,
        grant: u32,
        prot: c_int,
    ) -> *mut c_void;
}

// The C library's, for what libxenstore allocates.
unsafe extern "C" {
    pub(super) fn free(p: *mut c_void);
}
