// SPDX-License-Identifier: GPL-2.0

//! The manager, `xen-vtpmd run`: sees to it that each vTPM in xenstore has a live worker, and answers the
//! command line. It holds nothing of any guest's: it can be killed, stopped or upgraded at any moment, and the
//! next one finds the workers by their sockets.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{flock, FlockOperation};
use rustix::net::sockopt::get_socket_peercred;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{
    getrlimit, pidfd_open, pidfd_send_signal, setrlimit, Pid, PidfdFlags, Resource, Rlimit, Signal,
};
use sd_notify::NotifyState;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::cgroup::Cgroups;
use crate::config::{Config, ConfigFile, FileError};
use crate::control::{self, Request, Server};
use crate::discovery::{self, Discovery, Message};
use crate::event_loop::{EventLoop, Token};
use crate::events::Event;
use crate::hooks::{Hooks, HOOKS_DIR};
use crate::status::{self, Report, Totals};
use crate::xenbus::Id;

mod requests;
mod setup;
mod worker;
mod workers;

use requests::Watchdog;
use setup::{accept_config, notify, prepare, raise_file_limit, signals, system, watch_process};
pub use setup::{accepted_config, stop_without_manager};
use worker::{Connection, Line, Process, Worker, ASK_STATUS, ASK_STOP};

/// A worker that ends sooner than this after its start died young.
const YOUNG: Duration = Duration::from_secs(10);

/// The pauses before the successor of a worker that died young.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(10);

/// How long after a worker's start, and then how often, the manager tries to connect to it.
const CONNECT_PAUSE: Duration = Duration::from_millis(50);
const CONNECT_LAST_PAUSE: Duration = Duration::from_secs(2);

/// How long workers have to respond.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long they have to end when they are told to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a former manager's lock is waited for: a child that was being started may have a copy of it for a
/// moment.
const LOCK_TIMEOUT: Duration = Duration::from_millis(500);
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// After this the service counts as ready although xenstored has not responded.
const READY_TIMEOUT: Duration = Duration::from_secs(10);

/// How much is read from a worker at a time, and the longest line that it may send.
const READ: usize = 16 << 10;
const MAX_LINE: usize = 64 << 10;

/// How often a worker of another version is asked to hand over to one of ours.
const HAND_OVER_PAUSE: Duration = Duration::from_millis(100);

/// How many of the messages about xenstore are taken in one turn.
const MESSAGES_PER_TURN: usize = 256;

/// What ends the manager.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody could ask for anything.
    #[error(transparent)]
    Control(#[from] control::Error),
    /// The configuration is broken.
    #[error(transparent)]
    Config(#[from] FileError),
    /// Another manager is there.
    #[error("a manager is running already: it holds {}", .0.display())]
    Running(PathBuf),
    /// The run directory cannot be used.
    #[error("{}: {source}", path.display())]
    RunDir {
        /// What in it.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// Something that the manager cannot do without.
    #[error("{0}: {1}")]
    System(&'static str, io::Error),
}

/// The directory with the workers' directories.
pub fn workers_dir(run_dir: &Path) -> PathBuf {
    run_dir.join("vtpm")
}

/// The directory of one vTPM's worker.
pub fn worker_dir(run_dir: &Path, id: Id) -> PathBuf {
    workers_dir(run_dir).join(format!("{}-{}", id.domid, id.devid))
}

/// A client that waits for the status.
#[derive(Debug)]
struct Query {
    client: u32,
    waiting: BTreeSet<Id>,
    deadline: Instant,
}

/// The stop that a client asked for.
#[derive(Debug)]
struct Stop {
    client: u32,
    deadline: Instant,
}

/// Whether the manager goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Next,
    /// A signal ends the manager, and no worker.
    Leave,
    /// All workers have ended, as a client asked for.
    Stopped,
}

/// The manager. Fields are dropped in the order of their declaration; none depends on another.
#[derive(Debug)]
pub struct Manager {
    config: Config,
    file: ConfigFile,
    events: EventLoop,
    discovery: Discovery,
    server: Option<Server>,
    signals: UnixStream,
    reload: Arc<AtomicBool>,
    cgroups: Result<Cgroups, String>,
    hooks: Option<Hooks>,
    workers: BTreeMap<Id, Worker>,
    /// The `due` of those workers that have one: no turn looks at the others.
    timers: BTreeSet<(Instant, Id)>,
    /// Which program our workers are, by device and inode, unless it is a test's.
    program: Option<(u64, u64)>,
    /// Workers that may be of another version, and when the next of them is looked at.
    former: VecDeque<Id>,
    next_former: Option<Instant>,
    queries: Vec<Query>,
    stop: Option<Stop>,
    totals: Totals,
    /// Xenstore has been looked at once.
    scanned: bool,
    ready: bool,
    started: Instant,
    /// How many vTPMs systemd was told of.
    told: Option<usize>,
    watchdog: Option<Watchdog>,
    _lock: File,
}

impl Manager {
    /// Takes the manager's lock, finds the workers that are there, and follows xenstore.
    pub fn new(config: Config, file: ConfigFile, text: &str) -> Result<Self, Error> {
        let (discovery, source) = discovery::pair().map_err(system("eventfd"))?;
        let run_dir = config.run_dir.clone();
        let manager = Self::with(config, file, text, discovery)?;
        discovery::spawn(source, run_dir).map_err(system("thread for xenstore"))?;
        Ok(manager)
    }

    fn with(
        config: Config,
        file: ConfigFile,
        text: &str,
        discovery: Discovery,
    ) -> Result<Self, Error> {
        let events = EventLoop::new().map_err(system("epoll"))?;
        let lock = prepare(&config.run_dir)?;
        accept_config(&config.run_dir, text)?;
        let (signals, reload) = signals(&events).map_err(system("signals"))?;
        events
            .add(Token::Discovery, &discovery)
            .map_err(system("epoll"))?;
        let server = Server::open(&config.run_dir, config.status_gid()?, &events)?;
        raise_file_limit();
        let cgroups = Cgroups::open();
        if let Err(reason) = &cgroups {
            log::warn!("workers have no cgroups, only resource limits: {reason}");
        }
        let hooks = Hooks::start(PathBuf::from(HOOKS_DIR)).map_err(system("thread for hooks"))?;

        let own = Path::new("/proc/self/exe");
        let program = match config.launcher == own {
            true => fs::metadata(own).ok().map(|data| (data.dev(), data.ino())),
            false => None,
        };
        let mut manager = Self {
            config,
            file,
            events,
            discovery,
            server: Some(server),
            signals,
            reload,
            cgroups,
            hooks: Some(hooks),
            workers: BTreeMap::new(),
            timers: BTreeSet::new(),
            program,
            former: VecDeque::new(),
            next_former: None,
            queries: Vec::new(),
            stop: None,
            totals: Totals::default(),
            scanned: false,
            ready: false,
            started: Instant::now(),
            told: None,
            watchdog: Watchdog::of_service(),
            _lock: lock,
        };
        manager.find_workers();
        Ok(manager)
    }

    /// Connects to the workers of a former manager. Directories without a live one get a worker too, once
    /// xenstore has been looked at: it ends what is left of the vTPM.
    fn find_workers(&mut self) {
        let now = Instant::now();
        let mut found = 0;
        let entries = match fs::read_dir(workers_dir(&self.config.run_dir)) {
            Ok(entries) => entries,
            Err(e) => return log::error!("looking for workers: {e}"),
        };
        for name in entries.flatten().map(|entry| entry.file_name()) {
            let names = name.to_str().and_then(|name| name.split_once('-'));
            let Some(id) = names.and_then(|(domid, devid)| Id::from_names(domid, devid)) else {
                continue;
            };
            self.workers.insert(id, Worker::new(now));
            if self.connect(id) {
                found += 1;
                self.former.push_back(id);
            }
        }
        if found > 0 {
            log::info!("found {found} workers");
            self.next_former = Some(now + HAND_OVER_PAUSE);
        }
    }

    /// Runs until a signal or a request ends it.
    pub fn run(mut self) -> Result<(), Error> {
        loop {
            match self.turn()? {
                Turn::Next => (),
                Turn::Leave => {
                    self.leave();
                    return Ok(());
                }
                Turn::Stopped => {
                    self.finish_stop();
                    return Ok(());
                }
            }
        }
    }

    /// Waits, and does what there is to do.
    fn turn(&mut self) -> Result<Turn, Error> {
        let ready = self.events.wait(self.deadline()).map_err(system("epoll"))?;
        for token in ready {
            if self.on_ready(token) == Turn::Leave {
                return Ok(Turn::Leave);
            }
        }
        self.on_time(Instant::now());
        match self.stop.is_some() && self.is_stopped() {
            true => Ok(Turn::Stopped),
            false => Ok(Turn::Next),
        }
    }

    fn on_ready(&mut self, token: Token) -> Turn {
        match token {
            Token::Discovery => self.on_discovery(),
            Token::Signal => return self.on_signal(),
            Token::Listener => {
                if let Some(server) = &mut self.server {
                    server.on_listener(&self.events);
                }
            }
            Token::Client(number) => {
                let server = self.server.as_mut();
                let request = server.and_then(|server| server.on_client(&self.events, number));
                match request {
                    Some(Request::Status) => self.query(number),
                    Some(Request::Stop) => self.begin_stop(number),
                    None => (),
                }
            }
            Token::Connection(id) => self.on_connection(id),
            Token::Process(id) => self.on_process(id),
        }
        Turn::Next
    }

    fn deadline(&self) -> Option<Instant> {
        let timer = self.timers.first().map(|(due, _)| *due);
        let query = self.queries.iter().map(|query| query.deadline).min();
        let stop = self.stop.as_ref().map(|stop| stop.deadline);
        let watchdog = self.watchdog.as_ref().map(|watchdog| watchdog.next);
        let ready = (!self.ready).then_some(self.started + READY_TIMEOUT);
        let server = self.server.as_ref().and_then(Server::deadline);

        [
            timer,
            query,
            stop,
            watchdog,
            ready,
            server,
            self.next_former,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn on_time(&mut self, now: Instant) {
        while let Some((due, id)) = self.timers.first().copied().filter(|(due, _)| *due <= now) {
            self.timers.remove(&(due, id));
            self.on_due(id);
        }
        let late = |query: &Query| query.deadline <= now;
        while let Some(i) = self.queries.iter().position(late) {
            let query = self.queries.swap_remove(i);
            self.respond(query);
        }
        if let Some(server) = &mut self.server {
            server.on_deadline(&self.events, now);
        }
        if self.next_former.is_some_and(|next| next <= now) {
            self.next_former = match self.former.pop_front() {
                Some(id) if self.stop.is_none() => {
                    self.hand_over_if_former(id);
                    Some(now + HAND_OVER_PAUSE)
                }
                _ => None,
            };
        }
        if !self.ready && now >= self.started + READY_TIMEOUT {
            self.tell_systemd(true);
        }
        if let Some(watchdog) = self.watchdog.as_mut().filter(|dog| dog.next <= now) {
            watchdog.next = now + watchdog.period;
            notify(&[NotifyState::Watchdog]);
        }
    }

    // What needs a worker.

    fn on_discovery(&mut self) {
        for message in self.discovery.take(MESSAGES_PER_TURN) {
            match message {
                Message::Vtpm { id, needed: true } => self.need(id),
                Message::Vtpm { id, needed: false } => self.need_no_more(id),
                Message::Scanned if !self.scanned => {
                    self.scanned = true;
                    // Those of vTPMs that went away while no manager ran.
                    let left = self.workers.iter().filter(|(_, worker)| !worker.needed);
                    let left: Vec<Id> = left.map(|(id, _)| *id).collect();
                    left.into_iter().for_each(|id| self.start_if_wanted(id));
                }
                Message::Scanned => (),
            }
        }
        if self.scanned {
            self.tell_systemd(true);
        }
    }

    fn need(&mut self, id: Id) {
        let now = Instant::now();
        let worker = self.workers.entry(id).or_insert_with(|| Worker::new(now));
        let pause = worker.pause;
        let checked = std::mem::take(&mut worker.checking);
        worker.needed = true;
        if worker.is_alive() || (worker.due.is_some() && !checked) {
            return;
        }
        match checked && pause > Duration::ZERO {
            true => self.set_timer(id, Some(now + pause)),
            false => self.start(id),
        }
    }

    fn need_no_more(&mut self, id: Id) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        worker.needed = false;
        worker.checking = false;
        // A live one sees for itself that it is over.
        if !worker.is_alive() {
            self.start_if_wanted(id);
        }
    }

    /// Whether something is left of a vTPM that its worker has not removed.
    fn is_left(&self, id: Id) -> bool {
        worker_dir(&self.config.run_dir, id).exists()
    }

    /// After a failure: a successor, if there is work for it.
    fn start_if_wanted(&mut self, id: Id) {
        let left = self.is_left(id);
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        if worker.is_alive() || self.stop.is_some() {
            return;
        }
        match worker.needed || left {
            true => {
                let due = Instant::now() + worker.pause;
                self.set_timer(id, Some(due));
            }
            false => self.forget(id),
        }
    }

    fn forget(&mut self, id: Id) {
        self.set_timer(id, None);
        self.workers.remove(&id);
        self.answered(id);
        if let Ok(cgroups) = &self.cgroups {
            cgroups.remove(id);
        }
        self.tell_systemd(false);
    }

    // Starting workers, and finding them.

    fn set_timer(&mut self, id: Id, due: Option<Instant>) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        if let Some(due) = worker.due {
            self.timers.remove(&(due, id));
        }
        worker.due = due;
        if let Some(due) = due {
            self.timers.insert((due, id));
        }
    }

    fn on_due(&mut self, id: Id) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        worker.due = None;
        match worker.is_alive() {
            true => {
                if worker.connection.is_none() && !self.connect(id) {
                    self.connect_later(id);
                }
            }
            false => self.start(id),
        }
    }
}

#[cfg(test)]
mod tests;
