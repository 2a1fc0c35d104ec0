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

/// A worker's socket in its directory.
const WORKER_SOCKET: &str = "worker.sock";

/// What the manager asks a worker for.
const ASK_STATUS: &[u8] = b"{\"request\":\"status\"}\n";
const ASK_STOP: &[u8] = b"{\"request\":\"stop\"}\n";

/// A line from a worker.
enum Line {
    Event(Event),
    Status(Box<status::Vtpm>),
    /// A response to a stop, or something of a later version.
    Other,
}

impl Line {
    fn parse(line: &[u8]) -> serde_json::Result<Self> {
        let value: serde_json::Value = serde_json::from_slice(line)?;
        Ok(match (value.get("event"), value.get("state")) {
            // An event that is not known here is one of a later version.
            (Some(_), _) => serde_json::from_value(value).map_or(Self::Other, Self::Event),
            (None, Some(_)) => Self::Status(serde_json::from_value(value)?),
            (None, None) => Self::Other,
        })
    }
}

/// The connection to a worker.
#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    /// What has arrived of a line.
    input: Vec<u8>,
}

impl Connection {
    /// Connects without waiting. `None` if nobody listens.
    fn open(run_dir: &Path, id: Id) -> io::Result<Option<Self>> {
        let path = worker_dir(run_dir, id).join(WORKER_SOCKET);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        match rustix::net::connect_unix(&socket, &SocketAddrUnix::new(&path)?) {
            Ok(()) => Ok(Some(Self {
                stream: socket.into(),
                input: Vec::new(),
            })),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::CONNREFUSED) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    fn send(&self, line: &[u8]) -> io::Result<()> {
        match (&self.stream).write(line)? {
            n if n == line.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    /// Reads once. Returns the lines that are whole now; the error means that it is over.
    fn receive(&mut self) -> (Vec<Vec<u8>>, io::Result<()>) {
        let mut bytes = [0; READ];
        let end = match (&self.stream).read(&mut bytes) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                self.input.extend_from_slice(&bytes[..n]);
                Ok(())
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(e) => Err(e),
        };
        let mut lines: Vec<Vec<u8>> = Vec::new();
        if let Some(last) = self.input.iter().rposition(|b| *b == b'\n') {
            let rest = self.input.split_off(last + 1);
            let whole = std::mem::replace(&mut self.input, rest);
            let split = whole[..last].split(|b| *b == b'\n');
            lines.extend(split.map(<[u8]>::to_vec));
        }
        match self.input.len() > MAX_LINE {
            true => (lines, Err(io::ErrorKind::InvalidData.into())),
            false => (lines, end),
        }
    }
}

/// A worker that this manager has started.
#[derive(Debug)]
struct Process {
    child: Child,
    pidfd: OwnedFd,
}

/// What the manager knows of a vTPM.
#[derive(Debug)]
struct Worker {
    /// Whether xenstore has it, by the last look.
    needed: bool,
    process: Option<Process>,
    connection: Option<Connection>,
    /// When it was started or found.
    since: Instant,
    /// The pause before the next start, and that before the next attempt to connect.
    pause: Duration,
    connect_pause: Duration,
    /// When something is due: a start, or an attempt to connect.
    due: Option<Instant>,
    /// Xenstore is to be looked at before the next start.
    checking: bool,
    /// It was asked to hand over to the next one.
    hands_over: bool,
    /// It was asked for its status and has not responded.
    asked: bool,
    status: Option<status::Vtpm>,
    /// How many successors there were.
    restarts: u64,
    /// The last error that was logged about it, to log it once.
    complaint: String,
}

impl Worker {
    fn new(now: Instant) -> Self {
        Self {
            needed: false,
            process: None,
            connection: None,
            since: now,
            pause: Duration::ZERO,
            connect_pause: CONNECT_PAUSE,
            due: None,
            checking: false,
            hands_over: false,
            asked: false,
            status: None,
            restarts: 0,
            complaint: String::new(),
        }
    }

    fn is_alive(&self) -> bool {
        self.process.is_some() || self.connection.is_some()
    }

    /// The pause before a successor: none for one that lived long enough.
    fn next_pause(&mut self, now: Instant) -> Duration {
        self.pause = match now - self.since < YOUNG {
            true => (self.pause * 2).clamp(FIRST_PAUSE, LAST_PAUSE),
            false => Duration::ZERO,
        };
        self.pause
    }
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

/// How often systemd wants to hear of the manager.
#[derive(Debug)]
struct Watchdog {
    period: Duration,
    next: Instant,
}

impl Watchdog {
    fn of_service() -> Option<Self> {
        let mut us = 0;
        // Not for the workers: they are not what systemd started.
        sd_notify::watchdog_enabled(true, &mut us).then(|| Self {
            period: Duration::from_micros(us / 3),
            next: Instant::now(),
        })
    }
}

impl Manager {
    /// Takes the manager's lock, finds the workers that are there, and follows xenstore.
    pub fn new(config: Config, file: ConfigFile, text: &str) -> Result<Self, Error> {
        let (discovery, source) = discovery::pair().map_err(system("eventfd"))?;
        let manager = Self::with(config, file, text, discovery)?;
        discovery::spawn(source).map_err(system("thread for xenstore"))?;
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

    /// Starts a worker unless one is found alive.
    fn start(&mut self, id: Id) {
        if self.stop.is_some() || self.connect(id) {
            return;
        }
        let now = Instant::now();
        let spawned = self.spawn(id);
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        worker.since = now;
        match spawned {
            Ok(process) => {
                log::debug!(vtpm:% = id; "worker {} is started", process.child.id());
                worker.process = Some(process);
                worker.connect_pause = CONNECT_PAUSE;
                self.totals.worker_starts += 1;
                self.connect_later(id);
            }
            Err(e) => {
                self.complain(id, format!("a worker cannot be started: {e}"));
                self.retry(id, now);
            }
        }
        self.tell_systemd(false);
    }

    /// Tries again after a pause, which grows.
    fn retry(&mut self, id: Id, now: Instant) {
        if let Some(worker) = self.workers.get_mut(&id) {
            let due = now + worker.next_pause(now);
            self.set_timer(id, Some(due));
        }
    }

    /// Logs an error about a vTPM, but not the same one again and again.
    fn complain(&mut self, id: Id, what: String) {
        if let Some(worker) = self.workers.get_mut(&id) {
            if worker.complaint != what {
                log::error!(vtpm:% = id; "{what}");
                worker.complaint = what;
            }
        }
    }

    fn spawn(&mut self, id: Id) -> io::Result<Process> {
        let mut command = Command::new(&self.config.launcher);
        command
            .arg0("xen-vtpmd")
            .arg("--config")
            .arg(accepted_config(&self.config.run_dir))
            .arg("serve")
            .args(["--domid", &id.domid.to_string()])
            .args(["--devid", &id.devid.to_string()])
            .args(["--log-level", &log::max_level().to_string().to_lowercase()]);
        if let Ok(cgroups) = &self.cgroups {
            match cgroups.prepare(id, &self.config.limits) {
                Ok(group) => drop(command.arg("--cgroup").arg(group)),
                // Resource limits hold all the same, and a guest without TPM helps nobody.
                Err(e) => self.complain(id, format!("no cgroup for the worker: {e}")),
            }
        }
        let mut child = command
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let watched = watch_process(&self.events, id, &child);
        match watched {
            Ok(pidfd) => Ok(Process { child, pidfd }),
            Err(e) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(e)
            }
        }
    }

    /// After an upgrade: has a worker that another program is hand over to one of ours, one after the other. What
    /// its guest notices is a pause.
    fn hand_over_if_former(&mut self, id: Id) {
        let program = self.program;
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        let (Some(connection), None) = (&worker.connection, &worker.process) else {
            return;
        };
        let hand_over = || -> io::Result<bool> {
            let pid = get_socket_peercred(&connection.stream)?.pid;
            let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
            // Looked at while the process is held: it is this one that has the number.
            let data = fs::metadata(format!("/proc/{}/exe", pid.as_raw_nonzero()))?;
            let other = program.is_some_and(|program| program != (data.dev(), data.ino()));
            if other {
                pidfd_send_signal(&pidfd, Signal::Term)?;
            }
            Ok(other)
        };
        match hand_over() {
            Ok(other) => worker.hands_over = other,
            Err(e) => log::warn!(vtpm:% = id; "the worker stays as it is: {e}"),
        }
    }

    fn connect_later(&mut self, id: Id) {
        if let Some(worker) = self.workers.get_mut(&id) {
            let due = Instant::now() + worker.connect_pause;
            worker.connect_pause = (worker.connect_pause * 2).min(CONNECT_LAST_PAUSE);
            self.set_timer(id, Some(due));
        }
    }

    /// Connects to a worker. True if it is there, even if it is too busy for that.
    fn connect(&mut self, id: Id) -> bool {
        let opened = Connection::open(&self.config.run_dir, id);
        let Some(worker) = self.workers.get_mut(&id) else {
            return false;
        };
        match opened {
            Ok(None) => false,
            Ok(Some(connection)) => {
                let token = Token::Connection(id);
                if let Err(e) = self.events.add(token, &connection.stream) {
                    log::error!(vtpm:% = id; "worker: {e}");
                    return false;
                }
                worker.connection = Some(connection);
                self.set_timer(id, None);
                true
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                let due = Instant::now() + CONNECT_LAST_PAUSE;
                self.set_timer(id, Some(due));
                true
            }
            Err(e) => {
                self.complain(id, format!("connecting to the worker: {e}"));
                false
            }
        }
    }

    // What workers say, and their ends.

    fn on_connection(&mut self, id: Id) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        let Some(connection) = &mut worker.connection else {
            return;
        };
        let (lines, end) = connection.receive();
        for line in lines {
            self.on_line(id, &line);
        }
        if let Err(e) = end {
            log::debug!(vtpm:% = id; "worker hung up: {e}");
            self.drop_connection(id);
            let owned = self.workers.get(&id).is_some_and(|w| w.process.is_some());
            match owned {
                // Its process tells when it ends.
                true => self.connect_later(id),
                false => self.ended(id, None),
            }
        }
    }

    fn on_line(&mut self, id: Id, line: &[u8]) {
        match Line::parse(line) {
            Ok(Line::Event(event)) => {
                self.totals.count(&event);
                if let Some(hooks) = self.hooks.as_ref().filter(|_| event.is_for_hooks()) {
                    hooks.tell(id, &event);
                }
            }
            Ok(Line::Status(mut status)) => {
                // Who it is about is known here.
                (status.domid, status.devid) = (id.domid, id.devid);
                if let Some(worker) = self.workers.get_mut(&id) {
                    worker.status = Some(*status);
                    worker.asked = false;
                }
                self.answered(id);
            }
            Ok(Line::Other) => (),
            Err(e) => self.complain(id, format!("the worker sends nonsense: {e}")),
        }
    }

    fn drop_connection(&mut self, id: Id) {
        if let Some(worker) = self.workers.get_mut(&id) {
            if let Some(connection) = worker.connection.take() {
                self.events.remove(&connection.stream);
            }
            worker.asked = false;
        }
        self.answered(id);
    }

    fn on_process(&mut self, id: Id) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        let Some(process) = &mut worker.process else {
            return;
        };
        let status = match process.child.try_wait() {
            Ok(None) => return,
            Ok(Some(status)) => Some(status),
            Err(e) => {
                log::error!(vtpm:% = id; "waiting for the worker: {e}");
                None
            }
        };
        if let Some(process) = worker.process.take() {
            self.events.remove(&process.pidfd);
        }
        // Its last words.
        while let Some(connection) = self
            .workers
            .get_mut(&id)
            .and_then(|w| w.connection.as_mut())
        {
            let (lines, end) = connection.receive();
            let over = end.is_err() || lines.is_empty();
            lines.iter().for_each(|line| self.on_line(id, line));
            if over {
                break;
            }
        }
        self.drop_connection(id);
        self.ended(id, status);
    }

    /// A worker has ended: with which status, if that is known.
    fn ended(&mut self, id: Id, status: Option<ExitStatus>) {
        let now = Instant::now();
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        worker.status = None;
        let hands_over = std::mem::take(&mut worker.hands_over);
        worker.next_pause(now);
        if hands_over {
            worker.pause = Duration::ZERO;
        }
        self.set_timer(id, None);
        match status {
            Some(status) if status.success() => {
                // The vTPM is over, unless xenstore has one of this name again.
                log::debug!(vtpm:% = id; "worker has ended");
                if let Some(worker) = self.workers.get_mut(&id) {
                    worker.needed = false;
                    worker.checking = true;
                }
                self.discovery.ask(id);
            }
            _ if hands_over => {
                log::info!(vtpm:% = id; "the worker of another version has handed over");
                self.start_if_wanted(id);
            }
            _ => {
                let how = status.map_or("hung up".to_owned(), |status| status.to_string());
                if self.stop.is_none() {
                    log::warn!(vtpm:% = id; "worker ended ({how}): another one follows if it is needed");
                }
                if let Some(worker) = self.workers.get_mut(&id) {
                    worker.restarts += 1;
                }
                self.totals.worker_restarts += 1;
                self.start_if_wanted(id);
            }
        }
    }

    // Status.

    fn query(&mut self, client: u32) {
        let mut waiting = BTreeSet::new();
        for (id, worker) in &mut self.workers {
            let Some(connection) = &worker.connection else {
                continue;
            };
            // One that still owes a response gives it to this client too.
            if !worker.asked {
                match connection.send(ASK_STATUS) {
                    Ok(()) => worker.asked = true,
                    Err(e) => {
                        log::debug!(vtpm:% = id; "asking the worker: {e}");
                        continue;
                    }
                }
            }
            waiting.insert(*id);
        }
        let query = Query {
            client,
            waiting,
            deadline: Instant::now() + RESPONSE_TIMEOUT,
        };
        match query.waiting.is_empty() {
            true => self.respond(query),
            false => self.queries.push(query),
        }
    }

    /// A worker has responded, or will not.
    fn answered(&mut self, id: Id) {
        let mut i = 0;
        while let Some(query) = self.queries.get_mut(i) {
            query.waiting.remove(&id);
            match query.waiting.is_empty() {
                true => {
                    let query = self.queries.swap_remove(i);
                    self.respond(query);
                }
                false => i += 1,
            }
        }
    }

    fn respond(&mut self, query: Query) {
        let report = self.report(&query.waiting);
        if let Some(server) = &mut self.server {
            server.respond(&self.events, query.client, &report);
        }
    }

    fn report(&self, silent: &BTreeSet<Id>) -> Report {
        let vtpm = |(id, worker): (&Id, &Worker)| {
            let blank = |state: &str| status::Vtpm {
                domid: id.domid,
                devid: id.devid,
                state: state.to_owned(),
                ..status::Vtpm::default()
            };
            let mut vtpm = match &worker.status {
                _ if silent.contains(id) => blank("does not respond"),
                Some(status) if worker.connection.is_some() => status.clone(),
                _ if worker.is_alive() => blank("starting"),
                _ => blank("no worker"),
            };
            vtpm.worker_restarts = worker.restarts;
            if vtpm.last_error.is_none() && !worker.complaint.is_empty() {
                vtpm.last_error = Some(status::LastError::now(worker.complaint.clone()));
            }
            vtpm
        };
        Report {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            used_us: crate::counters::used_by_daemon().as_secs_f64() * 1e6,
            cgroup: match &self.cgroups {
                Ok(cgroups) => format!("cgroup v2 limits: {}", cgroups.controllers()),
                Err(reason) => format!("no cgroup limits: {reason}"),
            },
            totals: self.totals.clone(),
            vtpms: self.workers.iter().map(vtpm).collect(),
        }
    }

    // The end.

    fn begin_stop(&mut self, client: u32) {
        log::info!("stopping, with {} vTPMs", self.workers.len());
        notify(&[NotifyState::Stopping]);
        self.stop = Some(Stop {
            client,
            deadline: Instant::now() + STOP_TIMEOUT,
        });
        for id in self.workers.keys().copied().collect::<Vec<_>>() {
            if self.workers[&id].connection.is_none() {
                self.connect(id);
            }
            let Some(worker) = self.workers.get(&id) else {
                continue;
            };
            match worker.connection.as_ref().map(|c| c.send(ASK_STOP)) {
                Some(Ok(())) => (),
                Some(Err(e)) => log::warn!(vtpm:% = id; "stopping the worker: {e}"),
                None if worker.is_alive() => {
                    log::warn!(vtpm:% = id; "the worker does not listen");
                }
                None => (),
            }
        }
    }

    fn is_stopped(&self) -> bool {
        let late = |stop: &Stop| stop.deadline <= Instant::now();
        self.stop.as_ref().is_some_and(late) || !self.workers.values().any(Worker::is_alive)
    }

    fn finish_stop(mut self) {
        let left: Vec<String> = self
            .workers
            .iter()
            .filter(|(_, worker)| worker.is_alive())
            .map(|(id, _)| id.to_string())
            .collect();
        let response = match left.is_empty() {
            true => serde_json::json!({ "stopped": true }),
            false => {
                let error = format!("these vTPMs did not end: {}", left.join(", "));
                log::error!("{error}");
                serde_json::json!({ "error": error })
            }
        };
        if let (Some(stop), Some(mut server)) = (self.stop.take(), self.server.take()) {
            server.respond(&self.events, stop.client, &response);
            server.finish();
        }
        log::info!("stopped");
    }

    /// Leaves everything to the next manager.
    fn leave(self) {
        log::info!(
            "ending; {} workers stay for the next manager",
            self.workers.len()
        );
        notify(&[NotifyState::Stopping]);
    }

    fn on_signal(&mut self) -> Turn {
        let mut bytes = [0; 16];
        // Emptied: it only says that there was a signal.
        while (&self.signals).read(&mut bytes).is_ok_and(|n| n > 0) {}
        match self.reload.swap(false, Ordering::Relaxed) {
            true => {
                self.reload_config();
                Turn::Next
            }
            false => Turn::Leave,
        }
    }

    /// Reads the configuration again, for workers to come. A broken one changes nothing.
    fn reload_config(&mut self) {
        let accepted = self
            .file
            .load()
            .map_err(Error::from)
            .and_then(|(new, text)| {
                let gid = new.status_gid()?;
                accept_config(&self.config.run_dir, &text)?;
                Ok((new, gid))
            });
        match accepted {
            Ok((new, gid)) => {
                log::set_max_level(new.log_level);
                self.config = Config {
                    run_dir: self.config.run_dir.clone(),
                    launcher: self.config.launcher.clone(),
                    ..new
                };
                if let Some(server) = &mut self.server {
                    if let Err(e) = server.rebind(&self.config.run_dir, gid, &self.events) {
                        log::error!("{e}");
                    }
                }
                log::info!("the configuration is read again, for vTPMs that start from now on");
            }
            Err(e) => log::error!("the configuration stays as it was: {e}"),
        }
    }

    /// Tells systemd how many vTPMs there are if that has changed, and that the service is ready.
    fn tell_systemd(&mut self, ready: bool) {
        let vtpms = self.workers.len();
        let first = ready && !self.ready;
        if !first && (!self.ready || self.told == Some(vtpms)) {
            return;
        }
        let status = match (vtpms, self.scanned) {
            (_, false) => "waiting for xenstored".to_owned(),
            (1, _) => "1 vTPM".to_owned(),
            _ => format!("{vtpms} vTPMs"),
        };
        let mut state = vec![NotifyState::Status(&status)];
        if first {
            self.ready = true;
            state.push(NotifyState::Ready);
        }
        self.told = self.scanned.then_some(vtpms);
        notify(&state);
    }
}

fn system(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |e| Error::System(what, e)
}

/// Makes the run directory and takes the manager's lock, for life.
fn prepare(run_dir: &Path) -> Result<File, Error> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::RunDir { path, source }
    };
    control::make_dir(run_dir, 0o711).map_err(at(run_dir))?;
    let workers = workers_dir(run_dir);
    control::make_dir(&workers, 0o700).map_err(at(&workers))?;
    let path = run_dir.join("manager.lock");
    let mut options = OpenOptions::new();
    let lock = options
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(at(&path))?;
    let deadline = Instant::now() + LOCK_TIMEOUT;
    loop {
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(lock),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(LOCK_PAUSE);
            }
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(Error::Running(path)),
            Err(e) => return Err(at(&path)(e.into())),
        }
    }
}

/// The configuration as it was accepted: what workers read, whatever the administrator is writing.
pub fn accepted_config(run_dir: &Path) -> PathBuf {
    run_dir.join("config.toml")
}

fn accept_config(run_dir: &Path, text: &str) -> Result<(), Error> {
    let path = accepted_config(run_dir);
    let new = path.with_extension("new");
    let write = || {
        match fs::remove_file(&new) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => (),
        }
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(text.as_bytes())?;
        fs::rename(&new, &path)
    };
    write().map_err(|source| Error::RunDir { path, source })
}

/// A socket that is readable after a signal, and whether one was a SIGHUP.
fn signals(events: &EventLoop) -> io::Result<(UnixStream, Arc<AtomicBool>)> {
    let (signals, sender) = UnixStream::pair()?;
    let reload = Arc::new(AtomicBool::new(false));

    signals.set_nonblocking(true)?;
    // First the flag, then what wakes: they act in this order.
    signal_hook::flag::register(SIGHUP, reload.clone())?;
    for signal in [SIGHUP, SIGTERM, SIGINT] {
        signal_hook::low_level::pipe::register(signal, sender.try_clone()?)?;
    }
    events.add(Token::Signal, &signals)?;
    Ok((signals, reload))
}

fn watch_process(events: &EventLoop, id: Id, child: &Child) -> io::Result<OwnedFd> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or(io::ErrorKind::InvalidData)?;
    // It has not been waited for: the number is still the child's.
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    events.add(Token::Process(id), &pidfd)?;
    Ok(pidfd)
}

/// Two descriptors for each worker: as many as the system allows, not as a shell has by default.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(e) = setrlimit(Resource::Nofile, raised) {
        log::warn!("the limit of open files stays: {e}");
    }
}

/// Tells systemd, if it is there.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(false, state) {
        log::debug!("systemd was not told: {e}");
    }
}

/// Stops the workers that a manager has left which is gone. Returns those that did not end.
pub fn stop_without_manager(run_dir: &Path) -> Result<Vec<Id>, Error> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::RunDir { path, source }
    };
    if !run_dir.exists() {
        return Ok(Vec::new());
    }
    let _lock = prepare(run_dir)?;
    let dir = workers_dir(run_dir);
    let mut connections = Vec::new();
    for entry in fs::read_dir(&dir).map_err(at(&dir))? {
        let name = entry.map_err(at(&dir))?.file_name();
        let names = name.to_str().and_then(|name| name.split_once('-'));
        let Some(id) = names.and_then(|(domid, devid)| Id::from_names(domid, devid)) else {
            continue;
        };
        match Connection::open(run_dir, id) {
            Ok(Some(connection)) => match connection.send(ASK_STOP) {
                Ok(()) => connections.push((id, connection)),
                Err(e) => log::warn!(vtpm:% = id; "stopping the worker: {e}"),
            },
            Ok(None) => (),
            Err(e) => log::warn!(vtpm:% = id; "connecting to the worker: {e}"),
        }
    }
    let deadline = Instant::now() + STOP_TIMEOUT;
    connections.retain_mut(|(_, connection)| !hangs_up(connection, deadline));
    Ok(connections.into_iter().map(|(id, _)| id).collect())
}

/// Waits for the other end to go.
fn hangs_up(connection: &mut Connection, deadline: Instant) -> bool {
    let nonblocking = connection.stream.set_nonblocking(false);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || nonblocking.is_err() {
            return false;
        }
        // A zero timeout would mean none at all; there is some left.
        let _ = connection.stream.set_read_timeout(Some(left));
        if connection.receive().1.is_err() {
            return true;
        }
        connection.input.clear();
    }
}

#[cfg(test)]
mod tests;
