// SPDX-License-Identifier: GPL-2.0

//! Safe handles on Xen: xenstore, event channels and granted pages. Knows nothing of vTPMs.

mod domain;
mod event;
mod grant;
mod store;
mod sys;

use std::io;

pub use domain::{Domain, Domains};
pub use event::EventChannel;
pub use grant::GrantedPage;
pub use store::{Store, Transaction, WatchEvent};

/// A call into Xen's libraries that failed.
#[derive(Debug, thiserror::Error)]
#[error("{call} {on}: {source}")]
pub struct Error {
    /// What was tried, in words.
    call: &'static str,
    /// The node, grant or port that it was tried on.
    on: String,
    /// What the library left in `errno`.
    source: io::Error,
}

impl Error {
    /// The error that the call which just returned left in `errno`.
    fn last(call: &'static str, on: impl ToString) -> Self {
        Self::new(call, on, io::Error::last_os_error())
    }

    /// An error with a cause of our own.
    fn new(call: &'static str, on: impl ToString, source: io::Error) -> Self {
        Self {
            call,
            on: on.to_string(),
            source,
        }
    }

    /// Whether the connection is gone for good, as when xenstored has ended.
    pub fn is_disconnect(&self) -> bool {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected, UnexpectedEof};
        matches!(self.source.raw_os_error(), Some(libc::EBADF))
            || matches!(
                self.kind(),
                BrokenPipe | ConnectionReset | NotConnected | UnexpectedEof
            )
    }

    /// The kind of the cause.
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }
}
