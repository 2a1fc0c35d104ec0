// SPDX-License-Identifier: GPL-2.0

//! The exchange, as the kernel module runs it, in worlds that are worse than any real one.
//! `Documentation/security.rst` tells what is checked, and what this cannot see.

#![forbid(unsafe_code)]

pub mod choice;
pub mod world;
