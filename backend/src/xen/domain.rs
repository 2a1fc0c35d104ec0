// SPDX-License-Identifier: GPL-2.0

//! What Xen says of a domain, by libxenctrl. Its ABI changes with each release of Xen, so it is loaded
//! when it is needed: one binary serves several releases, and needs none in a driver domain.

use std::ffi::{c_int, c_uint, c_void, CStr};
use std::io;
use std::ptr::{self, NonNull};

use super::Error;

/// The releases whose `xc_domain_getinfo_single` was looked at.
const LIBRARIES: [&CStr; 4] = [
    c"libxenctrl.so.4.20",
    c"libxenctrl.so.4.21",
    c"libxenctrl.so.4.19",
    c"libxenctrl.so.4.18",
];

/// `XEN_DOMINF_dying`, `XEN_DOMINF_shutdown` and the place of the shutdown code in
/// `xen_domctl_getdomaininfo.flags`.
const DYING: u32 = 1 << 0;
const SHUTDOWN: u32 = 1 << 2;
const REASON_SHIFT: u32 = 16;
const REASON_MASK: u32 = 255;

/// `SHUTDOWN_suspend`.
const SUSPEND: u32 = 2;

/// `xen_domctl_getdomaininfo`: what it starts with in all releases, and room for the rest, which is 128
/// bytes in Xen 4.20.
#[repr(C, align(8))]
struct Info {
    domain: u16,
    pad: u16,
    flags: u32,
    rest: [u64; 127],
}

type Open = unsafe extern "C" fn(*mut c_void, *mut c_void, c_uint) -> *mut c_void;
type GetInfo = unsafe extern "C" fn(*mut c_void, u32, *mut Info) -> c_int;
type Close = unsafe extern "C" fn(*mut c_void) -> c_int;

/// What became of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Domain {
    /// It runs, or is paused.
    Alive,
    /// It is suspended, as by `xl save` and `xl migrate`.
    Suspended,
    /// It was shut down, rebooted or crashed, is being destroyed, or does not exist.
    Ended,
}

impl Domain {
    fn from_flags(flags: u32) -> Self {
        let reason = (flags >> REASON_SHIFT) & REASON_MASK;
        match flags & (DYING | SHUTDOWN) {
            0 => Self::Alive,
            SHUTDOWN if reason == SUSPEND => Self::Suspended,
            _ => Self::Ended,
        }
    }
}

/// A connection to the hypervisor.
///
/// # Invariants
///
/// `handle` came from the library's `xc_interface_open` and was not closed. The library is never unloaded.
#[derive(Debug)]
pub struct Domains {
    handle: NonNull<c_void>,
    get_info: GetInfo,
    close: Close,
}

impl Domains {
    /// Connects.
    pub fn open() -> Result<Self, Error> {
        let library = LIBRARIES
            .iter()
            // SAFETY: The name ends in NUL; libxenctrl's constructors do nothing.
            .map(|name| unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW) })
            .find_map(NonNull::new)
            .ok_or_else(|| Error::new("loading", "libxenctrl", io::ErrorKind::NotFound.into()))?;
        let open = symbol(library, c"xc_interface_open")?;
        let get_info = symbol(library, c"xc_domain_getinfo_single")?;
        let close = symbol(library, c"xc_interface_close")?;
        // SAFETY: This is how xenctrl.h declares it.
        let open = unsafe { std::mem::transmute::<NonNull<c_void>, Open>(open) };
        // SAFETY: As before.
        let get_info = unsafe { std::mem::transmute::<NonNull<c_void>, GetInfo>(get_info) };
        // SAFETY: As before.
        let close = unsafe { std::mem::transmute::<NonNull<c_void>, Close>(close) };
        // SAFETY: Without loggers libxenctrl makes its own.
        let handle = unsafe { open(ptr::null_mut(), ptr::null_mut(), 0) };

        // INVARIANT: A handle that is not null is open.
        NonNull::new(handle)
            .map(|handle| Self {
                handle,
                get_info,
                close,
            })
            .ok_or_else(|| Error::last("opening", "/dev/xen/privcmd"))
    }

    /// What became of a domain.
    pub fn state(&self, domid: u16) -> Result<Domain, Error> {
        let mut info = Info {
            domain: 0,
            pad: 0,
            flags: 0,
            rest: [0; 127],
        };
        // SAFETY: The handle is open by the type invariant, and `info` is larger than what is written.
        let done = unsafe { (self.get_info)(self.handle.as_ptr(), u32::from(domid), &mut info) };
        if done == 0 && info.domain == domid {
            return Ok(Domain::from_flags(info.flags));
        }
        match io::Error::last_os_error().raw_os_error() {
            _ if done == 0 => Ok(Domain::Ended),
            Some(libc::ESRCH) => Ok(Domain::Ended),
            _ => Err(Error::last("asking Xen for domain", domid)),
        }
    }
}

impl Drop for Domains {
    fn drop(&mut self) {
        // SAFETY: The handle is open by the type invariant, and nobody uses it afterwards.
        unsafe { (self.close)(self.handle.as_ptr()) };
    }
}

fn symbol(library: NonNull<c_void>, name: &CStr) -> Result<NonNull<c_void>, Error> {
    // SAFETY: The library was loaded, and the name ends in NUL.
    let symbol = unsafe { libc::dlsym(library.as_ptr(), name.as_ptr()) };
    let missing = || {
        Error::new(
            "libxenctrl has no",
            name.to_string_lossy(),
            io::ErrorKind::NotFound.into(),
        )
    };
    NonNull::new(symbol).ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_flags_mean() {
        let shut_down = |reason: u32| Domain::from_flags(SHUTDOWN | (reason << REASON_SHIFT));

        assert_eq!(Domain::from_flags(0), Domain::Alive);
        // Running, HVM, paused; after a checkpoint the code is 255 and the flag is gone.
        assert_eq!(Domain::from_flags((0xff << 16) | 0b10_1010), Domain::Alive);
        assert_eq!(shut_down(SUSPEND), Domain::Suspended);
        for reason in [0, 1, 3, 4, 5, 255] {
            assert_eq!(shut_down(reason), Domain::Ended);
        }
        assert_eq!(Domain::from_flags(DYING), Domain::Ended);
        assert_eq!(
            Domain::from_flags(DYING | SHUTDOWN | (SUSPEND << REASON_SHIFT)),
            Domain::Ended
        );
    }
}
