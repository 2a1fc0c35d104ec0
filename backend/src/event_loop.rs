// SPDX-License-Identifier: GPL-2.0

//! What the manager's one thread waits for: an epoll set in which each descriptor has a token that says what
//! it is.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags, EventVec};
use rustix::io::Errno;

use crate::xenbus::Id;

/// How many events one wait returns; the others come with the next.
const EVENTS_PER_WAIT: usize = 256;

/// What a descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// [`Discovery`](crate::discovery::Discovery) has messages.
    Discovery,
    /// A signal came.
    Signal,
    /// A client wants to be accepted.
    Listener,
    /// A client of the control socket.
    Client(u32),
    /// The connection to a worker.
    Connection(Id),
    /// A worker's process.
    Process(Id),
}

impl Token {
    fn encode(self) -> u64 {
        let of =
            |kind: u64, id: Id| (kind << 56) | (u64::from(id.domid) << 32) | u64::from(id.devid);
        match self {
            Self::Discovery => 0,
            Self::Signal => 1 << 56,
            Self::Listener => 2 << 56,
            Self::Client(number) => (3 << 56) | u64::from(number),
            Self::Connection(id) => of(4, id),
            Self::Process(id) => of(5, id),
        }
    }

    fn decode(word: u64) -> Self {
        let id = Id {
            domid: (word >> 32) as u16,
            devid: word as u32,
        };
        match word >> 56 {
            0 => Self::Discovery,
            1 => Self::Signal,
            2 => Self::Listener,
            3 => Self::Client(word as u32),
            4 => Self::Connection(id),
            _ => Self::Process(id),
        }
    }
}

/// The set.
#[derive(Debug)]
pub struct EventLoop(OwnedFd);

impl EventLoop {
    /// An empty one.
    pub fn new() -> io::Result<Self> {
        Ok(Self(epoll::create(CreateFlags::CLOEXEC)?))
    }

    /// Waits for this to be readable, or its other end to be gone.
    pub fn add(&self, token: Token, fd: impl AsFd) -> io::Result<()> {
        let data = EventData::new_u64(token.encode());
        Ok(epoll::add(&self.0, fd, data, EventFlags::IN)?)
    }

    /// Waits for this to be readable, writable or, with neither, for its end only.
    pub fn change(
        &self,
        token: Token,
        fd: impl AsFd,
        readable: bool,
        writable: bool,
    ) -> io::Result<()> {
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, readable);
        flags.set(EventFlags::OUT, writable);
        let data = EventData::new_u64(token.encode());
        Ok(epoll::modify(&self.0, fd, data, flags)?)
    }

    /// Takes it out. Closing would not do while a child that is being started has a copy.
    pub fn remove(&self, fd: impl AsFd) {
        // It fails only for what is not in the set.
        let _ = epoll::delete(&self.0, fd);
    }

    /// Waits until `deadline` at the latest. Returns what is ready.
    pub fn wait(&self, deadline: Option<Instant>) -> io::Result<Vec<Token>> {
        let mut events = EventVec::with_capacity(EVENTS_PER_WAIT);
        let timeout = deadline.map_or(-1, |deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up, not to wake before the deadline.
            let left = left + Duration::from_micros(999);
            i32::try_from(left.as_millis()).unwrap_or(i32::MAX)
        });

        match epoll::wait(&self.0, &mut events, timeout) {
            Ok(()) | Err(Errno::INTR) => (),
            Err(e) => return Err(e.into()),
        }
        let token = |event: epoll::Event| Token::decode({ event.data }.u64());
        Ok(events.iter().map(token).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn tokens_come_back() {
        let id = Id {
            domid: 0x7fef,
            devid: u32::MAX,
        };
        for token in [
            Token::Discovery,
            Token::Signal,
            Token::Listener,
            Token::Client(u32::MAX),
            Token::Connection(id),
            Token::Process(id),
        ] {
            assert_eq!(Token::decode(token.encode()), token);
        }
    }

    #[test]
    fn what_is_ready() {
        let events = EventLoop::new().unwrap();
        let (mut a, b) = UnixStream::pair().unwrap();
        let soon = || Some(Instant::now() + Duration::from_millis(5));
        events.add(Token::Client(7), &b).unwrap();

        assert_eq!(events.wait(soon()).unwrap(), []);
        a.write_all(b"x").unwrap();
        assert_eq!(events.wait(None).unwrap(), [Token::Client(7)]);
        events.change(Token::Client(7), &b, false, false).unwrap();
        assert_eq!(events.wait(soon()).unwrap(), []);
        events.change(Token::Client(7), &b, false, true).unwrap();
        assert_eq!(events.wait(None).unwrap(), [Token::Client(7)]);
        // A copy keeps the description alive: it has to be out of the set all the same.
        let _copy = b.try_clone().unwrap();
        events.remove(&b);
        drop(b);
        assert_eq!(events.wait(soon()).unwrap(), []);
    }
}
