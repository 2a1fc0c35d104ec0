// SPDX-License-Identifier: GPL-2.0

//! The frontend's end as it should be: a page, a port, and the nodes that lead to them. What is wrong
//! with them is up to `behaviours`.

use std::error::Error;
use std::ffi::CString;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use xen_tpm_protocol::layout::{
    payload_offset, State, FEATURE_VALUE, LENGTH, LOCALITY, NODE_EVENT_CHANNEL, NODE_FEATURE,
    NODE_RING_REF, NR_EXTRA_PAGES, PAGE_SIZE, STATE,
};
use xen_vtpmd::xen::Store;

use crate::sys::{Port, RawStore, SharedPage};

/// The frontend's folder; relative paths are below the own domain's.
const FOLDER: &str = "device/vtpm/0";

/// How long the backend may take for one step. Emulation is slow, and so is a flooded xenstored.
const PATIENCE: Duration = Duration::from_secs(20);

/// What can go wrong here, which is not what is tested.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// One vTPM's frontend.
#[derive(Debug)]
pub(crate) struct Frontend {
    store: Store,
    raw: RawStore,
    /// The backend's folder.
    backend: String,
    /// The backend's domain.
    pub(crate) domid: u16,
    /// The shared page.
    pub(crate) page: SharedPage,
    /// The event channel.
    pub(crate) port: Port,
}

impl Frontend {
    /// Finds the vTPM, and makes a page and a port for it.
    pub(crate) fn new() -> Result<Self> {
        let store = Store::open()?;
        let read = |node: &str| -> Result<String> {
            let path = format!("{FOLDER}/{node}");
            let value = store.read(&path)?;
            Ok(value.ok_or_else(|| format!("no node {path}"))?)
        };
        let domid = read("backend-id")?.parse()?;

        Ok(Self {
            backend: read("backend")?,
            raw: RawStore::open()?,
            domid,
            page: SharedPage::new(domid)?,
            port: Port::new(domid)?,
            store,
        })
    }

    /// Writes a node of the own folder; false if xenstored refused.
    pub(crate) fn write(&self, node: &str, value: &[u8]) -> bool {
        CString::new(format!("{FOLDER}/{node}")).is_ok_and(|path| self.raw.write(&path, value))
    }

    /// Shows a xenbus state.
    pub(crate) fn show(&self, state: u8) -> bool {
        self.write("state", state.to_string().as_bytes())
    }

    /// The value of a node of the own folder, if there is one that is text.
    pub(crate) fn value(&self, node: &str) -> Option<String> {
        self.store.read(&format!("{FOLDER}/{node}")).ok().flatten()
    }

    /// Removes a node of the own folder. That it is gone already is what was wanted.
    pub(crate) fn remove(&self, node: &str) {
        let _ = self.store.remove(&format!("{FOLDER}/{node}"));
    }

    /// The backend's xenbus state; 0 if it shows none.
    pub(crate) fn backend_state(&self) -> u8 {
        let path = format!("{}/state", self.backend);
        let value = self.store.read(&path).ok().flatten();
        value.and_then(|value| value.parse().ok()).unwrap_or(0)
    }

    /// Waits until the backend shows one of these.
    pub(crate) fn wait_for(&self, states: &[u8]) -> Result<u8> {
        let end = Instant::now() + PATIENCE;
        loop {
            let state = self.backend_state();
            if states.contains(&state) {
                return Ok(state);
            }
            if Instant::now() > end {
                return Err(format!("backend in state {state}, not in one of {states:?}").into());
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Publishes a grant and a port.
    pub(crate) fn publish(&self, grant: &[u8], port: &[u8]) -> bool {
        self.write(NODE_RING_REF, grant)
            && self.write(NODE_EVENT_CHANNEL, port)
            && self.write(NODE_FEATURE, FEATURE_VALUE.as_bytes())
    }

    /// Connects as a good frontend would.
    pub(crate) fn connect(&self) -> Result<()> {
        // A backend that has let go of us offers itself anew once we are Closed.
        if self.backend_state() != 2 {
            self.show(6);
            self.wait_for(&[2])?;
        }
        let grant = self.page.grant.to_string();
        let port = self.port.number.to_string();
        if !self.publish(grant.as_bytes(), port.as_bytes()) || !self.show(3) {
            return Err("xenstored takes no nodes".into());
        }
        self.wait_for(&[4])?;
        self.show(4);
        Ok(())
    }

    /// Disconnects as a good frontend would.
    pub(crate) fn disconnect(&self) -> Result<()> {
        self.show(5);
        self.wait_for(&[5, 6, 2])?;
        self.show(6);
        self.wait_for(&[2, 6]).map(drop)
    }

    /// The page's state.
    pub(crate) fn state(&self) -> u8 {
        self.page.bytes()[STATE].load(Ordering::Acquire)
    }

    /// Sets the page's state.
    pub(crate) fn set_state(&self, state: u8) {
        self.page.bytes()[STATE].store(state, Ordering::Release);
    }

    /// Sets a byte of the page.
    pub(crate) fn poke(&self, offset: usize, value: u8) {
        self.page.bytes()[offset].store(value, Ordering::Relaxed);
    }

    /// Puts a request into the page and sends it; `length` is what the page says of it.
    pub(crate) fn submit(&self, packet: &[u8], length: u32, locality: u8, extra: u8) {
        self.poke(LOCALITY, locality);
        self.poke(NR_EXTRA_PAGES, extra);
        for (i, byte) in length.to_le_bytes().into_iter().enumerate() {
            self.poke(LENGTH + i, byte);
        }
        let room = payload_offset(extra)..PAGE_SIZE;
        for (at, byte) in room.zip(packet) {
            self.poke(at, *byte);
        }
        self.set_state(State::Submit as u8);
        self.port.notify();
    }

    /// So many bytes of the page from `offset` on, as far as it goes.
    pub(crate) fn bytes(&self, offset: usize, count: usize) -> Vec<u8> {
        let bytes = self.page.bytes().iter().skip(offset).take(count);
        bytes.map(|byte| byte.load(Ordering::Relaxed)).collect()
    }

    /// The answer to a request that announced so many extra pages, as long as the page says.
    pub(crate) fn answer(&self, extra: u8) -> Vec<u8> {
        let length = self.bytes(LENGTH, 4);
        let length = length
            .iter()
            .rev()
            .fold(0, |n, b| (n << 8) | usize::from(*b));
        self.bytes(payload_offset(extra), length)
    }

    /// Waits for the end of a request: true if it was answered, false if it was not in time.
    pub(crate) fn wait(&self, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        while self.state() == State::Submit as u8 {
            if Instant::now() > end {
                return false;
            }
            thread::sleep(Duration::from_micros(200));
        }
        self.state() == State::Finish as u8
    }
}
