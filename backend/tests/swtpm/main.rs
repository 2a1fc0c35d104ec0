// SPDX-License-Identifier: GPL-2.0

//! The daemon's processes against the real swtpm, without Xen. Skipped, with a message, where swtpm is not
//! installed.

mod adopt;
mod archive;
mod bench;
mod client;
mod crash;
mod isolation;
