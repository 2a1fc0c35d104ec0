// SPDX-License-Identifier: GPL-2.0

//! One vTPM in xenstore: what the toolstack and the guest show there, and what is shown to them. Honest,
//! but for what a behaviour writes.

use std::process::Command;

use xen_vtpmd::xen::Store;
use xen_vtpmd::xenbus::{Id, Paths, RingParams};

use crate::behaviour::Behaviour;
use crate::Result;

/// What the toolstack or the guest wants.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Nothing that is new.
    Nothing,
    /// The vTPM is to go, or has gone.
    Gone,
    /// A connection to this page and port.
    Connect(RingParams),
    /// The connection is to end.
    Close,
    /// It has ended: the guest no longer uses its page.
    Closed,
}

/// A vTPM that is served.
#[derive(Debug)]
pub(crate) struct Vtpm {
    id: Id,
    paths: Paths,
    /// The state that was shown last.
    shown: String,
    /// The nodes of a folder that was removed.
    removed: Vec<(String, String)>,
}

/// The value of a node, empty when it cannot be read.
fn value(store: &Store, path: &str) -> String {
    store.read(path).ok().flatten().unwrap_or_default()
}

impl Vtpm {
    /// The first vTPM that the toolstack has made and that nobody serves yet.
    pub(crate) fn discover(store: &Store) -> Result<Option<Self>> {
        let base = Paths::base(0);
        for domid in store.list(&base)? {
            for devid in store.list(&format!("{base}/{domid}"))? {
                let Some(id) = Id::from_names(&domid, &devid) else {
                    continue;
                };
                let paths = Paths::new(0, id);
                let new = value(store, &paths.backend("state")) == "1"
                    && value(store, &paths.backend("online")) == "1";
                if new {
                    let mut vtpm = Self {
                        id,
                        paths,
                        shown: String::new(),
                        removed: Vec::new(),
                    };
                    vtpm.write(store, "feature-protocol-v2", "1")?;
                    vtpm.show(store, "2")?;
                    store.watch(&vtpm.paths.frontend("state"), "frontend")?;
                    return Ok(Some(vtpm));
                }
            }
        }
        Ok(None)
    }

    /// Which one it is.
    pub(crate) fn id(&self) -> Id {
        self.id
    }

    /// Writes a node of the backend's folder.
    pub(crate) fn write(&mut self, store: &Store, node: &str, text: &str) -> Result<()> {
        if node == "state" {
            self.shown = text.to_owned();
        }
        Ok(store.write(&self.paths.backend(node), text)?)
    }

    /// Shows a state.
    pub(crate) fn show(&mut self, store: &Store, state: &str) -> Result<()> {
        self.write(store, "state", state)
    }

    /// Removes a node of the backend's folder.
    pub(crate) fn remove(&self, store: &Store, node: &str) -> Result<()> {
        Ok(store.remove(&self.paths.backend(node))?)
    }

    /// Removes the folder.
    pub(crate) fn remove_folder(&mut self, store: &Store) -> Result<()> {
        let folder = self.paths.backend_folder();
        for node in store.list(&folder)? {
            let text = value(store, &self.paths.backend(&node));
            self.removed.push((node, text));
        }
        Ok(store.remove(&folder)?)
    }

    /// Puts back what was removed, for the guest to read.
    pub(crate) fn restore(&mut self, store: &Store) -> Result<()> {
        if !self.removed.is_empty() {
            for (node, text) in std::mem::take(&mut self.removed) {
                store.write(&self.paths.backend(&node), &text)?;
            }
            let reader = format!("r{}", self.id.domid);
            Command::new("xenstore-chmod")
                .args(["-r", &self.paths.backend_folder(), "n0", &reader])
                .status()?;
        }
        if value(store, &self.paths.backend("state")).is_empty() {
            let shown = self.shown.clone();
            self.show(store, &shown)?;
        }
        Ok(())
    }

    /// What is wanted now. `grant` is that of the page which is mapped. The behaviour may ignore the
    /// guest, or that the device is to go: but for its folder, without which there is no device.
    pub(crate) fn wish(&self, store: &Store, grant: Option<u32>, behaviour: &Behaviour) -> Wish {
        let online = value(store, &self.paths.backend("online"));
        if self.removed.is_empty() && online != "1" && !(behaviour.stays && online == "0") {
            return Wish::Gone;
        }
        if behaviour.deaf {
            return Wish::Nothing;
        }
        match value(store, &self.paths.frontend("state")).as_str() {
            "3" | "4" => match RingParams::read(store, &self.paths) {
                Ok(particulars) if grant != Some(particulars.ring_ref) => {
                    Wish::Connect(particulars)
                }
                _ => Wish::Nothing,
            },
            "5" if self.shown != "5" => Wish::Close,
            "6" if self.shown != "2" => Wish::Closed,
            _ => Wish::Nothing,
        }
    }

    /// Says goodbye as the toolstack expects it. The folder may be gone already.
    pub(crate) fn leave(&mut self, store: &Store) -> Result<()> {
        store.unwatch(&self.paths.frontend("state"), "frontend")?;
        if store.read(&self.paths.backend("state"))?.is_some() {
            self.show(store, "6")?;
        }
        Ok(())
    }
}
