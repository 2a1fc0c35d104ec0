// SPDX-License-Identifier: GPL-2.0

//! swtpm: its processes ([`process`]), its control channel ([`client`], `control`), and what a backend has
//! to know of the TPM inside (`version`, [`undo`]).

pub mod client;
mod control;
#[cfg(test)]
mod fuzz;
mod inbox;
pub mod process;
pub mod undo;
mod version;

use std::io;

pub use client::{Client, GiveUp};
pub use control::{Capabilities, Capability, Reply, Request};
pub use inbox::Inbox;
pub use process::{Exit, Process};
pub use version::Version;

/// What went wrong with an swtpm.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading from or writing to one of its sockets failed.
    #[error("swtpm's {0} socket: {1}")]
    Socket(&'static str, #[source] io::Error),
    /// It said something that nobody asked for, or that makes no sense.
    #[error("swtpm's {0} socket: {1}")]
    Garbage(&'static str, String),
    /// It closed a socket, as it does when it ends.
    #[error("swtpm closed its {0} socket")]
    Closed(&'static str),
    /// It lacks what the daemon cannot do without.
    #[error("swtpm has no {0}")]
    Lacks(&'static str),
    /// It refused a control request.
    #[error("swtpm refused {0}: {1:#x}")]
    Refused(&'static str, u32),
    /// It did not do it in time.
    #[error("swtpm did not respond to {0} within {1} s")]
    Slow(&'static str, u64),
    /// It was not waited for any longer.
    #[error("swtpm did not respond to {0} until the vTPM was taken away")]
    GivenUp(&'static str),
    /// A command of the daemon's own failed.
    #[error("{0} failed: {1:#x}")]
    Command(&'static str, u32),
}
