// SPDX-License-Identifier: GPL-2.0

//! The processes behind a vTPM: swtpm itself, and swtpm_setup, which makes its state.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::io::{fcntl_setfd, FdFlags};
use rustix::process::{pidfd_open, Pid, PidfdFlags, Signal};

use super::Version;

/// A child process that is killed when it is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    pidfd: OwnedFd,
}

impl Process {
    /// Starts a program.
    pub fn spawn(command: &mut Command) -> io::Result<Self> {
        let mut child = command.spawn()?;

        match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self { child, pidfd }),
            Err(e) => {
                child.kill()?;
                child.wait()?;
                Err(e.into())
            }
        }
    }

    /// How it ended, if it has.
    pub fn exit_status(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait()
    }

    /// Sends it a signal. To a process that has ended this does nothing.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// The process's id.
    pub fn id(&self) -> u32 {
        self.child.id()
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
        // It has ended, or is made to; there is nobody left to tell about an error.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts swtpm on a state folder, with `control` as its end of the control channel. It runs in that
/// folder, so that no path has to get through the commas of its options. It ends when the daemon does.
pub(super) fn spawn_swtpm(
    version: Version,
    state: &Path,
    control: &UnixStream,
    log_prefix: &str,
) -> io::Result<Process> {
    let mut command = Command::new("swtpm");

    command.arg("socket");
    if version == Version::Tpm2 {
        command.arg("--tpm2");
    }
    command
        .arg("--terminate")
        .args(["--tpmstate", "dir=.,mode=0600"])
        .arg("--ctrl")
        .arg(format!("type=unixio,clientfd={}", control.as_raw_fd()))
        .arg("--log")
        .arg(format!("level=1,prefix={log_prefix}swtpm: "))
        .current_dir(state)
        .stdin(Stdio::null())
        .stdout(Stdio::null());

    // Nothing else is started between the two, so only this child inherits it.
    fcntl_setfd(control, FdFlags::empty())?;
    let process = Process::spawn(&mut command);
    fcntl_setfd(control, FdFlags::CLOEXEC)?;

    process
}

/// Which TPM's state is in a folder, `None` if there is none yet.
pub fn version_of_state(state: &Path) -> io::Result<Option<Version>> {
    for version in Version::ALL {
        if state.join(version.state_file()).try_exists()? {
            return Ok(Some(version));
        }
    }
    Ok(None)
}

/// State that is being made: in a folder of its own, which takes the right name only when it is
/// whole, so that an interrupted swtpm_setup leaves nothing that looks like a TPM.
#[derive(Debug)]
pub struct Setup {
    process: Process,
    unfinished: PathBuf,
    state: PathBuf,
}

impl Setup {
    /// Starts swtpm_setup for the folder `state`, which is not there yet or empty.
    pub fn spawn(version: Version, state: &Path) -> io::Result<Self> {
        let mut unfinished = state.as_os_str().to_owned();
        unfinished.push(".new");
        let unfinished = PathBuf::from(unfinished);
        let mut command = Command::new("swtpm_setup");

        match fs::remove_dir_all(&unfinished) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => (),
        }
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&unfinished)?;

        if version == Version::Tpm2 {
            // sha1 too: event logs and the kernel's own tests use that bank.
            command.args(["--tpm2", "--pcr-banks", "sha1,sha256"]);
        }
        command
            .args(["--createek", "--tpmstate", "."])
            .current_dir(&unfinished)
            .stdin(Stdio::null())
            .stdout(Stdio::null());

        Ok(Self {
            process: Process::spawn(&mut command)?,
            unfinished,
            state: state.to_owned(),
        })
    }

    /// The child.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Puts the state where it belongs, once swtpm_setup has ended well.
    pub fn finish(&self, status: ExitStatus) -> io::Result<()> {
        if !status.success() {
            fs::remove_dir_all(&self.unfinished)?;
            return Err(io::Error::other(format!("swtpm_setup failed ({status})")));
        }
        fs::rename(&self.unfinished, &self.state)
    }
}

impl AsFd for Setup {
    /// Readable when swtpm_setup has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }
}
