// SPDX-License-Identifier: GPL-2.0

//! The processes behind a vTPM: swtpm itself, and swtpm_setup, which makes its state.

use std::fmt;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use rustix::process::{kill_process_group, pidfd_open, pidfd_send_signal, Pid, PidfdFlags, Signal};

use crate::config::Config;
use crate::launch::{Launch, Program};
use crate::record::Found;
use crate::state::{self, State};
use crate::watch::wait_readable;

/// The longest reason for its end that a process may give.
const MAX_REASON: u64 = 2_000;

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// What it said as it could not start.
    reason: String,
    /// Its status. Only its parent learns it, and that may have been a former daemon.
    status: Option<ExitStatus>,
}

impl Exit {
    /// Whether it is known to have ended well.
    pub fn success(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.reason.as_str(), self.status) {
            ("", Some(status)) => status.fmt(f),
            ("", None) => f.write_str("exit status unknown, since a former daemon started it"),
            (reason, _) => f.write_str(reason),
        }
    }
}

/// What becomes of a process that is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OnDrop {
    Kill,
    Leave,
}

/// A process that is killed when it is dropped, unless it was [left](Self::leave) to the next daemon.
#[derive(Debug)]
pub struct Process {
    /// `None` for one that a former daemon started.
    child: Option<Child>,
    pidfd: OwnedFd,
    id: u32,
    on_drop: OnDrop,
}

impl Process {
    /// Starts a program, whose standard output is for what keeps it from starting.
    pub fn spawn(command: &mut Command) -> io::Result<Self> {
        let mut child = command.spawn()?;

        match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self {
                id: child.id(),
                child: Some(child),
                pidfd,
                on_drop: OnDrop::Kill,
            }),
            Err(e) => {
                child.kill()?;
                child.wait()?;
                Err(e.into())
            }
        }
    }

    /// Takes over one that a former daemon started.
    pub fn adopt(found: Found) -> Self {
        Self {
            child: None,
            id: found.record.pid.unsigned_abs(),
            pidfd: found.pidfd,
            on_drop: OnDrop::Kill,
        }
    }

    /// Lets it live on without this daemon.
    pub fn leave(&mut self) {
        self.on_drop = OnDrop::Leave;
    }

    /// How it ended, if it has.
    pub fn exit(&mut self) -> io::Result<Option<Exit>> {
        let Some(child) = &mut self.child else {
            let ended = wait_readable(&self.pidfd, Duration::ZERO)?;
            return Ok(ended.then(|| Exit {
                reason: String::new(),
                status: None,
            }));
        };
        if !wait_readable(&self.pidfd, Duration::ZERO)? {
            return Ok(None);
        }
        end_group(child);
        let status = child.try_wait()?;

        Ok(status.map(|status| {
            let mut reason = Vec::new();
            if let Some(said) = child.stdout.take() {
                // It has ended, so this does not wait.
                let _ = said.take(MAX_REASON).read_to_end(&mut reason);
            }
            Exit {
                reason: String::from_utf8_lossy(&reason).trim().to_string(),
                status: Some(status),
            }
        }))
    }

    /// Waits for its end, for so long at most.
    pub fn wait(&mut self, limit: Duration) -> io::Result<Option<Exit>> {
        match wait_readable(&self.pidfd, limit)? {
            true => self.exit(),
            false => Ok(None),
        }
    }

    /// Sends it a signal. To a process that has ended this does nothing.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// The process's id.
    pub fn id(&self) -> u32 {
        self.id
    }
}

impl AsFd for Process {
    /// Readable when the process has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A daemon that panics is followed by another, which will take it over.
        if self.on_drop == OnDrop::Leave || std::thread::panicking() {
            return;
        }
        // It has ended, or is made to; there is nobody left to tell about an error.
        let _ = self.signal(Signal::Kill);
        let _ = wait_readable(&self.pidfd, Duration::from_secs(1));
        if let Some(child) = &mut self.child {
            end_group(child);
            drop(child.wait());
        }
    }
}

/// Ends what a process has left behind: swtpm_setup starts an swtpm, which would live on when its parent is
/// killed, and keep the state locked for ever. The launcher makes a group for all of them, whose number is
/// no other's as long as nobody has waited for the child.
fn end_group(child: &Child) {
    // Most often there is none left.
    let _ = kill_process_group(Pid::from_child(child), Signal::Kill);
}

/// State that is being made: in a folder of its own, which takes the right name only when it is
/// whole, so that an interrupted swtpm_setup leaves nothing that looks like a TPM.
#[derive(Debug)]
pub struct Setup {
    process: Process,
    config: Config,
    state: State,
}

impl Setup {
    /// Starts swtpm_setup for a state that is not there yet.
    pub fn spawn(config: &Config, state: &State) -> io::Result<Self> {
        let certificates = config.policy(&state.uuid).certificates;
        let launch = Launch::new(config, state, Program::Setup { certificates });

        Ok(Self {
            process: Process::spawn(&mut launch.command(config)?)?,
            config: config.clone(),
            state: state.clone(),
        })
    }

    /// The child.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// What is being made.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Puts the state where it belongs, once swtpm_setup has ended well.
    pub fn finish(&self, exit: &Exit) -> Result<(), SetupError> {
        if !exit.success() {
            return Err(SetupError::Failed(exit.clone()));
        }
        let _lock = self.state.lock()?;
        Ok(self.state.finish(&self.config, false)?)
    }
}

/// Why there is no new state.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// swtpm_setup failed. What it wrote to standard error says more.
    #[error("swtpm_setup: {0}")]
    Failed(Exit),
    /// What it made could not be put where it belongs.
    #[error(transparent)]
    State(#[from] state::Error),
}

impl AsFd for Setup {
    /// Readable when swtpm_setup has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }
}
