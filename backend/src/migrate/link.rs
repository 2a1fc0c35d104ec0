// SPDX-License-Identifier: GPL-2.0

//! The connection between the two hosts: a line of JSON for each message, and bytes after those that say so.
//! Neither side trusts the other with its memory or its time.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::Serialize;
use zeroize::Zeroizing;

use crate::swtpm::client::wait_readable;

/// The longest message.
const MAX_LINE: usize = 64 << 10;

/// More than an archive has: a few files of at most 1 MiB and an event log.
pub const MAX_BYTES: u64 = 8 << 20;

/// One end.
#[derive(Debug)]
pub struct Link {
    from: File,
    to: File,
    read: Vec<u8>,
}

impl Link {
    /// Over descriptors.
    pub fn new(from: OwnedFd, to: OwnedFd) -> Self {
        Self {
            from: from.into(),
            to: to.into(),
            read: Vec::new(),
        }
    }

    /// Sends a message.
    pub fn send(&mut self, message: &impl Serialize) -> io::Result<()> {
        // It may have a key in it.
        let mut line = Zeroizing::new(serde_json::to_vec(message)?);
        line.push(b'\n');
        self.to.write_all(&line)
    }

    /// Sends bytes after the message that says how many.
    pub fn send_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.to.write_all(bytes)
    }

    /// Reads more, until `deadline` at the latest.
    fn more(&mut self, deadline: Instant) -> io::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        if !wait_readable(&self.from, left)? {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "nothing came in time",
            ));
        }
        let mut bytes = [0; 16 << 10];
        match self.from.read(&mut bytes)? {
            0 => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "it was closed",
            )),
            n => {
                self.read.extend_from_slice(&bytes[..n]);
                Ok(())
            }
        }
    }

    /// Receives a message within `timeout`.
    pub fn receive<T: DeserializeOwned>(&mut self, timeout: Duration) -> io::Result<T> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let rest = self.read.split_off(end + 1);
                let line = Zeroizing::new(std::mem::replace(&mut self.read, rest));
                return Ok(serde_json::from_slice(&line)?);
            }
            if self.read.len() > MAX_LINE {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "a message without end",
                ));
            }
            self.more(deadline)?;
        }
    }

    /// Receives so many bytes.
    pub fn receive_bytes(&mut self, len: u64, timeout: Duration) -> io::Result<Vec<u8>> {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if len as u64 > MAX_BYTES {
            let text = format!("{len} bytes, where {MAX_BYTES} are the most");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let deadline = Instant::now() + timeout;
        while self.read.len() < len {
            self.more(deadline)?;
        }
        let rest = self.read.split_off(len);
        Ok(std::mem::replace(&mut self.read, rest))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::migrate::FromSource;

    fn pair() -> (Link, Link) {
        let (a, b) = UnixStream::pair().unwrap();
        let link = |stream: UnixStream| {
            let other = stream.try_clone().unwrap();
            Link::new(stream.into(), other.into())
        };
        (link(a), link(b))
    }

    #[test]
    fn messages_and_bytes() {
        let (mut a, mut b) = pair();
        let second = Duration::from_secs(1);
        let state = FromSource::State {
            uuid: "u".into(),
            len: 3,
            key: None,
        };
        a.send(&state).unwrap();
        a.send_bytes(b"a\nb").unwrap();
        a.send(&FromSource::Commit).unwrap();
        assert_eq!(b.receive::<FromSource>(second).unwrap(), state);
        assert_eq!(b.receive_bytes(3, second).unwrap(), b"a\nb");
        assert_eq!(b.receive::<FromSource>(second).unwrap(), FromSource::Commit);
        drop(a);
        assert!(b.receive::<FromSource>(second).is_err());
    }

    #[test]
    fn what_is_too_much_or_never_comes() {
        let (mut a, mut b) = pair();
        let soon = Duration::from_millis(20);
        let e = b.receive::<FromSource>(soon).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::TimedOut);
        assert!(b.receive_bytes(MAX_BYTES + 1, soon).is_err());
        a.send_bytes(&vec![b'x'; MAX_LINE + 1]).unwrap();
        let e = b.receive::<FromSource>(soon).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::InvalidData);
        a.send_bytes(b"\n").unwrap();
        let (mut a, mut b) = pair();
        a.send_bytes(b"{\"message\":\"nonsense\"}\n").unwrap();
        assert!(b.receive::<FromSource>(soon).is_err());
    }
}
