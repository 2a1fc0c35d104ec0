// SPDX-License-Identifier: GPL-2.0

//! The event loop: one thread that waits for xenstore, the guests, the TPMs and signals, and gives
//! each that has something to say one turn of bounded work before it waits again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};

use sd_notify::NotifyState;

use crate::config::{Config, Uuid};
use crate::counters::used_by_daemon;
use crate::daemon_control::{self as control, Request, Server};
use crate::machine::{self, Claims};
use crate::status::Report;
use crate::vtpm::{Host, Vtpm};
use crate::watch::{Watched, Watcher};
use crate::xen::{self, Store};
use crate::xenbus::{self, Id, NodeError, Paths};

/// The token of the watch on all vTPMs. The others are [`Id`]s, or theirs with a word after it.
const ALL: &str = "all";

/// How many watch events are taken in one turn.
const EVENTS_A_TURN: usize = 64;

/// How long the TPMs have to end when they are to end with the daemon.
const STOP_LIMIT: Duration = Duration::from_secs(12);

/// How long running commands have when the daemon hands over to the next one.
const LEAVE_LIMIT: Duration = Duration::from_secs(2);

/// What ends the daemon.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Xen is not there, or went away.
    #[error(transparent)]
    Xen(#[from] xen::Error),
    /// The own domain is not known.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// Nobody could ask for anything, or another daemon is there.
    #[error(transparent)]
    Control(#[from] control::Error),
    /// Waiting failed.
    #[error("waiting for events: {0}")]
    Wait(#[from] io::Error),
}

/// The daemon's own number in the watcher's events, and its codes.
const DAEMON: u32 = 0;
const STORE: u8 = 0;
const SIGNAL: u8 = 1;
const CONTROL: u8 = 2;

/// How the daemon ends, and when at the latest.
#[derive(Clone, Copy, Debug)]
enum Ending {
    /// The TPMs stay, for the next daemon.
    Leave(Instant),
    /// The TPMs end.
    Stop(Instant),
}

impl Ending {
    fn limit(self) -> Instant {
        match self {
            Self::Leave(limit) | Self::Stop(limit) => limit,
        }
    }
}

/// The daemon.
#[derive(Debug)]
pub struct Daemon {
    host: Host,
    base: String,
    vtpms: BTreeMap<Id, Vtpm>,
    /// The deadlines of those that have one, so that no turn looks at all the idle ones.
    /// [`with`](Self::with) keeps it.
    timed: BTreeMap<Id, Instant>,
    /// Who is who in the watcher's events.
    owners: HashMap<u32, Id>,
    last_owner: u32,
    signals: Watched<UnixStream>,
    control: Server,
    watcher: Watcher,
    ending: Option<Ending>,
    /// How many vTPMs systemd was told of; `None` before the first look at xenstore.
    told: Option<usize>,
}

impl Daemon {
    /// Connects to Xen and asks for the signals that end the daemon.
    pub fn new(config: Config) -> Result<Self, Error> {
        let watcher = Watcher::new()?;
        let store = watcher.registrar(DAEMON).add(STORE, Store::open()?)?;
        let control = Server::open(&config.run_dir, watcher.registrar(DAEMON), CONTROL)?;
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
                own_domid,
                config,
                claims: Claims::default(),
                leaving: false,
            },
            base,
            vtpms: BTreeMap::new(),
            timed: BTreeMap::new(),
            owners: HashMap::new(),
            last_owner: DAEMON,
            signals: watcher.registrar(DAEMON).add(SIGNAL, signals)?,
            control,
            watcher,
            ending: None,
            told: None,
        })
    }

    /// Runs until a signal or a request ends it.
    pub fn run(mut self) -> Result<(), Error> {
        let mut timeout = -1;
        loop {
            for (owner, code) in self.watcher.wait(timeout)? {
                match (owner, code) {
                    (DAEMON, STORE) => self.on_store()?,
                    (DAEMON, CONTROL) => self.on_control(),
                    (DAEMON, _) => self.on_signal(),
                    // It may be gone since the wait.
                    _ => {
                        if let Some(id) = self.owners.get(&owner).copied() {
                            self.with(id, |vtpm, host| vtpm.on_ready(host, code));
                        }
                    }
                }
            }
            // Reading the clock is slow under Xen: only if there is a deadline.
            timeout = match self.deadline() {
                None => -1,
                Some(_) => self.on_time(Instant::now()),
            };
            if self.ending.is_some() && self.is_over() {
                self.end();
                return Ok(());
            }
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let vtpms = self.timed.values().copied();
        let ending = self.ending.map(Ending::limit);

        vtpms.chain(ending).chain(self.control.deadline()).min()
    }

    /// Does what is due; returns the milliseconds until something else is.
    fn on_time(&mut self, now: Instant) -> i32 {
        let due = self.timed.iter().filter(|(_, deadline)| **deadline <= now);
        let due: Vec<Id> = due.map(|(id, _)| *id).collect();
        for id in due {
            self.with(id, |vtpm, host| vtpm.on_deadline(host, now));
        }
        self.control.on_deadline(now);
        self.deadline().map_or(-1, |deadline| {
            // Rounded up: not to wake before the deadline, and go to sleep again for nothing.
            let left = deadline.saturating_duration_since(now);
            i32::try_from(left.as_millis()).map_or(i32::MAX, |ms| ms.saturating_add(1))
        })
    }

    /// Whether nothing is left that the end has to wait for.
    fn is_over(&mut self) -> bool {
        match self.ending {
            None => false,
            Some(ending) if ending.limit() <= Instant::now() => true,
            Some(Ending::Leave(_)) => !self.vtpms.values_mut().any(Vtpm::is_busy),
            Some(Ending::Stop(_)) => !self.vtpms.values().any(Vtpm::is_running),
        }
    }

    /// The daemon's last act.
    fn end(mut self) {
        if let Some(Ending::Leave(_)) = self.ending {
            for (_, vtpm) in std::mem::take(&mut self.vtpms) {
                vtpm.leave(&mut self.host);
            }
        }
        log::info!("ended");
        self.control.answer(&serde_json::json!({ "stopped": true }));
    }

    /// Takes watch events, and lets each vTPM that they are about look once.
    fn on_store(&mut self) -> Result<(), Error> {
        let (mut changed, mut hints) = (BTreeSet::new(), BTreeSet::new());
        let mut scanned = false;

        for _ in 0..EVENTS_A_TURN {
            let Some(event) = self.host.store.next_event()? else {
                break;
            };
            if event.token != ALL {
                let is = |name: String| name == event.token;
                changed.extend(self.vtpms.keys().filter(|id| is(id.to_string())));
                hints.extend(self.vtpms.keys().filter(|id| is(xenbus::save_token(**id))));
            } else if let Some(id) = Id::from_path(&self.base, &event.path) {
                changed.insert(id);
            } else if !scanned {
                scanned = true;
                changed.extend(self.vtpms.keys());
                changed.extend(self.scan()?);
            }
        }
        if self.ending.is_some() {
            return Ok(());
        }
        if scanned && self.told.is_none() {
            // Those of vTPMs that went away: their states are to be free for others.
            let here: Vec<String> = changed.iter().map(Id::to_string).collect();
            end_strays(&self.host.config, |_, vtpm| {
                here.iter().any(|id| id == vtpm)
            });
        }
        for id in hints {
            self.with(id, |vtpm, _| vtpm.on_save_hint());
        }
        for id in changed {
            self.add(id);
            self.with(id, Vtpm::evaluate);
        }
        if scanned || self.told.is_some() {
            self.tell_systemd();
        }
        Ok(())
    }

    /// The service is ready when what was there before it has been looked at.
    fn tell_systemd(&mut self) {
        let vtpms = self.vtpms.len();
        if self.told == Some(vtpms) {
            return;
        }
        let status = format!("{vtpms} vTPMs");
        let mut state = vec![NotifyState::Status(&status)];
        if self.told.is_none() {
            // Those that even the vTPM of their record did not want.
            let claims = &self.host.claims;
            end_strays(&self.host.config, |uuid, _| claims.holds(uuid));
            state.push(NotifyState::Ready);
        }
        self.told = Some(vtpms);
        notify(&state);
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
        let node = Paths::new(self.host.own_domid, id).backend("state");
        let vtpm = match self.host.store.read(&node) {
            Ok(None) => return,
            Ok(Some(_)) => {
                self.last_owner += 1;
                let registrar = self.watcher.registrar(self.last_owner);
                Vtpm::new(&self.host, id, registrar)
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

    /// Lets a vTPM do something: all that may change its deadline comes by here. Then lets those go on
    /// that waited for what it gave up.
    fn with(&mut self, id: Id, act: impl FnOnce(&mut Vtpm, &mut Host)) {
        let Some(vtpm) = self.vtpms.get_mut(&id) else {
            return;
        };
        let was_running = vtpm.is_running();

        act(vtpm, &mut self.host);
        let is_running = vtpm.is_running();
        let is_gone = vtpm.is_gone(&self.host);
        match vtpm.deadline().filter(|_| !is_gone) {
            Some(deadline) => self.timed.insert(id, deadline),
            None => self.timed.remove(&id),
        };
        if is_gone {
            if let Some(vtpm) = self.vtpms.remove(&id) {
                vtpm.forget(&self.host);
                self.owners.retain(|_, owned| *owned != id);
            }
        }
        if was_running && !is_running && self.ending.is_none() {
            for id in self.ids(Vtpm::is_waiting) {
                self.with(id, Vtpm::evaluate);
            }
        }
    }

    fn ids(&self, which: impl Fn(&Vtpm) -> bool) -> Vec<Id> {
        let chosen = self.vtpms.iter().filter(|(_, vtpm)| which(vtpm));
        chosen.map(|(id, _)| *id).collect()
    }

    /// SIGTERM or SIGINT: hands over to the next daemon.
    fn on_signal(&mut self) {
        // Emptied, since it only says that there was a signal.
        let _ = self.signals.read(&mut [0; 16]);
        if self.ending.is_none() {
            log::info!(
                "ending; {} vTPMs stay for the next daemon",
                self.vtpms.len()
            );
            notify(&[NotifyState::Stopping]);
            self.host.leaving = true;
            self.ending = Some(Ending::Leave(Instant::now() + LEAVE_LIMIT));
        }
    }

    /// A request from the command line, perhaps.
    fn on_control(&mut self) {
        match self.control.on_ready() {
            None => (),
            Some(Request::Status) => {
                let report = Report {
                    pid: std::process::id(),
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                    used_us: used_by_daemon().as_secs_f64() * 1e6,
                    cgroup: String::new(),
                    totals: Default::default(),
                    vtpms: self.vtpms.values_mut().map(Vtpm::status).collect(),
                };
                self.control.answer(&report);
            }
            Some(Request::Stop) => {
                log::info!("ending, with {} vTPMs", self.vtpms.len());
                notify(&[NotifyState::Stopping]);
                self.host.leaving = false;
                self.ending = Some(Ending::Stop(Instant::now() + STOP_LIMIT));
                for id in self.ids(|_| true) {
                    self.with(id, |vtpm, host| vtpm.stop(host));
                }
            }
        }
    }
}

/// Tells systemd, if it is there.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(false, state) {
        log::debug!("systemd was not told: {e}");
    }
}

/// Ends what a former daemon left and nobody keeps.
fn end_strays(config: &Config, keeps: impl Fn(&Uuid, &str) -> bool) {
    match machine::end_strays(config, keeps) {
        Ok(ended) => {
            for (uuid, vtpm) in ended {
                log::info!("vtpm {vtpm} is gone: ended its swtpm (uuid {uuid})");
            }
        }
        Err(e) => log::error!("swtpms that a former daemon left: {e}"),
    }
}
