// SPDX-License-Identifier: GPL-2.0

//! A vTPM backend that has no TPM and answers at once: xen-vtpmd's own exchange, with nothing behind
//! it. What a command costs with it is the way there and back.

#![forbid(unsafe_code)]

mod null_tpm;

use std::collections::BTreeMap;
use std::error::Error;
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags, EventVec};
use xen_vtpmd::exchange::{Delivery, Exchange, Look};
use xen_vtpmd::xen::{EventChannel, GrantedPage, Store};
use xen_vtpmd::xenbus::{self, BusState, Id, Paths, RingParams};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// xenstore's connection in the epoll set; vTPMs are counted from 1 on.
const STORE: u64 = 0;
/// How many events one wait returns; the others come with the next.
const EVENTS_PER_WAIT: usize = 16;

/// A connection to a guest.
struct Connection {
    exchange: Exchange,
    page: GrantedPage,
    event: EventChannel,
}

impl Connection {
    fn open(id: Id, params: RingParams) -> Result<Self> {
        Ok(Self {
            exchange: Exchange::new(),
            page: GrantedPage::map(id.domid, params.ring_ref)?,
            event: EventChannel::bind(id.domid, params.port)?,
        })
    }

    /// Answers the command that is in the page, if there is one.
    fn serve(&mut self, answer: &mut Vec<u8>) -> Result<()> {
        match self.exchange.look(&self.page, true) {
            Look::Nothing => return Ok(()),
            Look::Cancelled | Look::Refused(_) => {}
            Look::Command { .. } => {
                null_tpm::answer(self.exchange.command(), answer);
                if self.exchange.respond(&self.page, answer) == Delivery::Dropped {
                    return Ok(());
                }
            }
        }
        Ok(self.event.notify()?)
    }
}

/// One vTPM.
struct Vtpm {
    id: Id,
    number: u64,
    paths: Paths,
    /// What the guest has published, and the connection to it.
    connection: Option<(RingParams, Connection)>,
    answer: Vec<u8>,
}

impl Vtpm {
    /// Shows the guest a state.
    fn show(&self, store: &Store, state: BusState) -> Result<()> {
        Ok(store.write(&self.paths.backend("state"), &state.to_string())?)
    }

    /// Does what the guest's state asks for.
    fn follow(&mut self, store: &Store, epoll: &OwnedFd) -> Result<()> {
        let state = store.read(&self.paths.frontend("state"))?;
        match state.and_then(|state| state.parse().ok()) {
            Some(BusState::Initialised | BusState::Connected) => self.connect(store, epoll),
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

    fn connect(&mut self, store: &Store, epoll: &OwnedFd) -> Result<()> {
        let new = RingParams::read(store, &self.paths)?;
        if self.connection.as_ref().is_some_and(|(old, _)| *old == new) {
            return Ok(());
        }
        self.connection = None;
        let connection = Connection::open(self.id, new)?;
        let data = EventData::new_u64(self.number);
        epoll::add(epoll, &connection.event, data, EventFlags::IN)?;
        self.connection = Some((new, connection));
        self.serve()?;
        self.show(store, BusState::Connected)
    }

    /// The guest has sent an event.
    fn on_event(&mut self) -> Result<()> {
        if let Some((_, guest)) = &self.connection {
            guest.event.wait()?;
        }
        self.serve()?;
        match &self.connection {
            Some((_, guest)) => Ok(guest.event.unmask()?),
            None => Ok(()),
        }
    }

    fn serve(&mut self) -> Result<()> {
        match &mut self.connection {
            Some((_, guest)) => guest.serve(&mut self.answer),
            None => Ok(()),
        }
    }
}

/// All of them. The time of a wait does not grow with their number.
struct Backend {
    epoll: OwnedFd,
    store: Store,
    own_domid: u16,
    vtpms: BTreeMap<u64, Vtpm>,
    last: u64,
}

impl Backend {
    fn new() -> Result<Self> {
        let store = Store::open()?;
        let own_domid = xenbus::own_domid(&store)?;
        store.watch(&Paths::base(own_domid), "all")?;
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &store, EventData::new_u64(STORE), EventFlags::IN)?;
        Ok(Self {
            epoll,
            store,
            own_domid,
            vtpms: BTreeMap::new(),
            last: STORE,
        })
    }

    fn run(mut self) -> Result<()> {
        let mut events = EventVec::with_capacity(EVENTS_PER_WAIT);
        loop {
            epoll::wait(&self.epoll, &mut events, -1)?;
            for event in events.iter() {
                let number = { event.data }.u64();
                if number == STORE {
                    self.on_store()?;
                } else if let Some(vtpm) = self.vtpms.get_mut(&number) {
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
                if let Err(e) = vtpm.follow(&self.store, &self.epoll) {
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
            number: self.last,
            paths,
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
