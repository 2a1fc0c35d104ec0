// SPDX-License-Identifier: GPL-2.0

//! Where the bytes of a response are gathered until it is whole. They may be secrets: they are wiped.

use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::net::{recv, RecvFlags};
use xen_tpm_protocol::layout::MAX_PACKET;
use xen_tpm_protocol::packet::{claimed_length, HEADER_SIZE};
use zeroize::Zeroize;

/// Bytes that arrive piece by piece, at most as many as a response can have.
#[derive(Debug)]
pub struct Inbox {
    bytes: Box<[u8; MAX_PACKET]>,
    len: usize,
}

impl Inbox {
    /// With nothing in it.
    pub fn new() -> Self {
        Self {
            bytes: Box::new([0; MAX_PACKET]),
            len: 0,
        }
    }

    /// Takes what has arrived, without waiting: true if the response is whole now. An error is the end of the
    /// connection.
    pub fn fill(&mut self, socket: impl AsFd) -> Result<bool, String> {
        let room = &mut self.bytes[self.len..];
        if room.is_empty() {
            return Err(self.garbage());
        }
        match recv(socket, room, RecvFlags::DONTWAIT) {
            Ok(0) | Err(Errno::CONNRESET) => return Err("closed by swtpm".into()),
            Ok(n) => self.len += n,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(false),
            Err(e) => return Err(e.to_string()),
        }
        self.is_whole()
    }

    /// What has arrived.
    pub fn packet(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Forgets it.
    pub fn wipe(&mut self) {
        self.bytes[..self.len].zeroize();
        self.len = 0;
    }

    fn is_whole(&self) -> Result<bool, String> {
        let Some(claimed) = claimed_length(self.packet()) else {
            return Ok(false);
        };
        match usize::try_from(claimed) {
            Ok(n) if (HEADER_SIZE..=MAX_PACKET).contains(&n) && self.len <= n => Ok(self.len == n),
            _ => Err(self.garbage()),
        }
    }

    fn garbage(&self) -> String {
        let start = &self.packet()[..self.len.min(16)];
        format!("{} bytes that are no response: {start:02x?}", self.len)
    }
}

impl Default for Inbox {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.wipe();
    }
}
