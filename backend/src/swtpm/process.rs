// SPDX-License-Identifier: GPL-2.0

//! A process that the worker has started, or that a former worker has: held by a pidfd, so that its number is
//! no other's. Dropping it leaves it alone.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use rustix::process::{pidfd_open, pidfd_send_signal, Pid, PidfdFlags, Signal};

use super::client::wait_readable;
use crate::sys::spawn_with;

/// How a process ended: its status, which only its parent learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit(Option<ExitStatus>);

impl Exit {
    /// Whether it is known to have ended well.
    pub fn success(&self) -> bool {
        self.0.is_some_and(|status| status.success())
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(status) => status.fmt(f),
            None => f.write_str("exit status unknown, since a former worker started it"),
        }
    }
}

/// A process.
#[derive(Debug)]
pub struct Process {
    /// `None` for one that a former worker started.
    child: Option<Child>,
    pidfd: OwnedFd,
    id: u32,
}

impl Process {
    /// Starts a program that inherits these descriptors.
    pub fn spawn(command: &mut Command, inherited: &[BorrowedFd<'_>]) -> io::Result<Self> {
        let mut child = spawn_with(command, inherited)?;
        match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self {
                id: child.id(),
                child: Some(child),
                pidfd,
            }),
            Err(e) => {
                child.kill()?;
                child.wait()?;
                Err(e.into())
            }
        }
    }

    /// One that a former worker started.
    pub fn adopt(id: u32, pidfd: OwnedFd) -> Self {
        Self {
            child: None,
            pidfd,
            id,
        }
    }

    /// The process's id.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The child, if it is one.
    pub fn child(&mut self) -> Option<&mut Child> {
        self.child.as_mut()
    }

    /// How it ended, if it has.
    pub fn exit(&mut self) -> io::Result<Option<Exit>> {
        self.wait(Duration::ZERO)
    }

    /// Waits for its end, for so long at most.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<Option<Exit>> {
        if !wait_readable(&self.pidfd, timeout)? {
            return Ok(None);
        }
        let status = match &mut self.child {
            Some(child) => Some(child.wait()?),
            None => None,
        };
        Ok(Some(Exit(status)))
    }

    /// Sends it a signal. To a process that has ended this does nothing.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Kills it, and waits for its end for so long at most.
    pub fn kill(&mut self, timeout: Duration) -> io::Result<Option<Exit>> {
        self.signal(Signal::Kill)?;
        self.wait(timeout)
    }
}

impl AsFd for Process {
    /// Readable when the process has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}
