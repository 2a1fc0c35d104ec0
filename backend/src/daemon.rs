// SPDX-License-Identifier: GPL-2.0

//! The event loop: one thread that waits for xenstore, the guests, the TPMs and signals, and gives
//! each that has something to say one turn of bounded work before it waits again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};

use crate::config::Config;
use crate::machine::Claims;
use crate::vtpm::{Host, Vtpm};
use crate::watch::{Watched, Watcher};
use crate::xen::{self, Store};
use crate::xenbus::{self, Id, NodeError, Paths};

/// The token of the watch on all vTPMs. The others are [`Id`]s.
const ALL: &str = "all";

/// How many watch events are taken in one turn.
const EVENTS_A_TURN: usize = 64;

/// How long the TPMs have to end when the daemon does.
const STOP_LIMIT: Duration = Duration::from_secs(12);

/// What ends the daemon.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Xen is not there, or went away.
    #[error(transparent)]
    Xen(#[from] xen::Error),
    /// The own domain is not known.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// Waiting failed.
    #[error("waiting for events: {0}")]
    Wait(#[from] io::Error),
}

/// The daemon's own number in the watcher's events, and its codes.
const DAEMON: u32 = 0;
const STORE: u8 = 0;
const SIGNAL: u8 = 1;

/// The daemon.
#[derive(Debug)]
pub struct Daemon {
    host: Host,
    own_domid: u16,
    base: String,
    vtpms: BTreeMap<Id, Vtpm>,
    /// Who is who in the watcher's events.
    owners: HashMap<u32, Id>,
    last_owner: u32,
    signals: Watched<UnixStream>,
    watcher: Watcher,
    stopping: Option<Instant>,
}

impl Daemon {
    /// Connects to Xen and asks for the signals that end the daemon.
    pub fn new(config: Config) -> Result<Self, Error> {
        let watcher = Watcher::new()?;
        let store = watcher.registrar(DAEMON).add(STORE, Store::open()?)?;
        let own_domid = xenbus::own_domid(&store)?;
        let base = Paths::base(own_domid);
        let (signals, sender) = UnixStream::pair()?;

        signals.set_nonblocking(true)?;
        for signal in [SIGTERM, SIGINT] {
            signal_hook::low_level::pipe::register(signal, sender.try_clone()?)?;
        }
        // One event comes at once, and shows what is there already.
        store.watch(&base, ALL)?;
        log::info!("backend for vTPMs in domain {own_domid}");

        Ok(Self {
            host: Host {
                store,
                config,
                claims: Claims::default(),
            },
            own_domid,
            base,
            vtpms: BTreeMap::new(),
            owners: HashMap::new(),
            last_owner: DAEMON,
            signals: watcher.registrar(DAEMON).add(SIGNAL, signals)?,
            watcher,
            stopping: None,
        })
    }

    /// Runs until a signal ends it.
    pub fn run(mut self) -> Result<(), Error> {
        loop {
            for (owner, code) in self.wait()? {
                match (owner, code) {
                    (DAEMON, STORE) => self.on_store()?,
                    (DAEMON, _) => self.on_signal(),
                    // It may be gone since the wait.
                    _ => {
                        if let Some(id) = self.owners.get(&owner).copied() {
                            self.with(id, |vtpm, host| vtpm.on_ready(host, code));
                        }
                    }
                }
            }
            let now = Instant::now();
            for id in self.ids(|vtpm| vtpm.deadline().is_some_and(|deadline| deadline <= now)) {
                self.with(id, |vtpm, host| vtpm.on_deadline(host, now));
            }
            if self
                .stopping
                .is_some_and(|limit| limit <= now || !self.vtpms.values().any(Vtpm::is_running))
            {
                log::info!("ended");
                return Ok(());
            }
        }
    }

    /// Waits until something is readable or a deadline has passed.
    fn wait(&self) -> io::Result<Vec<(u32, u8)>> {
        let deadlines = self.vtpms.values().filter_map(Vtpm::deadline);
        let deadline = deadlines.chain(self.stopping).min();
        let timeout = deadline.map_or(-1, |deadline| {
            // Rounded up: not to wake before the deadline, and go to sleep again for nothing.
            let left = deadline.saturating_duration_since(Instant::now());
            i32::try_from(left.as_millis()).map_or(i32::MAX, |ms| ms.saturating_add(1))
        });

        self.watcher.wait(timeout)
    }

    /// Takes watch events, and lets each vTPM that they are about look once.
    fn on_store(&mut self) -> Result<(), Error> {
        let mut changed = BTreeSet::new();

        for _ in 0..EVENTS_A_TURN {
            let Some(event) = self.host.store.next_event()? else {
                break;
            };
            if event.token != ALL {
                changed.extend(self.vtpms.keys().filter(|id| id.to_string() == event.token));
            } else if let Some(id) = Id::from_path(&self.base, &event.path) {
                changed.insert(id);
            } else {
                changed.extend(self.vtpms.keys());
                changed.extend(self.scan()?);
            }
        }
        if self.stopping.is_none() {
            for id in changed {
                self.add(id);
                self.with(id, Vtpm::evaluate);
            }
        }
        Ok(())
    }

    /// All vTPMs that are in xenstore.
    fn scan(&self) -> Result<Vec<Id>, Error> {
        let mut found = Vec::new();

        for domid in self.host.store.list(&self.base)? {
            for devid in self.host.store.list(&format!("{}/{domid}", self.base))? {
                match Id::from_names(&domid, &devid) {
                    Some(id) => found.push(id),
                    None => log::warn!("{}/{domid}/{devid} is not a vTPM's name", self.base),
                }
            }
        }
        Ok(found)
    }

    /// Adds a vTPM if it is new and is in xenstore.
    fn add(&mut self, id: Id) {
        if self.vtpms.contains_key(&id) {
            return;
        }
        let node = Paths::new(self.own_domid, id).backend("state");
        let vtpm = match self.host.store.read(&node) {
            Ok(None) => return,
            Ok(Some(_)) => {
                self.last_owner += 1;
                let registrar = self.watcher.registrar(self.last_owner);
                Vtpm::new(&self.host, self.own_domid, id, registrar)
            }
            Err(e) => Err(e),
        };
        match vtpm {
            Ok(vtpm) => {
                self.owners.insert(self.last_owner, id);
                self.vtpms.insert(id, vtpm);
            }
            Err(e) => log::error!("vtpm {id}: {e}"),
        }
    }

    /// Lets a vTPM do something; then lets those go on that waited for what it gave up.
    fn with(&mut self, id: Id, act: impl FnOnce(&mut Vtpm, &mut Host)) {
        let Some(vtpm) = self.vtpms.get_mut(&id) else {
            return;
        };
        let was_running = vtpm.is_running();

        act(vtpm, &mut self.host);
        let is_running = vtpm.is_running();
        if vtpm.is_gone(&self.host) {
            if let Some(vtpm) = self.vtpms.remove(&id) {
                vtpm.forget(&self.host);
                self.owners.retain(|_, owned| *owned != id);
            }
        }
        if was_running && !is_running && self.stopping.is_none() {
            for vtpm in self.vtpms.values_mut().filter(|vtpm| vtpm.is_waiting()) {
                vtpm.evaluate(&mut self.host);
            }
        }
    }

    fn ids(&self, which: impl Fn(&Vtpm) -> bool) -> Vec<Id> {
        let chosen = self.vtpms.iter().filter(|(_, vtpm)| which(vtpm));
        chosen.map(|(id, _)| *id).collect()
    }

    /// SIGTERM or SIGINT: closes every vTPM and waits for the TPMs to end, but not for ever.
    fn on_signal(&mut self) {
        // Emptied, since it only says that there was a signal.
        let _ = self.signals.read(&mut [0; 16]);
        log::info!("ending, with {} vTPMs", self.vtpms.len());
        self.stopping = Some(Instant::now() + STOP_LIMIT);
        for id in self.ids(|_| true) {
            self.with(id, |vtpm, host| vtpm.stop(host));
        }
    }
}
