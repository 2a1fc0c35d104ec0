// SPDX-License-Identifier: GPL-2.0

//! The I/O process, `xen-vtpmd io`: the only one that looks at the guest's page and at swtpm's
//! responses. It maps the page, binds the event channel, gives up everything else, and only then reads.

use std::process::ExitCode;

use clap::Args;

/// One connection to a guest. The descriptors are inherited from the worker.
#[derive(Clone, Copy, Debug, Args)]
pub struct Io {
    /// The guest's domain
    #[arg(long)]
    pub domid: u16,
    /// The grant of its page
    #[arg(long)]
    pub ring_ref: u32,
    /// The port of its event channel
    #[arg(long)]
    pub port: u32,
}

/// Serves the connection until the worker ends it.
pub fn run(_io: Io) -> ExitCode {
    ExitCode::FAILURE
}
