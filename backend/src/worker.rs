// SPDX-License-Identifier: GPL-2.0

//! The worker, `xen-vtpmd serve`: everything for one vTPM, in plain blocking code. It follows the
//! vTPM's nodes, has its state, its swtpm and its I/O process, and ends with the vTPM.
//!
//! Whatever blocks here holds up one guest. Should the worker end for any reason, swtpm goes on, and the next
//! worker connects to it.

mod connection;
mod control;
mod end;
pub mod messages;
pub mod tpm;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use clap::Args;
use rustix::event::{poll, PollFd, PollFlags};
use rustix::io::Errno;
use signal_hook::consts::{SIGINT, SIGTERM};
use xen_tpm_protocol::layout::{FEATURE_VALUE, NODE_FEATURE};

use crate::config::{Config, Policy, Sandbox, Uuid};
use crate::counters::used_by;
use crate::events::Event;
use crate::io::link::{Ask, Tell};
use crate::lifecycle::{decide, Facts, Stage, Step};
use crate::logger;
use crate::notes::{Notes, Use};
use crate::probe::Probe;
use crate::record::RunDir;
use crate::state;
use crate::status::{self, LastError};
use crate::storm::Backoff;
use crate::swtpm::{self, GiveUp, Version};
use crate::sys::release_memory;
use crate::sys::shared::{Entry, Shared};
use crate::xen::{self, Store};
use crate::xenbus::{self, BusState, Id, NodeError, Paths, RingParams};

use connection::Connection;
use control::{Request, Server};
use messages::Messages;
use tpm::Setup;
use tpm::{Held, Place, Tpm};

/// How long InitWait is shown at least: libxl waits for this very state, and reads it only some time
/// after it was written.
const INIT_WAIT: Duration = Duration::from_millis(300);

/// How long the state of a new vTPM is waited for that another has, as the guest's former vTPM does for a
/// moment. libxl gives up after ten seconds; before that there is to be a reason.
const LOCK_TIMEOUT: Duration = Duration::from_secs(9);

/// How long swtpm_setup may take, on the slowest of hosts.
pub const SETUP_TIMEOUT: Duration = Duration::from_secs(600);

/// How long a guest has to follow when its TPM is lost.
const FAIL_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a guest has to close when the toolstack takes its vTPM away. A guest that is being
/// destroyed never does.
const LEAVE_TIMEOUT: Duration = Duration::from_millis(500);

/// How long a command of a guest that was let go may take: as long as the slowest of commands.
const LEFT_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a running command has when the worker hands over to the next one.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(30);

/// How soon what failed in xenstore, or of a connection, is tried again: at first, and at last.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// How soon a TPM that died is started again, where the administrator wants that: at first, and at last.
const REVIVE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Which vTPM to serve.
#[derive(Clone, Copy, Debug, Args)]
#[group(skip)]
pub struct Serve {
    /// The guest's domain
    #[arg(long)]
    pub domid: u16,
    /// The device's number there
    #[arg(long)]
    pub devid: u32,
}

impl Serve {
    /// The vTPM.
    pub fn id(self) -> Id {
        Id {
            domid: self.domid,
            devid: self.devid,
        }
    }
}

/// Why a vTPM, or a guest's connection to it, cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The toolstack's or the guest's nodes are wrong.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// Xen did not do it.
    #[error(transparent)]
    Xen(#[from] xen::Error),
    /// There is no TPM.
    #[error(transparent)]
    Tpm(#[from] tpm::Error),
    /// There is no connection to the guest.
    #[error("{0}")]
    Connection(String),
    /// The TPM of a guest that is running has ended.
    #[error("the TPM ended while no worker ran")]
    Gone,
    /// Its state could not be written.
    #[error("the TPM is in failure mode, as after a write that failed to {0}, where {1}")]
    FailureMode(String, String),
    /// Something of the kernel's failed.
    #[error("{0}: {1}")]
    Io(&'static str, #[source] io::Error),
}

impl Failure {
    /// Whether the connection to xenstored is gone.
    fn is_disconnect(&self) -> bool {
        match self {
            Self::Xen(e) | Self::Node(NodeError::Xen(e)) => e.is_disconnect(),
            _ => false,
        }
    }
}

impl From<swtpm::Error> for Failure {
    fn from(e: swtpm::Error) -> Self {
        tpm::Error::from(e).into()
    }
}

impl From<state::Error> for Failure {
    fn from(e: state::Error) -> Self {
        tpm::Error::from(e).into()
    }
}

/// What ends a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The vTPM is over.
    Over,
    /// It is for the next worker.
    HandOver,
}

/// Serves a vTPM until it is over, which is success; after a failure the manager starts a successor.
pub fn run(config: Config, serve: Serve) -> ExitCode {
    let id = serve.id();
    logger::about(id);
    match Worker::new(config, id) {
        Ok(Some(mut worker)) => match worker.run() {
            Outcome::Over => {
                worker.run_dir.remove();
                ExitCode::SUCCESS
            }
            Outcome::HandOver => ExitCode::from(3),
        },
        Ok(None) => {
            log::warn!("another worker serves it");
            ExitCode::from(2)
        }
        Err(e) => {
            log::error!("{e}");
            ExitCode::FAILURE
        }
    }
}

/// Why state was not made beforehand.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// It is there.
    #[error("{} has the state of a TPM already", .0.display())]
    Exists(std::path::PathBuf),
    /// It could not be made.
    #[error(transparent)]
    Tpm(#[from] tpm::Error),
}

/// Makes the state of a vTPM beforehand.
pub fn create_state(
    config: &Config,
    uuid: &Uuid,
    version: Option<Version>,
) -> Result<(), CreateError> {
    let held = Held::take(config, uuid, version).map_err(tpm::Error::from)?;
    if held.state.exists {
        return Err(CreateError::Exists(held.state.path));
    }
    let io_error = |e| tpm::Error::Io("run directory", e);
    let folder = config.run_dir.join(format!("create-{uuid}"));
    let run_dir = RunDir::make_at(folder).map_err(io_error)?;
    let done = create(config, held, &run_dir);
    run_dir.remove();
    Ok(done?)
}

fn create(config: &Config, held: Held, run_dir: &RunDir) -> Result<(), tpm::Error> {
    let io_error = |e| tpm::Error::Io("run directory", e);
    let mut messages = Messages::new(run_dir.messages().map_err(io_error)?);
    let probe = Probe::get(&config.run_dir);
    let place = Place {
        config,
        run: run_dir,
        id: Id { domid: 0, devid: 0 },
        probe: &probe,
        give_up: GiveUp::never(),
    };
    let mut setup = Setup::start(&place, held, &messages)?;
    swtpm::client::wait_readable(&setup, SETUP_TIMEOUT).map_err(io_error)?;
    match setup.finish(config, &mut messages)? {
        Some(()) => Ok(()),
        None => {
            setup.kill();
            Err(tpm::Error::Setup(format!(
                "not done after {} s",
                SETUP_TIMEOUT.as_secs()
            )))
        }
    }
}

/// The TPM's power.
#[derive(Debug)]
enum Power {
    Off,
    /// The state is being made, until a moment at the latest.
    Setup(Setup, Instant),
    On(Box<Tpm>),
}

/// One vTPM's worker.
///
/// The fields are dropped in this order: the guest is let go before the TPM, and the lock goes last.
#[derive(Debug)]
struct Worker {
    connection: Option<Connection>,
    /// A former connection whose command the TPM is still busy with, and until when it is waited for.
    leaving: Option<(Connection, Instant)>,
    power: Power,
    id: Id,
    paths: Paths,
    own_domid: u16,
    store: Rc<Store>,
    config: Config,
    probe: Probe,
    messages: Messages,
    shared: Shared,
    control: Server,
    signals: UnixStream,
    stage: Stage,
    /// Whose state it has, and what the administrator says about it; once that is known.
    uuid: Option<Uuid>,
    policy: Policy,
    /// What the kernel lacks for the sandbox.
    lacks: Vec<String>,
    /// The page of the next connection was served by a former worker or I/O process.
    resumes: bool,
    /// The ring parameters of the last attempt to connect, so that it is not repeated.
    tried: Option<RingParams>,
    /// When the stage ends that ends by time.
    deadline: Option<Instant>,
    /// When to look at everything again after something failed.
    retry_at: Option<Instant>,
    retry: Backoff,
    connect: Backoff,
    revive: Backoff,
    /// The volatile state could not be stored, and the vTPM does not close for that.
    held_for_save: bool,
    last_error: Option<LastError>,
    failed_in_this_life: bool,
    /// The manager wants it to end.
    stopping: bool,
    begun: Instant,
    run_dir: RunDir,
    _lock: File,
}

/// Something to look after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ready {
    Store,
    Signal,
    Messages,
    Process,
    Link,
    Io,
    Left,
    Control(control::Source),
}

impl Worker {
    /// Takes the right to serve the vTPM; `None` if another worker has it.
    fn new(config: Config, id: Id) -> Result<Option<Self>, Failure> {
        let io = |what| move |e| Failure::Io(what, e);
        let run_dir = RunDir::make(&config.run_dir, id).map_err(io("run directory"))?;
        let Some(lock) = run_dir.lock().map_err(io("lock"))? else {
            return Ok(None);
        };
        let (signals, sender) = UnixStream::pair().map_err(io("signals"))?;
        signals.set_nonblocking(true).map_err(io("signals"))?;
        for signal in [SIGTERM, SIGINT] {
            let sender = sender.try_clone().map_err(io("signals"))?;
            signal_hook::low_level::pipe::register(signal, sender).map_err(io("signals"))?;
        }
        let control = Server::open(&run_dir.worker_socket()).map_err(io("worker.sock"))?;
        let shared = Shared::open(&run_dir.io_file()).map_err(io("journal"))?;
        shared.workers.add(1);
        let messages = Messages::new(run_dir.messages().map_err(io("messages"))?);
        let probe = Probe::get(&config.run_dir);
        let store = Rc::new(Store::open()?);
        let own_domid = xenbus::own_domid(&store)?;
        let paths = Paths::new(own_domid, id);
        store.watch(&paths.backend_folder(), "backend")?;
        store.watch(&paths.frontend("state"), "frontend")?;

        Ok(Some(Self {
            connection: None,
            leaving: None,
            power: Power::Off,
            id,
            paths,
            own_domid,
            store,
            lacks: match probe.landlock || config.first_uid.is_none() {
                true => Vec::new(),
                false => vec!["landlock".into()],
            },
            config,
            probe,
            messages,
            shared,
            control,
            signals,
            stage: Stage::New,
            uuid: None,
            policy: Policy::default(),
            resumes: false,
            tried: None,
            deadline: None,
            retry_at: None,
            retry: Backoff::new(RETRY),
            connect: Backoff::new(RETRY),
            revive: Backoff::new(REVIVE),
            held_for_save: false,
            last_error: None,
            failed_in_this_life: false,
            stopping: false,
            begun: Instant::now(),
            run_dir,
            _lock: lock,
        }))
    }

    fn run(&mut self) -> Outcome {
        loop {
            if let Some(outcome) = self.evaluate() {
                return outcome;
            }
            for ready in self.wait() {
                if let Some(outcome) = self.on_ready(ready) {
                    return outcome;
                }
            }
            if let Some(outcome) = self.on_time(Instant::now()) {
                return outcome;
            }
        }
    }

    /// Waits for anything.
    fn wait(&self) -> Vec<Ready> {
        let mut watched: Vec<(Ready, BorrowedFd<'_>)> = vec![
            (Ready::Store, self.store.as_fd()),
            (Ready::Signal, self.signals.as_fd()),
            (Ready::Messages, self.messages.as_fd()),
        ];
        match &self.power {
            Power::Off => (),
            Power::Setup(setup, _) => watched.push((Ready::Process, setup.as_fd())),
            Power::On(tpm) => watched.push((Ready::Process, tpm.as_fd())),
        }
        if let Some(connection) = &self.connection {
            watched.push((Ready::Link, connection.link()));
            watched.push((Ready::Io, connection.process()));
        }
        if let Some((connection, _)) = &self.leaving {
            watched.push((Ready::Left, connection.process()));
        }
        watched.extend(
            self.control
                .sources()
                .map(|(source, fd)| (Ready::Control(source), fd)),
        );
        let timeout = self.next_deadline().map_or(-1, |deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            i32::try_from(left.as_millis()).map_or(i32::MAX, |ms| ms.saturating_add(1))
        });
        let mut fds: Vec<_> = watched
            .iter()
            .map(|(_, fd)| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
            .collect();
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::INTR) => (),
            Err(e) => {
                log::error!("poll: {e}");
                std::thread::sleep(Duration::from_secs(1));
            }
        }
        let ready = fds.iter().map(|fd| !fd.revents().is_empty());
        let all = watched.iter().zip(ready);
        all.filter_map(|((ready, _), is)| is.then_some(*ready))
            .collect()
    }

    fn next_deadline(&self) -> Option<Instant> {
        let setup = match &self.power {
            Power::Setup(_, deadline) => Some(*deadline),
            _ => None,
        };
        let left = self.leaving.as_ref().map(|(_, deadline)| *deadline);
        [self.deadline, self.retry_at, setup, left]
            .into_iter()
            .flatten()
            .min()
    }

    fn on_ready(&mut self, ready: Ready) -> Option<Outcome> {
        match ready {
            Ready::Store => {
                // The paths do not matter: everything is looked at. What is queued is bounded by xenstored.
                for _ in 0..64 {
                    match self.store.next_event() {
                        Ok(Some(_)) => (),
                        Ok(None) => break,
                        Err(e) => return self.store_failed(&e.into()),
                    }
                }
                None
            }
            Ready::Signal => Some(self.hand_over()),
            Ready::Messages => {
                for line in self.messages.take() {
                    log::info!("{line}");
                }
                None
            }
            Ready::Process => self.on_process(),
            Ready::Link => self.on_link(),
            Ready::Io => {
                // What it said last comes first.
                match &self.connection {
                    Some(connection) if !connection.has_message() => self.connection_lost(None),
                    _ => None,
                }
            }
            Ready::Left => {
                self.leaving = None;
                self.settle()
            }
            Ready::Control(source) => {
                let request = self.control.on_ready(source);
                self.on_request(request?)
            }
        }
    }

    fn on_time(&mut self, now: Instant) -> Option<Outcome> {
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
        }
        match &mut self.power {
            Power::Setup(setup, deadline) if *deadline <= now => {
                setup.kill();
                self.power = Power::Off;
                let text = format!("not done after {} s", SETUP_TIMEOUT.as_secs());
                return self.fail(&tpm::Error::Setup(text).into());
            }
            _ => (),
        }
        if self.leaving.as_ref().is_some_and(|(_, at)| *at <= now) {
            log::warn!("a command of a former connection does not end");
            self.leaving = None;
            if let Some(outcome) = self.settle() {
                return Some(outcome);
            }
        }
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.deadline = None;
            return match self.stage {
                Stage::Failing => self.close_lost(),
                Stage::Leaving => self.close(),
                Stage::Closed => self.start_again(),
                _ => None,
            };
        }
        None
    }

    /// Compares xenstore with the own stage, and takes the step that follows.
    fn evaluate(&mut self) -> Option<Outcome> {
        if self.retry_at.is_some() {
            return None;
        }
        let facts = match self.facts() {
            Ok(facts) => facts,
            Err(e) => return self.store_failed(&e.into()),
        };
        if self.held_for_save && facts.online {
            self.save_given_up();
        }
        let step = match self.stopping {
            true if self.stage != Stage::Closed && facts.own.is_some() => Step::Close,
            _ => decide(self.stage, facts),
        };
        log::trace!("{:?}, {facts:?}: {step:?}", self.stage);
        let taken = self.take(facts, step).and_then(|outcome| {
            if outcome.is_none() {
                self.show_stage(facts)?;
            }
            Ok(outcome)
        });
        match taken {
            Ok(outcome) => {
                if self.retry_at.is_none() {
                    self.retry.calm();
                }
                outcome
            }
            // What xenstore did not do is no fact about the TPM.
            Err(e @ Failure::Xen(_)) => self.store_failed(&e),
            Err(e @ Failure::Node(NodeError::Xen(_))) => self.store_failed(&e),
            Err(failure) => self.fail(&failure),
        }
    }

    /// xenstore, or Xen, did not do something that it will do later. A connection that is dead does not come
    /// back: then it is the next worker's turn.
    fn store_failed(&mut self, failure: &Failure) -> Option<Outcome> {
        if failure.is_disconnect() {
            log::error!("{failure}: xenstored is gone");
            return Some(self.hand_over());
        }
        let delay = self.retry.failed();
        log::warn!("{failure}: tried again in {} ms", delay.as_millis());
        self.retry_at = Some(Instant::now() + delay);
        None
    }

    fn facts(&self) -> Result<Facts, xen::Error> {
        let state = |node: &str| match self.store.read(node) {
            Ok(value) => Ok(value.and_then(|value| value.parse().ok())),
            // Not text: a guest may write what it likes.
            Err(e) if e.kind() == io::ErrorKind::InvalidData => Ok(None),
            // In a driver domain, what is not there (any more) looks like what is not ours to read.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(None),
            Err(e) => Err(e),
        };
        let online = self.store.read(&self.paths.backend("online"))?;

        Ok(Facts {
            own: state(&self.paths.backend("state"))?,
            online: online.as_deref() == Some("1"),
            frontend: state(&self.paths.frontend("state"))?,
        })
    }

    fn take(&mut self, facts: Facts, step: Step) -> Result<Option<Outcome>, Failure> {
        match step {
            Step::Nothing => (),
            Step::Start => return self.start(),
            Step::TakeOver => return self.take_over(facts),
            // InitWait is still to be shown for a while, or the TPM is not up yet.
            Step::Connect if self.deadline.is_some() || !self.is_free() => (),
            Step::Recheck if !self.is_free() => (),
            Step::Connect | Step::Recheck => self.connect()?,
            Step::FollowClosing => self.stage = Stage::Closing,
            Step::WaitAgain => {
                self.disconnect();
                self.tried = None;
                self.resumes = false;
                self.stage = Stage::Waiting;
            }
            Step::Leave => {
                self.stage = Stage::Leaving;
                self.deadline = Some(Instant::now() + LEAVE_TIMEOUT);
            }
            Step::Close if self.stage == Stage::Failing && facts.online && !self.stopping => {
                return Ok(self.close_lost());
            }
            Step::Close => return Ok(self.close()),
            Step::Release => return Ok(Some(self.release())),
        }
        Ok(None)
    }

    fn is_up(&self) -> bool {
        matches!(self.power, Power::On(_))
    }

    /// Whether the TPM can serve a connection.
    fn is_free(&self) -> bool {
        self.is_up() && self.leaving.is_none()
    }

    /// Shows what belongs to the stage, where something else is shown: a step may have been taken when xenstore
    /// could not be written.
    fn show_stage(&mut self, facts: Facts) -> Result<(), Failure> {
        let state = match self.stage {
            Stage::New | Stage::Leaving => return Ok(()),
            Stage::Waiting => BusState::InitWait,
            Stage::Connected => BusState::Connected,
            Stage::Closing | Stage::Failing => BusState::Closing,
            Stage::Closed => BusState::Closed,
        };
        match facts.own == Some(state) {
            true => Ok(()),
            false => self.show(state),
        }
    }

    fn tpm(&mut self) -> Option<&mut Tpm> {
        match &mut self.power {
            Power::On(tpm) => Some(tpm),
            _ => None,
        }
    }

    /// Reads who it is, and what the administrator says about that.
    fn identify(&mut self) -> Result<Uuid, Failure> {
        self.paths.check_frontend(&self.store, self.id)?;
        let node = self.paths.backend("uuid");
        let uuid: Uuid = xenbus::read_as(&self.store, &node, "a uuid", |uuid| uuid.parse().ok())?;

        self.policy = self.config.policy(&uuid).clone();
        self.uuid = Some(uuid.clone());
        logger::about_uuid(&uuid);
        Ok(uuid)
    }

    /// The uuid of the guest's domain, which tells a restored guest from others.
    fn vm(&self) -> Option<String> {
        let path = self.store.read(&Paths::vm(self.id)).ok().flatten()?;
        path.strip_prefix("/vm/").map(str::to_owned)
    }

    /// Shows InitWait as soon as the state is this vTPM's to serve, and starts the TPM.
    fn start(&mut self) -> Result<Option<Outcome>, Failure> {
        self.begun = Instant::now();
        self.failed_in_this_life = false;
        let uuid = self.identify()?;
        let node = self.paths.backend("tpm-version");
        let asked = match self.store.read(&node)? {
            None => None,
            Some(_) => {
                let parse = |version: &str| version.parse().ok();
                Some(xenbus::read_as(&self.store, &node, "1.2 or 2.0", parse)?)
            }
        };
        if self.config.sandbox == Sandbox::Required && !self.lacks.is_empty() {
            let lacks = self.lacks.join(", ");
            let text = format!("sandbox = \"required\", and there is no {lacks} here");
            return Err(Failure::Connection(text));
        }
        let held = match self.hold(&uuid, asked)? {
            Some(held) => held,
            None => return Ok(None),
        };
        self.store.remove(&self.paths.error())?;
        self.store
            .write(&self.paths.backend(NODE_FEATURE), FEATURE_VALUE)?;
        // Until it is shown, all of this is done again where xenstore fails.
        self.show(BusState::InitWait)?;
        self.stage = Stage::Waiting;
        self.deadline = Some(Instant::now() + INIT_WAIT);
        self.switch_on(held)?;
        Ok(None)
    }

    /// Takes the state, and waits for it a little; `None` if the vTPM is taken away meanwhile.
    fn hold(&mut self, uuid: &Uuid, asked: Option<Version>) -> Result<Option<Held>, Failure> {
        let deadline = Instant::now() + LOCK_TIMEOUT;
        loop {
            match Held::take(&self.config, uuid, asked) {
                Err(state::Error::Locked { .. }) if Instant::now() < deadline => (),
                held => return Ok(Some(held?)),
            }
            std::thread::sleep(Duration::from_millis(50));
            let facts = self.facts()?;
            if decide(self.stage, facts) != Step::Start && self.stage == Stage::New {
                return Ok(None);
            }
        }
    }

    /// swtpm is waited for as long as the toolstack wants the vTPM to be there.
    fn give_up(&self) -> GiveUp {
        let (store, online) = (Rc::clone(&self.store), self.paths.backend("online"));
        GiveUp::when(move || {
            let online = store.read(&online);
            online.is_ok_and(|online| online.as_deref() != Some("1"))
        })
    }

    /// Starts swtpm, or swtpm_setup first.
    fn switch_on(&mut self, held: Held) -> Result<(), Failure> {
        let vm = self.vm();
        let give_up = self.give_up();
        let place = Place {
            config: &self.config,
            run: &self.run_dir,
            id: self.id,
            probe: &self.probe,
            give_up,
        };
        let path = held.state.path.display().to_string();
        let version = held.state.version;
        if !held.state.exists {
            log::info!("TPM {version}: makes the state {path}");
            let setup = Setup::start(&place, held, &self.messages)?;
            self.power = Power::Setup(setup, Instant::now() + SETUP_TIMEOUT);
            return Ok(());
        }
        let tpm = Tpm::start(
            &place,
            held,
            vm.as_deref(),
            &self.shared,
            &mut self.messages,
        )?;
        let restored = tpm.resumed;
        match restored {
            true => log::info!("TPM {version} goes on with the saved state {path}"),
            false => log::info!("TPM {version} on the state {path}"),
        }
        self.power = Power::On(Box::new(tpm));
        let us = u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.note_use();
        let uuid = self.uuid_text();
        self.control.tell(&Event::Started { uuid, us, restored });
        Ok(())
    }

    /// Notes who uses the state, for `xen-vtpmd list`.
    fn note_use(&self) {
        let Power::On(tpm) = &self.power else {
            return;
        };
        let name = self
            .store
            .read(&format!("/local/domain/{}/name", self.id.domid));
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let used = Use {
            time: crate::admin::now(),
            host: host.trim().to_owned(),
            domid: self.id.domid,
            devid: self.id.devid,
            name: name.ok().flatten().unwrap_or_default(),
        };
        if let Err(e) = Notes::note_use(tpm.state_path(), used) {
            log::warn!("who uses the TPM is not noted: {e}");
        }
    }

    fn uuid_text(&self) -> String {
        self.uuid.as_ref().map(Uuid::to_string).unwrap_or_default()
    }

    /// Goes on where a former worker stopped, if the TPM is still there. A fresh one does not take the
    /// place of the one that a running guest had, unless the administrator says so.
    fn take_over(&mut self, facts: Facts) -> Result<Option<Outcome>, Failure> {
        use BusState::{Closing, Connected, Initialised};

        let uuid = self.identify()?;
        let guest = matches!(facts.frontend, Some(Initialised | Connected | Closing));
        let place = Place {
            config: &self.config,
            run: &self.run_dir,
            id: self.id,
            probe: &self.probe,
            give_up: self.give_up(),
        };
        match Tpm::adopt(&place, &uuid, &self.shared) {
            Ok(Some(tpm)) => {
                log::info!("goes on with swtpm {}", tpm.pid());
                self.power = Power::On(Box::new(tpm));
                self.stage = match facts.own {
                    Some(Connected) => Stage::Connected,
                    Some(Closing) => Stage::Closing,
                    _ => Stage::Waiting,
                };
                self.resumes = self.stage != Stage::Waiting;
                self.store
                    .write(&self.paths.backend(NODE_FEATURE), FEATURE_VALUE)?;
                return Ok(self.evaluate());
            }
            Ok(None) => (),
            Err(e) if guest => {
                self.stage = Stage::Connected;
                return Ok(self.lost(&e.into()));
            }
            Err(e) => return Err(e.into()),
        }
        match facts.own {
            Some(Connected | Closing) if guest => {
                self.stage = Stage::Connected;
                Ok(self.lost(&Failure::Gone))
            }
            _ => self.start(),
        }
    }

    /// swtpm or swtpm_setup has ended.
    fn on_process(&mut self) -> Option<Outcome> {
        let failure = match &mut self.power {
            Power::Off => return None,
            Power::Setup(setup, _) => match setup.finish(&self.config, &mut self.messages) {
                Ok(None) => return None,
                Ok(Some(())) => {
                    let Power::Setup(setup, _) = std::mem::replace(&mut self.power, Power::Off)
                    else {
                        return None;
                    };
                    match self.switch_on(setup.into_held()) {
                        Ok(()) => return None,
                        Err(failure) => failure,
                    }
                }
                Err(e) => {
                    self.power = Power::Off;
                    e.into()
                }
            },
            Power::On(tpm) => match tpm.ended(&mut self.messages, &self.run_dir) {
                None => return None,
                Some(e) => {
                    self.power = Power::Off;
                    e.into()
                }
            },
        };
        self.fail(&failure)
    }

    /// Connects to what the guest has published, unless that was tried already.
    fn connect(&mut self) -> Result<(), Failure> {
        let params = match RingParams::read(&self.store, &self.paths) {
            Ok(params) if self.tried == Some(params) => return Ok(()),
            Ok(params) => params,
            Err(e @ NodeError::Xen(_)) => return Err(e.into()),
            Err(e) if self.stage == Stage::Waiting || self.resumes => {
                self.refuse(&e.into());
                return Ok(());
            }
            // Between two connections the guest's nodes may be anything.
            Err(e) => {
                log::debug!("{e}");
                return Ok(());
            }
        };
        let now = Instant::now();
        if let Some(at) = self.connect.not_before(now) {
            self.retry_at = Some(at);
            return Ok(());
        }
        self.connect.tried(now);
        self.disconnect();
        self.tried = Some(params);
        match self.open(params) {
            Ok(()) => {
                log::info!("connected, grant {}, port {}", params.ring_ref, params.port);
                self.shared.connections.add(1);
                self.stage = Stage::Connected;
                self.failed_in_this_life = false;
                self.remove_error();
                Ok(())
            }
            Err(failure) => {
                self.refuse(&failure);
                Ok(())
            }
        }
    }

    fn open(&mut self, params: RingParams) -> Result<(), Failure> {
        let Power::On(tpm) = &self.power else {
            return Ok(());
        };
        let opening = connection::Opening {
            config: &self.config,
            id: self.id,
            params,
            tpm,
            shared: &self.shared,
            localities: self.policy.localities,
            resumed: self.resumes,
            messages: self.messages.file(),
        };
        let (connection, lacks) = Connection::open(&opening).map_err(Failure::Connection)?;
        self.resumes = false;
        for lack in lacks {
            if !self.lacks.contains(&lack) {
                log::warn!("this kernel has no {lack}: the I/O process runs without");
                self.lacks.push(lack);
            }
        }
        self.connection = Some(connection);
        // What came before this is done once in the life of most vTPMs.
        release_memory();
        Ok(())
    }

    /// The I/O process says something.
    fn on_link(&mut self) -> Option<Outcome> {
        let message = match self.connection.as_ref()?.next() {
            Err(Errno::AGAIN) => return None,
            Ok(Some(message)) => message,
            Ok(None) | Err(_) => return self.connection_lost(None),
        };
        match message {
            Tell::Ask(Ask::Locality(locality)) => {
                let set = match self.tpm()?.client().set_locality(locality) {
                    Ok(set) => set,
                    Err(e) => return self.fail(&e.into()),
                };
                self.connection.as_ref()?.done(set);
                None
            }
            Tell::Ask(Ask::Sync) => {
                self.shared.syncs.add(1);
                let synced = self.tpm()?.sync();
                if let Err(e) = &synced {
                    log::error!("the state is not durable, and the command is abandoned: {e}");
                    self.last_error = Some(LastError::now(e.to_string()));
                }
                self.connection.as_ref()?.done(synced.is_ok());
                None
            }
            Tell::FailureMode => {
                let failure = self.failure_mode();
                self.fail(&failure)
            }
            Tell::Failed(reason) => self.connection_lost(Some(reason)),
            Tell::Connected(_) => None,
        }
    }

    /// The TPM has said that it is in failure mode: why, as far as the file system says.
    fn failure_mode(&mut self) -> Failure {
        let path = match self.tpm() {
            Some(tpm) => tpm.state_path().to_owned(),
            None => self.config.state_dir.clone(),
        };
        let space = state::free_space(&path);
        Failure::FailureMode(path.display().to_string(), space)
    }

    /// The I/O process has ended although it should not: another one follows.
    fn connection_lost(&mut self, reason: Option<String>) -> Option<Outcome> {
        let connection = self.connection.take()?;
        let how = connection.end_now();
        let reason = reason.unwrap_or(how);
        log::warn!("I/O process: {reason}");
        self.last_error = Some(LastError::now(reason));
        self.resumes = true;
        self.tried = None;
        match connection::is_under_way(&self.shared) {
            true => self.new_data_channel(),
            false => None,
        }
    }

    /// A connection that was let go has ended. If the TPM was not through with its command, nobody receives the
    /// response.
    fn settle(&mut self) -> Option<Outcome> {
        if !connection::is_under_way(&self.shared) {
            return None;
        }
        let failed = self.new_data_channel();
        self.shared.note(Entry::Free);
        failed
    }

    /// swtpm has, or may have, a response for a process that is no more.
    fn new_data_channel(&mut self) -> Option<Outcome> {
        let give_up = self.give_up();
        let Power::On(tpm) = &mut self.power else {
            return None;
        };
        match tpm.reconnect(&self.run_dir, swtpm::client::TIMEOUT, give_up) {
            Ok(()) => None,
            Err(e) => self.fail(&e.into()),
        }
    }

    /// A request of the manager's.
    fn on_request(&mut self, request: (control::Source, Request)) -> Option<Outcome> {
        let (client, request) = request;
        match request {
            Request::Status => {
                let status = self.status();
                self.control.respond(client, &status);
            }
            Request::Stop => {
                self.stopping = true;
                self.control.stop_asked_by(client);
            }
            Request::Backup => {
                let synced = match self.tpm() {
                    Some(tpm) => tpm.sync().map_err(|e| e.to_string()),
                    None => Ok(()),
                };
                match synced {
                    Ok(()) => self.control.respond(client, &serde_json::json!({})),
                    Err(e) => self
                        .control
                        .respond(client, &serde_json::json!({ "error": e })),
                }
            }
        }
        None
    }

    /// What `xen-vtpmd status` shows of it.
    fn status(&self) -> status::Vtpm {
        let tpm = match &self.power {
            Power::On(tpm) => Some(tpm),
            _ => None,
        };
        let us = |used: Duration| used.as_secs_f64() * 1e6;
        let of_io = self.connection.as_ref().and_then(|io| used_by(io.pid()));
        let state = match (self.stage, &self.power) {
            (Stage::Waiting, Power::Setup(..)) => "starting".into(),
            (stage, _) => format!("{stage:?}").to_lowercase(),
        };
        status::Vtpm {
            domid: self.id.domid,
            devid: self.id.devid,
            uuid: self.uuid.as_ref().map(Uuid::to_string),
            version: tpm.map(|tpm| tpm.version().to_string()),
            state,
            pid: tpm.map(|tpm| tpm.pid()),
            own_us: us(crate::counters::used_by_daemon() + of_io.unwrap_or_default()),
            swtpm_used_us: tpm.and_then(|tpm| used_by(tpm.pid())).map(us),
            sandbox_lacks: self.lacks.clone(),
            last_error: self.last_error.clone(),
            ..status::Vtpm::default()
        }
        .count(&self.shared.counters())
    }
}
