// SPDX-License-Identifier: GPL-2.0

//! Why a vTPM, or a guest's connection to it, cannot go on.

use std::io;

use super::tpm;
use crate::config::Uuid;
use crate::measure;
use crate::state;
use crate::swtpm;
use crate::xen;
use crate::xenbus::{Id, NodeError};

/// Why a vTPM, or a guest's connection to it, cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The toolstack's or the guest's nodes are wrong.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// Xen did not do it.
    #[error(transparent)]
    Xen(#[from] xen::Error),
    /// There is no TPM.
    #[error(transparent)]
    Tpm(#[from] tpm::Error),
    /// Another vTPM has the state, and keeps it.
    #[error("the state of vTPM {0} is in use by vtpm {1} of this host, whose guest runs")]
    InUse(Uuid, Id),
    /// There is no connection to the guest.
    #[error("{0}")]
    Connection(String),
    /// The I/O process ended before it said anything: somebody killed it, and the next one may live.
    #[error("the I/O process {0}")]
    IoProcess(String),
    /// The TPM of a guest that is running has ended.
    #[error("the TPM ended while no worker ran")]
    Gone,
    /// Its state could not be written.
    #[error("the TPM is in failure mode, as after a write that failed to {0}, where {1}")]
    FailureMode(String, String),
    /// The state is not marked as a saved guest's.
    #[error("{0}")]
    Mark(String),
    /// Something of the kernel's failed.
    #[error("{0}: {1}")]
    Io(&'static str, #[source] io::Error),
}

impl Failure {
    /// Whether the connection to xenstored is gone.
    pub(super) fn is_disconnect(&self) -> bool {
        match self {
            Self::Xen(e) | Self::Node(NodeError::Xen(e)) => e.is_disconnect(),
            _ => false,
        }
    }
}

impl From<swtpm::Error> for Failure {
    fn from(e: swtpm::Error) -> Self {
        tpm::Error::from(e).into()
    }
}

impl From<measure::Error> for Failure {
    fn from(e: measure::Error) -> Self {
        tpm::Error::from(e).into()
    }
}

impl From<state::Error> for Failure {
    fn from(e: state::Error) -> Self {
        tpm::Error::from(e).into()
    }
}
