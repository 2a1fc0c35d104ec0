// SPDX-License-Identifier: GPL-2.0

//! The vTPM wire protocol as a Cargo crate, for the backend and the host tests. The kernel module
//! compiles `mod.rs` and what it lists, without this file and without the backend's side.

#![no_std]
#![forbid(unsafe_code)]

pub mod backend;
#[path = "mod.rs"]
mod protocol;

pub use protocol::*;
