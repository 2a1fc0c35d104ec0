// SPDX-License-Identifier: GPL-2.0

//! The worker's side of one connection to the guest: its I/O process.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{poll, PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{socketpair, AddressFamily, SocketFlags, SocketType};

use super::tpm::Tpm;
use crate::config::{Config, Sandbox};
use crate::io::link::{self, Reply, Tell};
use crate::swtpm::client::wait_readable;
use crate::swtpm::Process;
use crate::sys::shared::{Entry, Shared};
use crate::xenbus::{Id, RingParams};

/// How long the I/O process may take to map, bind and confine itself.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the kernel may take to end it.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// What a connection is made of.
pub(super) struct Opening<'a> {
    pub(super) config: &'a Config,
    pub(super) id: Id,
    pub(super) params: RingParams,
    pub(super) tpm: &'a Tpm,
    pub(super) shared: &'a Shared,
    pub(super) localities: u8,
    pub(super) resumed: bool,
    pub(super) messages: &'a File,
}

/// A connection. Dropping it kills the I/O process, and with that unmaps the page and unbinds the port.
#[derive(Debug)]
pub(super) struct Connection {
    link: OwnedFd,
    process: Process,
}

impl Connection {
    /// Starts the I/O process, and waits until it has the page or says why not. Returns what the kernel lacks
    /// to confine it.
    pub(super) fn open(opening: &Opening<'_>) -> Result<(Self, Vec<String>), String> {
        let connection =
            Self::spawn(opening).map_err(|e| format!("starting the I/O process: {e}"))?;
        let deadline = Instant::now() + OPEN_TIMEOUT;
        loop {
            match connection.next() {
                Err(Errno::AGAIN) => (),
                Ok(Some(Tell::Connected(lacks))) => {
                    let lacks = lacks.split(' ').filter(|lack| !lack.is_empty());
                    return Ok((connection, lacks.map(str::to_owned).collect()));
                }
                Ok(Some(Tell::Failed(reason))) => return Err(reason),
                Ok(message) => {
                    return Err(format!(
                        "the I/O process ended: {message:?}, {}",
                        connection.end_now()
                    ))
                }
                Err(e) => return Err(format!("I/O process: {e}")),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match wait_readable(&connection.link, left) {
                Ok(true) => (),
                Ok(false) => return Err("the I/O process does not get ready".into()),
                Err(e) => return Err(format!("poll: {e}")),
            }
        }
    }

    fn spawn(opening: &Opening<'_>) -> std::io::Result<Self> {
        let (link, peer) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let tpm = opening.tpm;
        let mut command = Command::new(&opening.config.launcher);
        command.arg0("xen-vtpmd");
        command
            .arg("io")
            .args(["--domid", &opening.id.domid.to_string()])
            .args(["--ring-ref", &opening.params.ring_ref.to_string()])
            .args(["--port", &opening.params.port.to_string()])
            .args(["--version", &tpm.version().to_string()])
            .args(["--localities", &opening.localities.to_string()])
            .args(["--worker", &peer.as_raw_fd().to_string()])
            .args(["--data", &tpm.data().as_raw_fd().to_string()])
            .args(["--shared", &opening.shared.as_fd().as_raw_fd().to_string()])
            .args(["--changes", &tpm.changes().as_raw_fd().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(opening.messages.try_clone()?);
        if let Some(uid) = tpm.uid() {
            command.args(["--uid", &uid.to_string()]);
        }
        for (is, option) in [
            (opening.resumed, "--resumed"),
            (
                opening.config.sandbox == Sandbox::Required,
                "--sandbox-required",
            ),
        ] {
            if is {
                command.arg(option);
            }
        }
        let shared = opening.shared.as_fd();
        let inherited = [peer.as_fd(), tpm.data(), shared, tpm.changes()];
        Ok(Self {
            link,
            process: Process::spawn(&mut command, &inherited)?,
        })
    }

    /// The next message that is there.
    pub(super) fn next(&self) -> Result<Option<Tell>, Errno> {
        link::next(&self.link)
    }

    /// Whether there is a message, and not only the end.
    pub(super) fn has_message(&self) -> bool {
        let mut fds = [PollFd::new(&self.link, PollFlags::IN)];
        matches!(poll(&mut fds, 0), Ok(1))
            && fds[0].revents().contains(PollFlags::IN)
            && !fds[0].revents().contains(PollFlags::HUP)
    }

    /// Says that what was asked for was done, or not. A process that does not listen is noticed by its end.
    pub(super) fn done(&self, done: bool) {
        let _ = link::send_reply(&self.link, Reply::Done(done));
    }

    /// Has it end when the guest has its response, and waits for that.
    pub(super) fn finish(mut self, shared: &Shared, timeout: Duration) {
        if is_under_way(shared) {
            let _ = link::send_reply(&self.link, Reply::Quit);
            let _ = self.process.wait(timeout);
        }
    }

    /// Lets the guest go. If the TPM is busy with its command, the process lives on until that has ended.
    pub(super) fn leave(self, shared: &Shared) -> Option<Self> {
        let told = is_under_way(shared) && link::send_reply(&self.link, Reply::Leave).is_ok();
        told.then_some(self)
    }

    /// Ends it; says how it ended if it had already.
    pub(super) fn end_now(mut self) -> String {
        // What has hung up ends in a moment.
        match self.process.wait(Duration::from_millis(100)) {
            Ok(Some(exit)) => format!("ended ({exit})"),
            Ok(None) => "hung up".into(),
            Err(e) => e.to_string(),
        }
    }

    pub(super) fn link(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }

    pub(super) fn process(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.id()
    }
}

/// Whether the I/O process waits for a response.
pub(super) fn is_under_way(shared: &Shared) -> bool {
    matches!(shared.entry(), Entry::Command(_) | Entry::Left)
}

impl Drop for Connection {
    fn drop(&mut self) {
        match self.process.kill(KILL_TIMEOUT) {
            Ok(Some(_)) => (),
            Ok(None) => log::error!("I/O process {} does not end", self.process.id()),
            Err(e) => log::error!("I/O process {}: {e}", self.process.id()),
        }
    }
}
