// SPDX-License-Identifier: GPL-2.0

//! Where the bytes of one of swtpm's sockets are gathered until a message is whole.

use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{recv, RecvFlags};
use xen_tpm_protocol::layout::MAX_PACKET;
use xen_tpm_protocol::packet::{claimed_length, HEADER_SIZE};

use super::Error;

/// Bytes that arrive piece by piece, at most as many as an answer can have.
#[derive(Debug)]
pub(super) struct Inbox {
    bytes: Box<[u8; MAX_PACKET]>,
    len: usize,
    /// How long the last message was, which stays where it is until the next arrives.
    last: usize,
}

impl Inbox {
    /// With nothing in it.
    pub(super) fn new() -> Self {
        Self {
            bytes: Box::new([0; MAX_PACKET]),
            len: 0,
            last: 0,
        }
    }

    /// Takes what has arrived. False if nothing had.
    pub(super) fn fill(&mut self, socket: &UnixStream, name: &'static str) -> Result<bool, Error> {
        let room = &mut self.bytes[self.len..];
        if room.is_empty() {
            return Err(self.garbage(name));
        }
        // swtpm has a copy of the socket, and could have made it a blocking one.
        match recv(socket, room, RecvFlags::DONTWAIT) {
            Ok(0) => Err(Error::Closed(name)),
            Ok(n) => {
                self.len += n;
                Ok(true)
            }
            Err(Errno::AGAIN) => Ok(false),
            Err(e) => Err(Error::Socket(name, e.into())),
        }
    }

    /// What has arrived.
    pub(super) fn filled(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Makes room for the next message; returns the last one.
    pub(super) fn empty(&mut self) -> &[u8] {
        self.last = std::mem::take(&mut self.len);
        self.last()
    }

    /// The message that [`empty`](Self::empty) returned last.
    pub(super) fn last(&self) -> &[u8] {
        &self.bytes[..self.last]
    }

    /// The error that what is there makes no sense.
    pub(super) fn garbage(&self, name: &'static str) -> Error {
        let start = self.filled().iter().take(16).copied().collect();
        Error::Garbage(name, self.len, start)
    }

    /// Whether a whole packet is there.
    pub(super) fn packet(&self) -> Result<bool, Error> {
        let Some(claimed) = claimed_length(self.filled()) else {
            return Ok(false);
        };
        match usize::try_from(claimed) {
            Ok(n) if (HEADER_SIZE..=MAX_PACKET).contains(&n) && self.len <= n => Ok(self.len == n),
            _ => Err(self.garbage("data")),
        }
    }
}
