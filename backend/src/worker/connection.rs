// SPDX-License-Identifier: GPL-2.0

//! The worker's side of one connection to the guest: its I/O process.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{poll, PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{socketpair, AddressFamily, SocketFlags, SocketType};

use super::tpm::Tpm;
use super::Failure;
use crate::broker;
use crate::io::link::{self, Reply, Tell};
use crate::swtpm::client::wait_readable;
use crate::swtpm::Process;
use crate::sys::shared::{Entry, Shared};
use crate::xenbus::RingParams;

/// How long the I/O process may take to map, bind and confine itself.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the kernel may take to end it.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// What a connection is made of.
pub(super) struct Opening<'a> {
    pub(super) broker: &'a broker::Client,
    pub(super) params: RingParams,
    pub(super) tpm: &'a Tpm,
    pub(super) shared: &'a Shared,
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
    pub(super) fn open(opening: &Opening<'_>) -> Result<(Self, Vec<String>), Failure> {
        let refused = |text: String| Err(Failure::Connection(text));
        let connection = match Self::spawn(opening) {
            Ok(connection) => connection,
            Err(e) => return refused(format!("starting the I/O process: {e}")),
        };
        let deadline = Instant::now() + OPEN_TIMEOUT;
        loop {
            match connection.next() {
                Err(Errno::AGAIN) => (),
                Ok(Some(Tell::Connected(lacks))) => {
                    let lacks = lacks.split(' ').filter(|lack| !lack.is_empty());
                    return Ok((connection, lacks.map(str::to_owned).collect()));
                }
                Ok(Some(Tell::Failed(reason))) => return refused(reason),
                Ok(None) => {
                    let how = connection.end_now(Some(opening.broker));
                    return Err(Failure::IoProcess(how));
                }
                Ok(message) => return refused(format!("the I/O process says {message:?}")),
                Err(e) => return refused(format!("I/O process: {e}")),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match wait_readable(&connection.link, left) {
                Ok(true) => (),
                Ok(false) => return refused("the I/O process does not get ready".into()),
                Err(e) => return refused(format!("poll: {e}")),
            }
        }
    }

    fn spawn(opening: &Opening<'_>) -> Result<Self, String> {
        let pair = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        );
        let (link, peer) = pair.map_err(|e| e.to_string())?;
        let tpm = opening.tpm;
        let inherited = [
            peer.as_fd(),
            tpm.data(),
            opening.shared.as_fd(),
            tpm.changes(),
            opening.messages.as_fd(),
        ];
        let process = opening
            .broker
            .connect(opening.params, opening.resumed, inherited)?;
        Ok(Self { link, process })
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
    pub(super) fn end_now(mut self, broker: Option<&broker::Client>) -> String {
        // What has hung up ends in a moment.
        match (self.process.wait(Duration::from_millis(100)), broker) {
            (Ok(Some(_)), Some(broker)) => broker.ended(self.process.id()),
            (Ok(_), _) => "hung up".into(),
            (Err(e), _) => e.to_string(),
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
