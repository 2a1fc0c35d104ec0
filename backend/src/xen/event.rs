// SPDX-License-Identifier: GPL-2.0

//! One event channel to another domain.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::{self, NonNull};

use super::{sys, Error};

/// One event channel, bound to a port that another domain allocated. Each has an own handle on
/// /dev/xen/evtchn, so that one domain's events are in nobody else's queue.
///
/// # Invariants
///
/// `handle` came from `xenevtchn_open` and was not closed; `port` is bound on it.
#[derive(Debug)]
pub struct EventChannel {
    handle: Handle,
    port: u32,
}

/// An open handle on the event channel device.
///
/// # Invariants
///
/// The pointer came from `xenevtchn_open` and was not closed.
#[derive(Debug)]
struct Handle(NonNull<sys::EvtchnHandle>);

impl Handle {
    fn open() -> Result<Self, Error> {
        // SAFETY: No logger means that libxenevtchn makes its own.
        let handle = unsafe { sys::xenevtchn_open(ptr::null_mut(), 0) };

        // INVARIANT: A handle that is not null is open.
        NonNull::new(handle)
            .map(Self)
            .ok_or_else(|| Error::last("opening", "/dev/xen/evtchn"))
    }

    fn as_ptr(&self) -> *mut sys::EvtchnHandle {
        self.0.as_ptr()
    }
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: The handle is open by the type invariant, and then has a descriptor.
        let fd = unsafe { sys::xenevtchn_fd(self.as_ptr()) };
        // SAFETY: The descriptor is the handle's and stays open as long as that, which `self` owns.
        unsafe { BorrowedFd::borrow_raw(fd) }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: The handle is open by the type invariant, and nobody uses it afterwards.
        unsafe { sys::xenevtchn_close(self.as_ptr()) };
    }
}

impl EventChannel {
    /// Binds to the port `remote_port` of the domain `domid`, by a handle that can be bound to no other
    /// domain's ports.
    pub fn bind(domid: u16, remote_port: u32) -> Result<Self, Error> {
        let what = || format!("{remote_port} of domain {domid}");
        let handle = Handle::open()?;

        // SAFETY: The handle is open by its invariant.
        let restricted = unsafe { sys::xenevtchn_restrict(handle.as_ptr(), domid) };
        if restricted < 0 {
            return Err(Error::last("restricting /dev/xen/evtchn to domain", domid));
        }
        // SAFETY: The handle is open by its invariant.
        let port = unsafe {
            sys::xenevtchn_bind_interdomain(handle.as_ptr(), u32::from(domid), remote_port)
        };

        // INVARIANT: A port that is not negative was bound.
        u32::try_from(port)
            .map(|port| Self { handle, port })
            .map_err(|_| Error::last("binding to event channel", what()))
    }

    /// Notifies the other domain.
    pub fn notify(&self) -> Result<(), Error> {
        // SAFETY: The handle is open by the type invariant.
        let r = unsafe { sys::xenevtchn_notify(self.handle.as_ptr(), self.port) };
        self.check("notifying through event channel", r)
    }

    /// Waits for an event, and takes it. The next one comes after [`unmask`](Self::unmask); it is not lost
    /// if it is sent before.
    pub fn wait(&self) -> Result<(), Error> {
        loop {
            // SAFETY: The handle is open by the type invariant.
            let port = unsafe { sys::xenevtchn_pending(self.handle.as_ptr()) };
            if port >= 0 {
                return Ok(());
            }
            let error = Error::last("reading from event channel", self.port);
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    /// Lets the next event come. What the other domain did before is best looked at
    /// first: one event then serves for all of it.
    pub fn unmask(&self) -> Result<(), Error> {
        // SAFETY: The handle is open by the type invariant.
        let r = unsafe { sys::xenevtchn_unmask(self.handle.as_ptr(), self.port) };
        self.check("unmasking event channel", r)
    }

    fn check(&self, call: &'static str, r: i32) -> Result<(), Error> {
        match r {
            0.. => Ok(()),
            _ => Err(Error::last(call, self.port)),
        }
    }
}

impl AsFd for EventChannel {
    /// Readable when an event is pending.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

impl Drop for EventChannel {
    fn drop(&mut self) {
        // SAFETY: The handle is open and the port bound by the type invariant; failing that, closing
        // the handle unbinds it.
        unsafe { sys::xenevtchn_unbind(self.handle.as_ptr(), self.port) };
    }
}
