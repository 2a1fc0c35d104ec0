// SPDX-License-Identifier: GPL-2.0

//! A connection to xenstored.

use std::ffi::{c_char, c_uint, c_void, CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;

use super::{sys, Error};

/// How often a transaction is tried that somebody else gets in between.
const MAX_ATTEMPTS: u32 = 100;

/// A connection to xenstored. Paths that do not start with a slash are relative to the own domain.
///
/// # Invariants
///
/// `handle` came from `xs_open` and was not closed.
#[derive(Debug)]
pub struct Store {
    handle: NonNull<sys::XsHandle>,
}

/// Something changed at or under a watched path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchEvent {
    /// The path that changed.
    pub path: String,
    /// The token that was given to [`Store::watch`].
    pub token: String,
}

impl Store {
    /// Connects to xenstored.
    pub fn open() -> Result<Self, Error> {
        // SAFETY: No preconditions.
        let handle = unsafe { sys::xs_open(0) };

        // INVARIANT: A handle that is not null is open.
        NonNull::new(handle)
            .map(|handle| Self { handle })
            .ok_or_else(|| Error::last("connecting to", "xenstored"))
    }

    /// Does something in a transaction: either nobody else changed meanwhile what it read or wrote, or it is
    /// done again.
    pub fn transaction<T, E: From<Error>>(
        &self,
        act: impl Fn(&Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        const CALL: &str = "transaction of";
        for _ in 0..MAX_ATTEMPTS {
            // SAFETY: The handle is open by the type invariant.
            let id = unsafe { sys::xs_transaction_start(self.handle()) };
            if id == sys::XBT_NULL {
                return Err(Error::last(CALL, "xenstored").into());
            }
            let done = act(&Transaction { store: self, id });
            let abort = done.is_err();
            // SAFETY: As before; the transaction was started above and ends here.
            let ended = unsafe { sys::xs_transaction_end(self.handle(), id, abort) };
            if abort || ended {
                return done;
            }
            let error = Error::last(CALL, "xenstored");
            if error.kind() != io::ErrorKind::WouldBlock {
                return Err(error.into());
            }
        }
        Err(Error::new(CALL, "xenstored", io::ErrorKind::WouldBlock.into()).into())
    }

    /// The value of a node, `None` when there is no such node.
    pub fn read(&self, path: &str) -> Result<Option<String>, Error> {
        self.read_in(sys::XBT_NULL, path)
    }

    fn read_in(&self, transaction: u32, path: &str) -> Result<Option<String>, Error> {
        const CALL: &str = "reading xenstore node";
        let c_path = c_string(CALL, path)?;
        let mut len: c_uint = 0;
        // SAFETY: The handle is open by the type invariant, the path ends in NUL, `len` is ours.
        let data = unsafe { sys::xs_read(self.handle(), transaction, c_path.as_ptr(), &mut len) };
        let Some(data) = Allocation::new(data) else {
            return none_if_missing(Error::last(CALL, path));
        };
        let len = usize::try_from(len)
            .map_err(|_| Error::new(CALL, path, io::ErrorKind::InvalidData.into()))?;
        // SAFETY: xs_read returns `len` bytes, which `data` keeps alive for this borrow.
        let bytes = unsafe { std::slice::from_raw_parts(data.0.as_ptr().cast::<u8>(), len) };

        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Some(text.to_owned())),
            Err(e) => {
                let source = io::Error::new(io::ErrorKind::InvalidData, e);
                Err(Error::new(CALL, path, source))
            }
        }
    }

    /// Writes a node, and makes it and its parents where they are missing.
    pub fn write(&self, path: &str, value: &str) -> Result<(), Error> {
        self.write_in(sys::XBT_NULL, path, value)
    }

    fn write_in(&self, transaction: u32, path: &str, value: &str) -> Result<(), Error> {
        const CALL: &str = "writing xenstore node";
        let c_path = c_string(CALL, path)?;
        let len = c_uint::try_from(value.len())
            .map_err(|_| Error::new(CALL, path, io::ErrorKind::InvalidInput.into()))?;
        // SAFETY: The handle is open by the type invariant, the path ends in NUL, and `value` has
        // `len` bytes.
        let done = unsafe {
            sys::xs_write(
                self.handle(),
                transaction,
                c_path.as_ptr(),
                value.as_ptr().cast::<c_void>(),
                len,
            )
        };

        done.then_some(()).ok_or_else(|| Error::last(CALL, path))
    }

    /// Removes a node and all below it. That there is none is fine.
    pub fn remove(&self, path: &str) -> Result<(), Error> {
        self.remove_in(sys::XBT_NULL, path)
    }

    fn remove_in(&self, transaction: u32, path: &str) -> Result<(), Error> {
        const CALL: &str = "removing xenstore node";
        let c_path = c_string(CALL, path)?;
        // SAFETY: The handle is open by the type invariant and the path ends in NUL.
        let done = unsafe { sys::xs_rm(self.handle(), transaction, c_path.as_ptr()) };

        if done {
            return Ok(());
        }
        none_if_missing::<()>(Error::last(CALL, path)).map(|_| ())
    }

    /// The names of a node's children; none when there is no such node.
    pub fn list(&self, path: &str) -> Result<Vec<String>, Error> {
        const CALL: &str = "listing xenstore node";
        let c_path = c_string(CALL, path)?;
        let mut num: c_uint = 0;
        // SAFETY: The handle is open by the type invariant, the path ends in NUL, `num` is ours.
        let names =
            unsafe { sys::xs_directory(self.handle(), sys::XBT_NULL, c_path.as_ptr(), &mut num) };
        let Some(names) = Allocation::new(names.cast()) else {
            return none_if_missing(Error::last(CALL, path)).map(Option::unwrap_or_default);
        };

        Ok((0..num as usize)
            // SAFETY: xs_directory returns `num` strings in one allocation, which `names` keeps.
            .map(|i| unsafe { names.string(i) })
            .collect())
    }

    /// Asks for a [`WatchEvent`] with this token whenever something changes at or under `path`.
    /// One comes at once.
    pub fn watch(&self, path: &str, token: &str) -> Result<(), Error> {
        const CALL: &str = "watching xenstore node";
        let (c_path, c_token) = (c_string(CALL, path)?, c_string(CALL, token)?);
        // SAFETY: The handle is open by the type invariant and both strings end in NUL.
        let done = unsafe { sys::xs_watch(self.handle(), c_path.as_ptr(), c_token.as_ptr()) };

        done.then_some(()).ok_or_else(|| Error::last(CALL, path))
    }

    /// Takes back a [`watch`](Self::watch).
    pub fn unwatch(&self, path: &str, token: &str) -> Result<(), Error> {
        const CALL: &str = "no longer watching xenstore node";
        let (c_path, c_token) = (c_string(CALL, path)?, c_string(CALL, token)?);
        // SAFETY: The handle is open by the type invariant and both strings end in NUL.
        let done = unsafe { sys::xs_unwatch(self.handle(), c_path.as_ptr(), c_token.as_ptr()) };

        done.then_some(()).ok_or_else(|| Error::last(CALL, path))
    }

    /// The next event that is there, without waiting for one.
    pub fn next_event(&self) -> Result<Option<WatchEvent>, Error> {
        // SAFETY: The handle is open by the type invariant.
        let pair = unsafe { sys::xs_check_watch(self.handle()) };
        let Some(pair) = Allocation::new(pair.cast()) else {
            let error = Error::last("waiting for", "xenstore watches");
            return match error.kind() {
                io::ErrorKind::WouldBlock => Ok(None),
                _ => Err(error),
            };
        };

        Ok(Some(WatchEvent {
            // SAFETY: An event is two strings, the path (XS_WATCH_PATH = 0) first.
            path: unsafe { pair.string(0) },
            // SAFETY: And the token (XS_WATCH_TOKEN = 1) second.
            token: unsafe { pair.string(1) },
        }))
    }

    fn handle(&self) -> *mut sys::XsHandle {
        self.handle.as_ptr()
    }
}

/// A transaction under way.
#[derive(Debug)]
pub struct Transaction<'a> {
    store: &'a Store,
    id: u32,
}

impl Transaction<'_> {
    /// As [`Store::read`].
    pub fn read(&self, path: &str) -> Result<Option<String>, Error> {
        self.store.read_in(self.id, path)
    }

    /// As [`Store::write`].
    pub fn write(&self, path: &str, value: &str) -> Result<(), Error> {
        self.store.write_in(self.id, path, value)
    }

    /// As [`Store::remove`].
    pub fn remove(&self, path: &str) -> Result<(), Error> {
        self.store.remove_in(self.id, path)
    }
}

impl AsFd for Store {
    /// Readable when [`next_event`](Store::next_event) has something.
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: The handle is open by the type invariant.
        let fd = unsafe { sys::xs_fileno(self.handle()) };
        assert!(fd >= 0, "libxenstore could not make its pipe for watches");
        // SAFETY: The descriptor is the handle's and stays open as long as that, which `self` owns.
        unsafe { BorrowedFd::borrow_raw(fd) }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: The handle is open by the type invariant, and nobody uses it afterwards.
        unsafe { sys::xs_close(self.handle()) };
    }
}

/// Something that libxenstore allocated with malloc(3).
struct Allocation(NonNull<c_void>);

impl Allocation {
    fn new(p: *mut c_void) -> Option<Self> {
        NonNull::new(p).map(Self)
    }

    /// A copy of string `i` of an array of strings.
    ///
    /// # Safety
    ///
    /// The allocation is an array of more than `i` pointers to strings that end in NUL.
    unsafe fn string(&self, i: usize) -> String {
        let array = self.0.as_ptr().cast::<*const c_char>();
        // SAFETY: There are more than `i` pointers by this function's contract.
        let string = unsafe { array.add(i) };
        // SAFETY: As before; malloc(3) aligns for pointers.
        let string = unsafe { *string };
        // SAFETY: Each points to a string by this function's contract.
        let string = unsafe { CStr::from_ptr(string) };

        string.to_string_lossy().into_owned()
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: It came from malloc and is freed once.
        unsafe { sys::free(self.0.as_ptr()) };
    }
}

fn c_string(call: &'static str, text: &str) -> Result<CString, Error> {
    CString::new(text).map_err(|e| Error::new(call, text.escape_debug(), e.into()))
}

/// A node that is not there is `None` rather than an error.
fn none_if_missing<T>(error: Error) -> Result<Option<T>, Error> {
    match error.kind() {
        io::ErrorKind::NotFound => Ok(None),
        _ => Err(error),
    }
}
