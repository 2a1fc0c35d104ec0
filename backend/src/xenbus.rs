// SPDX-License-Identifier: GPL-2.0

//! What xenbus and libxl have in xenstore for a vTPM: the names of the nodes, and the strict reading
//! of their values.

use std::fmt;
use std::str::FromStr;

use xen_tpm_protocol::layout::{
    speaks_protocol, FEATURE_VALUE, NODE_EVENT_CHANNEL, NODE_FEATURE, NODE_RING_REF,
};

use crate::xen::{self, Store};

/// Domain ids from here on are not domains (`DOMID_FIRST_RESERVED`).
const FIRST_RESERVED: u16 = 0x7ff0;

/// A xenbus state, as one end shows it to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum BusState {
    /// Something changed under a live system; not used by this daemon.
    Unknown = 0,
    /// The device is new.
    Initialising = 1,
    /// The backend is ready for the frontend's particulars.
    InitWait = 2,
    /// The frontend has published its particulars.
    Initialised = 3,
    /// Commands flow.
    Connected = 4,
    /// One end wants the connection to end.
    Closing = 5,
    /// The connection has ended.
    Closed = 6,
    /// Being reconfigured.
    Reconfiguring = 7,
    /// Was reconfigured.
    Reconfigured = 8,
}

impl BusState {
    /// Every state.
    pub const ALL: [Self; 9] = [
        Self::Unknown,
        Self::Initialising,
        Self::InitWait,
        Self::Initialised,
        Self::Connected,
        Self::Closing,
        Self::Closed,
        Self::Reconfiguring,
        Self::Reconfigured,
    ];
}

impl FromStr for BusState {
    type Err = ();

    fn from_str(s: &str) -> Result<Self, ()> {
        let number: u8 = decimal(s).ok_or(())?;
        Self::ALL.get(usize::from(number)).copied().ok_or(())
    }
}

impl fmt::Display for BusState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", *self as u8)
    }
}

/// Digits and nothing else: no sign, no space.
fn decimal<T: FromStr>(s: &str) -> Option<T> {
    match s.bytes().all(|b| b.is_ascii_digit()) {
        true => s.parse().ok(),
        false => None,
    }
}

/// A node that is missing or makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// It is not there.
    #[error("xenstore node {0} is missing")]
    Missing(String),
    /// Its value is not what it should be.
    #[error("xenstore node {node} is {value:?}, where {expected} is expected")]
    Bad {
        /// Its path.
        node: String,
        /// Its value.
        value: String,
        /// What it should be.
        expected: String,
    },
    /// xenstored did not do it.
    #[error(transparent)]
    Xen(#[from] xen::Error),
}

/// Reads a node that has to be there.
pub fn read(store: &Store, node: &str) -> Result<String, NodeError> {
    store
        .read(node)?
        .ok_or_else(|| NodeError::Missing(node.to_owned()))
}

/// Reads a node that has to be there and to be what `parse` takes.
pub fn read_as<T>(
    store: &Store,
    node: &str,
    expected: &str,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<T, NodeError> {
    let value = read(store, node)?;

    parse(&value).ok_or_else(|| NodeError::Bad {
        node: node.to_owned(),
        value,
        expected: expected.to_owned(),
    })
}

/// The own domain's id. xenstored need not know dom0's.
pub fn own_domid(store: &Store) -> Result<u16, NodeError> {
    match store.read("domid")? {
        None => Ok(0),
        Some(_) => read_as(store, "domid", "a domain id", decimal),
    }
}

/// Which vTPM: the guest's domain and the number of the device there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id {
    /// The guest's domain.
    pub domid: u16,
    /// The device's number: libxl calls it devid, or handle.
    pub devid: u32,
}

impl Id {
    /// The vTPM that a path below `base`, as `base/DOMID/DEVID/...`, is about.
    pub fn from_path(base: &str, path: &str) -> Option<Self> {
        let mut rest = path.strip_prefix(base)?.strip_prefix('/')?.split('/');
        Self::from_names(rest.next()?, rest.next()?)
    }

    /// From the names of two folders.
    pub fn from_names(domid: &str, devid: &str) -> Option<Self> {
        let id = Self {
            domid: decimal(domid).filter(|domid| *domid < FIRST_RESERVED)?,
            devid: decimal(devid)?,
        };
        // No leading zeroes: two names for one vTPM would be two vTPMs.
        (id.to_string() == format!("{domid}/{devid}")).then_some(id)
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domid, self.devid)
    }
}

/// Where the nodes of one vTPM are.
#[derive(Clone, Debug)]
pub struct Paths {
    backend: String,
    frontend: String,
    error: String,
}

impl Paths {
    /// Of a vTPM that the domain `own_domid` is the backend of.
    pub fn new(own_domid: u16, id: Id) -> Self {
        let own = format!("/local/domain/{own_domid}");
        Self {
            backend: format!("{own}/backend/vtpm/{id}"),
            frontend: format!("/local/domain/{}/device/vtpm/{}", id.domid, id.devid),
            error: format!("{own}/error/backend/vtpm/{id}"),
        }
    }

    /// Where all vTPMs of a backend domain are.
    pub fn base(own_domid: u16) -> String {
        format!("/local/domain/{own_domid}/backend/vtpm")
    }

    /// A node of ours.
    pub fn backend(&self, node: &str) -> String {
        format!("{}/{node}", self.backend)
    }

    /// A node of the guest's.
    pub fn frontend(&self, node: &str) -> String {
        format!("{}/{node}", self.frontend)
    }

    /// The folder with our nodes.
    pub fn backend_folder(&self) -> String {
        self.backend.clone()
    }

    /// The folder with the folders of all vTPMs of this guest.
    pub fn guests_folder(&self) -> String {
        let end = self.backend.rfind('/').unwrap_or(self.backend.len());
        self.backend[..end].to_owned()
    }

    /// The node that names the guest's /vm directory, whose last part is the domain's uuid.
    pub fn vm(id: Id) -> String {
        format!("/local/domain/{}/vm", id.domid)
    }

    /// The directory of the error node, and those above it that have nothing else in them.
    pub fn error_folders(&self) -> [String; 2] {
        let end = self.error.rfind('/').unwrap_or(self.error.len());
        [self.error.clone(), self.error[..end].to_owned()]
    }

    /// Where the reason of a failure goes.
    pub fn error(&self) -> String {
        format!("{}/error", self.error)
    }

    /// Checks that the toolstack has the frontend where it belongs. Whatever else it says: a guest's
    /// particulars are read from that guest's own folder.
    pub fn check_frontend(&self, store: &Store, id: Id) -> Result<(), NodeError> {
        read_as(store, &self.backend("frontend"), &self.frontend, |value| {
            (value == self.frontend).then_some(())
        })?;
        let domid = id.domid.to_string();
        read_as(store, &self.backend("frontend-id"), &domid, |value| {
            (value == domid).then_some(())
        })
    }
}

/// What a frontend publishes before it goes to Initialised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingParams {
    /// The grant of the shared page.
    pub ring_ref: u32,
    /// The port of the event channel.
    pub port: u32,
}

impl RingParams {
    /// Reads them.
    pub fn read(store: &Store, paths: &Paths) -> Result<Self, NodeError> {
        let feature = format!("{FEATURE_VALUE:?}");
        read_as(store, &paths.frontend(NODE_FEATURE), &feature, |value| {
            speaks_protocol(value.as_bytes()).then_some(())
        })?;

        let ring_ref = paths.frontend(NODE_RING_REF);
        let port = paths.frontend(NODE_EVENT_CHANNEL);
        Ok(Self {
            ring_ref: read_as(store, &ring_ref, "a grant reference", decimal)?,
            port: read_as(store, &port, "a port", decimal)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states() {
        for state in BusState::ALL {
            assert_eq!(state.to_string().parse(), Ok(state));
        }
        for bad in ["", "9", "-1", "+1", " 1", "1\n", "1.0", "256"] {
            assert_eq!(bad.parse::<BusState>(), Err(()), "{bad:?}");
        }
    }

    #[test]
    fn ids() {
        let base = Paths::base(0);
        let id = |path: &str| Id::from_path(&base, path).map(|id| id.to_string());

        assert_eq!(base, "/local/domain/0/backend/vtpm");
        assert_eq!(id(&format!("{base}/3/1")).as_deref(), Some("3/1"));
        assert_eq!(id(&format!("{base}/3/1/state")).as_deref(), Some("3/1"));
        for bad in ["", "/", "/3", "/3/", "/a/0", "/3/-1", "/03/0", "/3/00"] {
            assert_eq!(id(&format!("{base}{bad}")), None, "{bad:?}");
        }
        for bad in ["x/3/1", "/32752/0", "/65536/0", "/1/4294967296"] {
            assert_eq!(id(&format!("{base}{bad}")), None, "{bad:?}");
        }
        assert_eq!(id("/local/domain/1/backend/vtpm/3/1"), None);
    }

    #[test]
    fn paths() {
        let paths = Paths::new(5, Id { domid: 7, devid: 1 });

        assert_eq!(
            paths.backend("state"),
            "/local/domain/5/backend/vtpm/7/1/state"
        );
        assert_eq!(paths.guests_folder(), "/local/domain/5/backend/vtpm/7");
        assert_eq!(
            paths.frontend("state"),
            "/local/domain/7/device/vtpm/1/state"
        );
        assert_eq!(
            paths.error(),
            "/local/domain/5/error/backend/vtpm/7/1/error"
        );
    }
}
