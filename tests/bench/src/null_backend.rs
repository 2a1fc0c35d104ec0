// SPDX-License-Identifier: GPL-2.0

//! A vTPM backend that has no TPM and answers at once: xen-vtpmd's own event loop, connection and
//! exchange, with nothing behind them. What a command costs with it is the way there and back.

#![forbid(unsafe_code)]

mod null_tpm;

use std::collections::BTreeMap;
use std::error::Error;
use std::process::ExitCode;

use xen_vtpmd::connection::{Connection, Found};
use xen_vtpmd::watch::{Registrar, Watched, Watcher};
use xen_vtpmd::xen::Store;
use xen_vtpmd::xenbus::{self, BusState, Id, Particulars, Paths};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The number of xenstore's connection in the watcher's events; vTPMs are counted from 1 on.
const STORE: u32 = 0;

/// One vTPM.
struct Vtpm {
    id: Id,
    paths: Paths,
    registrar: Registrar,
    /// What the guest has published, and the connection to it.
    connection: Option<(Particulars, Connection)>,
    answer: Vec<u8>,
}

impl Vtpm {
    /// Shows the guest a state.
    fn show(&self, store: &Store, state: BusState) -> Result<()> {
        Ok(store.write(&self.paths.backend("state"), &state.to_string())?)
    }

    /// Does what the guest's state asks for.
    fn follow(&mut self, store: &Store) -> Result<()> {
        let state = store.read(&self.paths.frontend("state"))?;
        match state.and_then(|state| state.parse().ok()) {
            Some(BusState::Initialised | BusState::Connected) => self.connect(store),
            Some(BusState::Closing) if self.connection.take().is_some() => {
                self.show(store, BusState::Closing)
            }
            Some(BusState::Closed) => {
                self.connection = None;
                self.show(store, BusState::InitWait)
            }
            _ => Ok(()),
        }
    }

    fn connect(&mut self, store: &Store) -> Result<()> {
        let new = Particulars::read(store, &self.paths)?;
        if self.connection.as_ref().is_some_and(|(old, _)| *old == new) {
            return Ok(());
        }
        self.connection = None;
        let connection = Connection::open(self.id, new, &self.registrar)?;
        self.connection = Some((new, connection));
        self.serve()?;
        self.show(store, BusState::Connected)
    }

    /// The guest has sent an event.
    fn on_event(&mut self) -> Result<()> {
        match &self.connection {
            Some((_, guest)) if guest.take_event()? => (),
            _ => return Ok(()),
        }
        self.serve()?;
        match &self.connection {
            Some((_, guest)) => Ok(guest.unmask()?),
            None => Ok(()),
        }
    }

    /// Answers the command that is in the page, if there is one.
    fn serve(&mut self) -> Result<()> {
        if let Some((_, guest)) = &mut self.connection {
            if let Found::Command { packet, .. } = guest.look(true)? {
                null_tpm::answer(packet, &mut self.answer);
                guest.answer(&self.answer, || ())?;
            }
        }
        Ok(())
    }
}

/// All of them.
struct Backend {
    watcher: Watcher,
    store: Watched<Store>,
    own_domid: u16,
    vtpms: BTreeMap<u32, Vtpm>,
    last: u32,
}

impl Backend {
    fn new() -> Result<Self> {
        let watcher = Watcher::new()?;
        let store = watcher.registrar(STORE).add(0, Store::open()?)?;
        let own_domid = xenbus::own_domid(&store)?;
        store.watch(&Paths::base(own_domid), "all")?;
        Ok(Self {
            watcher,
            store,
            own_domid,
            vtpms: BTreeMap::new(),
            last: STORE,
        })
    }

    fn run(mut self) -> Result<()> {
        loop {
            for (owner, _) in self.watcher.wait(-1)? {
                if owner == STORE {
                    self.on_store()?;
                } else if let Some(vtpm) = self.vtpms.get_mut(&owner) {
                    vtpm.on_event()?;
                }
            }
        }
    }

    /// Something has changed in xenstore: looks at all there is.
    fn on_store(&mut self) -> Result<()> {
        while self.store.next_event()?.is_some() {}
        let base = Paths::base(self.own_domid);
        for domid in self.store.list(&base)? {
            for devid in self.store.list(&format!("{base}/{domid}"))? {
                if let Some(id) = Id::from_names(&domid, &devid) {
                    self.add(id)?;
                }
            }
        }
        let mut gone = Vec::new();
        for (number, vtpm) in &mut self.vtpms {
            let value = |node: &str| self.store.read(&vtpm.paths.backend(node));
            if value("online")?.as_deref() == Some("1") {
                // A guest that says nonsense, or is going away, is not served.
                if let Err(e) = vtpm.follow(&self.store) {
                    eprintln!("xen-null-backend: {}: {e}", vtpm.id);
                }
            } else {
                vtpm.connection = None;
                if value("state")?.is_some() {
                    vtpm.show(&self.store, BusState::Closed)?;
                }
                self.store
                    .unwatch(&vtpm.paths.frontend("state"), "frontend")?;
                gone.push(*number);
            }
        }
        self.vtpms.retain(|number, _| !gone.contains(number));
        Ok(())
    }

    /// Offers to serve a vTPM that the toolstack has just made.
    fn add(&mut self, id: Id) -> Result<()> {
        let paths = Paths::new(self.own_domid, id);
        let value = |node: &str| self.store.read(&paths.backend(node));
        let new =
            value("state")?.as_deref() == Some("1") && value("online")?.as_deref() == Some("1");
        if !new || self.vtpms.values().any(|vtpm| vtpm.id == id) {
            return Ok(());
        }
        self.store.watch(&paths.frontend("state"), "frontend")?;
        self.store
            .write(&paths.backend("feature-protocol-v2"), "1")?;
        self.last += 1;
        let vtpm = Vtpm {
            id,
            paths,
            registrar: self.watcher.registrar(self.last),
            connection: None,
            answer: Vec::new(),
        };
        vtpm.show(&self.store, BusState::InitWait)?;
        self.vtpms.insert(self.last, vtpm);
        Ok(())
    }
}

fn main() -> ExitCode {
    let Err(e) = Backend::new().and_then(Backend::run) else {
        return ExitCode::SUCCESS;
    };
    eprintln!("xen-null-backend: {e}");
    ExitCode::FAILURE
}
