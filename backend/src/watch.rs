// SPDX-License-Identifier: GPL-2.0

//! What the event loop waits for. A thing with a descriptor is put in with an owner's number and a code
//! of the owner's, which come back when it got readable; dropping the guard takes it out again.

use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags, EventVec};
use rustix::event::{poll, PollFd, PollFlags};
use rustix::io::Errno;

/// How many events one wait returns at most; the others come with the next.
const AT_ONCE: usize = 64;

/// A set of things to wait for.
#[derive(Debug)]
pub struct Watcher {
    epoll: Rc<OwnedFd>,
}

/// One owner's way into a [`Watcher`]'s set.
#[derive(Clone, Debug)]
pub struct Registrar {
    epoll: Rc<OwnedFd>,
    owner: u32,
}

/// Something in a [`Watcher`]'s set. It gets out of it when dropped, which closing the descriptor would
/// not do where another process has a copy.
#[derive(Debug)]
pub struct Watched<T: AsFd> {
    epoll: Rc<OwnedFd>,
    inner: T,
}

impl Watcher {
    /// An empty set.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: Rc::new(epoll::create(CreateFlags::CLOEXEC)?),
        })
    }

    /// The way in for the owner with this number.
    pub fn registrar(&self, owner: u32) -> Registrar {
        Registrar {
            epoll: self.epoll.clone(),
            owner,
        }
    }

    /// Waits until something is readable, for so many milliseconds at most (-1: for ever). Returns
    /// owners and codes.
    pub fn wait(&self, timeout: i32) -> io::Result<Vec<(u32, u8)>> {
        let mut events = EventVec::with_capacity(AT_ONCE);

        match epoll::wait(&self.epoll, &mut events, timeout) {
            Ok(()) | Err(Errno::INTR) => (),
            Err(e) => return Err(e.into()),
        }
        let key = |data: EventData| ((data.u64() >> 8) as u32, data.u64() as u8);
        Ok(events.iter().map(|event| key(event.data)).collect())
    }
}

impl Registrar {
    /// Puts something in, to be told when it is readable.
    pub fn add<T: AsFd>(&self, code: u8, inner: T) -> io::Result<Watched<T>> {
        self.add_for(EventFlags::IN, code, inner)
    }

    /// Puts something in, to be told when it is writable.
    pub fn add_writable<T: AsFd>(&self, code: u8, inner: T) -> io::Result<Watched<T>> {
        self.add_for(EventFlags::OUT, code, inner)
    }

    fn add_for<T: AsFd>(&self, what: EventFlags, code: u8, inner: T) -> io::Result<Watched<T>> {
        let key = (u64::from(self.owner) << 8) | u64::from(code);
        epoll::add(&self.epoll, &inner, EventData::new_u64(key), what)?;

        Ok(Watched {
            epoll: self.epoll.clone(),
            inner,
        })
    }
}

/// Waits for one descriptor, for what is not the event loop's. False if the time was up.
pub fn wait_readable(fd: impl AsFd, limit: Duration) -> io::Result<bool> {
    let limit = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);

    match poll(&mut [PollFd::new(&fd, PollFlags::IN)], limit) {
        Ok(n) => Ok(n > 0),
        Err(Errno::INTR) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

impl<T: AsFd> Deref for Watched<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T: AsFd> DerefMut for Watched<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

impl<T: AsFd> Drop for Watched<T> {
    fn drop(&mut self) {
        // It fails only if the descriptor is not in the set, which is as good.
        let _ = epoll::delete(&self.epoll, &self.inner);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn those_that_always_have_something_take_turns() {
        let watcher = Watcher::new().unwrap();
        let all: Vec<_> = (1..=AT_ONCE as u32 + 1)
            .map(|owner| {
                let (mut a, b) = UnixStream::pair().unwrap();
                a.write_all(b"x").unwrap();
                (a, watcher.registrar(owner).add(0, b).unwrap())
            })
            .collect();

        let mut turns = vec![0; all.len()];
        for _ in 0..all.len() {
            for (owner, _) in watcher.wait(1000).unwrap() {
                turns[owner as usize - 1] += 1;
            }
        }
        assert_eq!(turns, vec![AT_ONCE; all.len()]);
    }

    #[test]
    fn who_got_readable() {
        let watcher = Watcher::new().unwrap();
        let (mut a, b) = UnixStream::pair().unwrap();
        let watched = watcher.registrar(7_000).add(3, b).unwrap();

        assert_eq!(watcher.wait(0).unwrap(), []);
        a.write_all(b"x").unwrap();
        assert_eq!(watcher.wait(1000).unwrap(), [(7_000, 3)]);
        // A copy keeps the descriptor's description alive: it has to be out of the set all the same.
        let _copy = watched.try_clone().unwrap();
        drop(watched);
        assert_eq!(watcher.wait(0).unwrap(), []);
    }
}
