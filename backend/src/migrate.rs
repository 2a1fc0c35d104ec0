// SPDX-License-Identifier: GPL-2.0

//! `xen-vtpmd migrate`: a vTPM goes to another host with its guest, which xl migrates. The TPM is where the guest
//! runs, so xl's decision is the commit; marks beside the state say on both hosts who may run.
//! `Documentation/moving.rst` has the protocol and the table of failures.

pub mod depart;
pub mod key;
pub mod link;
pub mod mark;
pub mod programs;
pub mod receive;
pub mod resolve;
pub mod send;
pub mod source;

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::admin;
use crate::archive;
use crate::config::Uuid;
use crate::key::Error as KeyError;
use crate::session;
use crate::state;
use crate::worker::ask;
use crate::xen;
use crate::xenbus::NodeError;

/// The version of the messages. A host that has another one is refused before xl starts.
pub const FORMAT: u32 = 1;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The guest cannot be migrated so.
    #[error("{0}")]
    Guest(String),
    /// The other host refuses.
    #[error("{host} refuses: {reason}")]
    Refused {
        /// Which host.
        host: String,
        /// Why.
        reason: String,
    },
    /// The connection failed.
    #[error("the connection to the other host: {0}")]
    Link(#[from] io::Error),
    /// It is not known who has the TPM now.
    #[error("{0}")]
    Doubt(String),
    /// The vTPM cannot be taken here.
    #[error("vTPM {0}: {1}")]
    Unfit(Uuid, String),
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// xenstore or Xen failed.
    #[error(transparent)]
    Xen(#[from] xen::Error),
    /// A node is not what it should be.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The state cannot be used.
    #[error(transparent)]
    State(#[from] state::Error),
    /// The state cannot be packed or unpacked.
    #[error(transparent)]
    Archive(#[from] archive::Error),
    /// What is beside the state cannot be changed.
    #[error(transparent)]
    Admin(#[from] admin::Error),
    /// There is something wrong with the key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The state could not be encrypted by another key.
    #[error(transparent)]
    Session(#[from] session::Error),
    /// The worker could not do its part.
    #[error(transparent)]
    Worker(#[from] ask::Error),
}

/// What there is to know of a vTPM beforehand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Which one.
    pub uuid: String,
    /// "1.2" or "2.0".
    pub version: String,
    /// Whose seeds it has.
    pub identity: String,
    /// The name of the key that it is encrypted by, as `list` has it.
    pub key: String,
}

/// What the source says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "kebab-case")]
pub enum FromSource {
    /// What is to come, before anything is done.
    Hello {
        /// [`FORMAT`].
        format: u32,
        /// What tells this migration from all others.
        migration: String,
        /// The source's name.
        host: String,
        /// swtpm's and libtpms' versions there.
        programs: programs::Versions,
        /// The guest's vTPMs.
        vtpms: Vec<Offer>,
    },
    /// A vTPM's archive, whose bytes follow.
    State {
        /// Which vTPM.
        uuid: String,
        /// How many bytes.
        len: u64,
        /// The key that it is encrypted by, where the destination has another one.
        key: Option<String>,
    },
    /// The state does not come, and the guest must not start there.
    Abort {
        /// Why not.
        reason: String,
    },
    /// Nothing new: the source is still there.
    Alive,
    /// The guest runs at the destination.
    Commit,
    /// The guest runs at the source.
    Discard,
    /// Has the guest taken its TPM at the destination?
    Taken,
}

/// What the destination says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "kebab-case")]
pub enum FromDestination {
    /// It waits for these vTPMs; of those that are listed it wants the key, to encrypt them by its own.
    Ready {
        /// Which ones.
        wants_key: Vec<String>,
    },
    /// It does not take this.
    Refused {
        /// Why not.
        reason: String,
    },
    /// The state is here, durably.
    Stored {
        /// How long that took since it had come.
        seconds: f64,
    },
    /// It is so, or was done.
    Yes,
    /// It is not so, or could not be done.
    No {
        /// Why not.
        reason: String,
    },
}
