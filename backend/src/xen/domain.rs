// SPDX-License-Identifier: GPL-2.0

//! What Xen says of a domain, by libxenctrl. Its ABI changes with each release of Xen, so it is loaded
//! when it is needed: one binary serves several releases, and needs none in a driver domain.

use std::ffi::{c_int, c_uint, c_void, CStr};
use std::io;
use std::ptr::{self, NonNull};

use serde::{Deserialize, Serialize};

use super::Error;

/// The releases whose `xc_domain_getinfo_single` was looked at.
const LIBRARIES: [&CStr; 4] = [
    c"libxenctrl.so.4.20",
    c"libxenctrl.so.4.21",
    c"libxenctrl.so.4.19",
    c"libxenctrl.so.4.18",
];

/// `XEN_DOMINF_dying`, `XEN_DOMINF_shutdown`, `XEN_DOMINF_hvm_guest` and the place of the shutdown code in
/// `xen_domctl_getdomaininfo.flags`.
const DYING: u32 = 1 << 0;
const SHUTDOWN: u32 = 1 << 2;
const HVM: u32 = 1 << 1;
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
    /// Pages in total, at most, outstanding, shared and paged; and where the shared information is.
    pages: [u64; 6],
    cpu_time: u64,
    rest: [u64; 120],
}

type Open = unsafe extern "C" fn(*mut c_void, *mut c_void, c_uint) -> *mut c_void;
type GetInfo = unsafe extern "C" fn(*mut c_void, u32, *mut Info) -> c_int;
type GetHvm = unsafe extern "C" fn(*mut c_void, u32, u16, u16, *mut Context, u32) -> c_int;
type GetPv = unsafe extern "C" fn(*mut c_void, u32, u32, *mut Context) -> c_int;
type Close = unsafe extern "C" fn(*mut c_void) -> c_int;

/// `HVM_SAVE_CODE(CPU)`.
const SAVED_CPU: u16 = 2;

/// Where in `hvm_hw_cpu` of Xen's public/arch-x86/hvm/save.h the register CR0 is, as a number of 64-bit words, and
/// the bit in it that says that paging is on. Each is booted without.
const CR0: usize = 82;
const PAGING: u64 = 1 << 31;

/// Where in `vcpu_guest_context` of public/arch-x86/xen-x86_64.h r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8,
/// rax, rcx and rdx are. libxenguest starts a kernel with zeroes in them.
const REGISTERS: std::ops::Range<usize> = 65..78;

/// The state of a virtual processor: room for either of the two, which are 1 and 5 KiB.
#[repr(C, align(4096))]
struct Context([u64; 1024]);

impl Context {
    /// Whether a kernel is about to be started. What was saved was in the midst of a hypercall.
    fn boots(&self, hvm: bool) -> bool {
        match hvm {
            true => self.0[CR0] & PAGING == 0,
            false => self.0[REGISTERS].iter().all(|register| *register == 0),
        }
    }
}

/// What became of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    library: NonNull<c_void>,
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
                library,
                get_info,
                close,
            })
            .ok_or_else(|| Error::last("opening", "/dev/xen/privcmd"))
    }

    /// What became of a domain.
    pub fn state(&self, domid: u16) -> Result<Domain, Error> {
        let info = self.info(domid)?;
        Ok(info.map_or(Domain::Ended, |info| Domain::from_flags(info.flags)))
    }

    /// Whether a domain is booted, rather than restored: it has not run yet and goes on from where it was saved.
    /// Neither libxl nor xenstore tells the two apart.
    pub fn boots(&self, domid: u16) -> Result<bool, Error> {
        // Only there the registers are known.
        if cfg!(not(target_arch = "x86_64")) {
            return Ok(false);
        }
        let Some(info) = self.info(domid)? else {
            return Ok(true);
        };
        if info.cpu_time > 0 {
            return Ok(true);
        }
        let hvm = info.flags & HVM != 0;
        let mut context = Box::new(Context([0; 1024]));
        let size = std::mem::size_of::<Context>() as u32;
        let (handle, domain) = (self.handle.as_ptr(), u32::from(domid));
        let done = if hvm {
            let get = symbol(self.library, c"xc_domain_hvm_getcontext_partial")?;
            // SAFETY: This is how xenctrl.h declares it.
            let get = unsafe { std::mem::transmute::<NonNull<c_void>, GetHvm>(get) };
            // SAFETY: The handle is open by the type invariant; `size` is that of the buffer.
            unsafe { get(handle, domain, SAVED_CPU, 0, &mut *context, size) }
        } else {
            let get = symbol(self.library, c"xc_vcpu_getcontext")?;
            // SAFETY: This is how xenctrl.h declares it.
            let get = unsafe { std::mem::transmute::<NonNull<c_void>, GetPv>(get) };
            // SAFETY: The handle is open by the type invariant; the buffer is larger than what is written.
            unsafe { get(handle, domain, 0, &mut *context) }
        };
        match done {
            0 => Ok(context.boots(hvm)),
            _ => Err(Error::last("asking Xen for the registers of domain", domid)),
        }
    }

    fn info(&self, domid: u16) -> Result<Option<Info>, Error> {
        let mut info = Info {
            domain: 0,
            pad: 0,
            flags: 0,
            pages: [0; 6],
            cpu_time: 0,
            rest: [0; 120],
        };
        // SAFETY: The handle is open by the type invariant, and `info` is larger than what is written.
        let done = unsafe { (self.get_info)(self.handle.as_ptr(), u32::from(domid), &mut info) };
        if done == 0 && info.domain == domid {
            return Ok(Some(info));
        }
        match io::Error::last_os_error().raw_os_error() {
            _ if done == 0 => Ok(None),
            Some(libc::ESRCH) => Ok(None),
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
    fn what_registers_mean() {
        let mut context = Context([0; 1024]);
        assert!(context.boots(true) && context.boots(false));
        // rip, cs, eflags, rsp, and rsi for the start_info, are set in any case.
        context.0[78] = 0xffff_ffff_8292_0c80;
        context.0[CR0] = 0x11;
        assert!(context.boots(true) && context.boots(false));
        context.0[CR0] |= PAGING;
        assert!(!context.boots(true));
        context.0[77] = 0x1234;
        assert!(!context.boots(false));
    }

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
