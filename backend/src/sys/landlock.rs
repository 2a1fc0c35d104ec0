// SPDX-License-Identifier: GPL-2.0

//! Landlock: which files and directories a thread, and what it starts, may use from now on.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

/// `LANDLOCK_ACCESS_FS_*` of linux/landlock.h.
pub mod access {
    /// Writing to a file, also to shorten it.
    pub const WRITE_FILE: u64 = (1 << 1) | (1 << 14);
    /// Reading a file.
    pub const READ_FILE: u64 = 1 << 2;
    /// Listing a directory.
    pub const READ_DIR: u64 = 1 << 3;
    /// Removing a directory.
    pub const REMOVE_DIR: u64 = 1 << 4;
    /// Removing or renaming a file.
    pub const REMOVE_FILE: u64 = 1 << 5;
    /// Making a file.
    pub const MAKE_FILE: u64 = 1 << 8;
}

/// What version 3 knows of, which is what is forbidden unless a rule allows it: all but ioctl(2) on devices.
const HANDLED: u64 = (1 << 15) - 1;

/// `LANDLOCK_RULE_PATH_BENEATH`.
const PATH_BENEATH: libc::c_int = 1;

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct PathBeneath {
    allowed: u64,
    parent: i32,
}

/// Rules that do not hold yet.
#[derive(Debug)]
pub struct Ruleset(OwnedFd);

impl Ruleset {
    /// Without a rule nothing is allowed. Fails below version 3.
    pub fn new() -> io::Result<Self> {
        let handled = HANDLED;
        // SAFETY: The attributes, of which the first field is enough, and their size.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_landlock_create_ruleset,
                std::ptr::from_ref(&handled),
                std::mem::size_of_val(&handled),
                0,
            )
        };
        match i32::try_from(fd) {
            // SAFETY: The kernel has just made this descriptor for us.
            Ok(fd) if fd >= 0 => Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) })),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Allows this on a file, or on a directory and all below it. What is not there is not allowed.
    pub fn allow(&self, path: &Path, allowed: u64) -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let file = match rustix::fs::open(path, flags, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => return Ok(()),
            file => file?,
        };
        let rule = PathBeneath {
            allowed,
            parent: file.as_raw_fd(),
        };
        // SAFETY: The ruleset and the file are open; the rule is read during the call.
        let done = unsafe {
            libc::syscall(
                libc::SYS_landlock_add_rule,
                self.0.as_raw_fd(),
                PATH_BENEATH,
                std::ptr::from_ref(&rule),
                0,
            )
        };
        check(done)
    }

    /// Has the rules hold for this thread, for good. It has to have "no new privileges".
    pub fn restrict(self) -> io::Result<()> {
        // SAFETY: The ruleset is open.
        let done =
            unsafe { libc::syscall(libc::SYS_landlock_restrict_self, self.0.as_raw_fd(), 0) };
        check(done)
    }
}

fn check(done: i64) -> io::Result<()> {
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The version of landlock that the kernel has, 0 for none.
pub fn version() -> i64 {
    /// `LANDLOCK_CREATE_RULESET_VERSION` of linux/landlock.h.
    const VERSION: u32 = 1;
    let none = std::ptr::null::<libc::c_void>();
    // SAFETY: With this flag the kernel takes no attributes, and makes no descriptor.
    unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0_usize, VERSION) }.max(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn only_what_is_allowed() {
        if version() < 3 {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["own", "other"] {
            fs::create_dir(path(name)).unwrap();
            fs::write(path(name).join("file"), "1").unwrap();
        }
        let confined = || {
            rustix::thread::set_no_new_privs(true).unwrap();
            let rules = Ruleset::new().unwrap();
            let all = access::READ_FILE | access::WRITE_FILE | access::MAKE_FILE;
            rules.allow(&path("own"), all).unwrap();
            rules.allow(&path("missing"), all).unwrap();
            rules.restrict().unwrap();

            fs::write(path("own/file"), "2").unwrap();
            fs::write(path("own/new"), "2").unwrap();
            for name in ["own", "other"] {
                assert!(fs::read_dir(path(name)).is_err());
                assert!(fs::remove_file(path(name).join("file")).is_err());
            }
            assert!(fs::read(path("other/file")).is_err());
            assert!(fs::write(path("other/new"), "2").is_err());
        };
        // It is that thread's alone.
        std::thread::scope(|scope| scope.spawn(confined).join().unwrap());
        assert_eq!(fs::read_dir(path("own")).unwrap().count(), 2);
    }
}
