// SPDX-License-Identifier: GPL-2.0

//! What only `unsafe` can do with the kernel, made safe: inherited descriptors, ids, and memory that processes
//! share. With [`xen`](crate::xen) the only modules that have `unsafe` in them.

pub mod landlock;
pub mod shared;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use rustix::process::{Gid, Uid};

/// Takes a descriptor that the parent process has passed on, `None` if there is none of this number. It is
/// closed in programs that this one becomes.
///
/// Each may be taken once; the caller knows the numbers from the parent, and nothing else opens them.
pub fn inherited(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: F_SETFD changes a flag of a descriptor, or fails if it is none.
    let open = unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } == 0;
    // Standard input and its like belong to the library.
    // SAFETY: The descriptor is open, and is this process's to use: the parent passed it on for that, and
    // by this function's contract nobody else has taken it.
    (open && fd > 2).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A user and a group of the same number.
pub fn user_and_group(id: u32) -> Option<(Uid, Gid)> {
    if id == u32::MAX {
        return None;
    }
    // SAFETY: Any number but -1, which stands for "no change", is a user's.
    let user = unsafe { Uid::from_raw(id) };
    // SAFETY: As before, for groups.
    let group = unsafe { Gid::from_raw(id) };
    Some((user, group))
}

/// Starts a program that inherits these descriptors, which no other that is started at the same time does.
pub fn spawn_with(command: &mut Command, fds: &[BorrowedFd<'_>]) -> io::Result<Child> {
    let numbers: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let keep = move || {
        for fd in &numbers {
            // SAFETY: The descriptor was borrowed when this process was forked, so it is open.
            if unsafe { libc::fcntl(*fd, libc::F_SETFD, 0) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: Between fork and exec the closure makes async-signal-safe calls and allocates nothing.
    unsafe { command.pre_exec(keep) };
    command.spawn()
}

/// Gives up all capabilities that a program to come could gain.
pub fn drop_bounding_set() -> io::Result<()> {
    for capability in 0..64 {
        // SAFETY: This changes an attribute of the thread, and takes no pointer.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } < 0 {
            let error = io::Error::last_os_error();
            // The first number that is none.
            return match error.raw_os_error() {
                Some(libc::EINVAL) if capability > 0 => Ok(()),
                _ => Err(error),
            };
        }
    }
    Ok(())
}

/// Has all threads allocate from one place, from which memory can be given back.
pub fn one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: It is a function of the allocator's, and takes two numbers.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1)
    };
}

/// Gives memory that was freed back to the kernel.
pub fn release_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: It is a function of the allocator's, which any thread may call at any time.
    unsafe {
        libc::malloc_trim(0)
    };
}
