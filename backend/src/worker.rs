// SPDX-License-Identifier: GPL-2.0

//! The worker, `xen-vtpmd serve`: everything for one vTPM, in plain blocking code. It follows the
//! vTPM's nodes, has its state, its swtpm and its I/O process, and ends with the vTPM.

use std::process::ExitCode;

use clap::Args;

use crate::config::Config;
use crate::xenbus::Id;

/// Which vTPM to serve.
#[derive(Clone, Copy, Debug, Args)]
pub struct Serve {
    /// The guest's domain
    #[arg(long)]
    pub domid: u16,
    /// The device's number there
    #[arg(long)]
    pub devid: u32,
}

impl Serve {
    /// The vTPM.
    pub fn id(self) -> Id {
        Id {
            domid: self.domid,
            devid: self.devid,
        }
    }
}

/// Serves a vTPM until it is over, which is success; after a failure the manager starts a successor.
pub fn run(_config: Config, _serve: Serve) -> ExitCode {
    ExitCode::FAILURE
}
