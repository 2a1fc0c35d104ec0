// SPDX-License-Identifier: GPL-2.0

//! The wire protocol between a vTPM's frontend and its backend: the layout of the shared page, who
//! may write what when, and how everything that the peer wrote is checked. Pure logic: no
//! allocation, no locks, no clock and no `unsafe`, so that millions of runs can test it on a host.
//!
//! Sources: Linux `include/xen/interface/io/tpmif.h`; the xen-devel thread "Change shared page
//! ABI" of April 2013; TCG TPM Main Specification 1.2 part 2 and TPM 2.0 Library part 1 for the
//! packet header. `Documentation/protocol.rst` describes the whole of it.

pub mod backoff;
pub mod be;
pub mod command;
pub mod epoch;
pub mod event_log;
pub mod frontend;
pub mod layout;
pub mod packet;
pub mod page;
pub mod quirks;
pub mod state;

pub use layout::State;
pub use page::{
    HeaderField,
    Memory,
    OutOfBounds,
    Page, //
};
