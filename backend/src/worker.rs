// SPDX-License-Identifier: GPL-2.0

//! The worker, `xen-vtpmd serve`: everything for one vTPM, in plain blocking code. It follows the
//! vTPM's nodes, has its state, its swtpm and its I/O process, and ends with the vTPM.
//!
//! Whatever blocks here holds up one guest. Should the worker end for any reason, swtpm goes on, and the next
//! worker connects to it.

pub mod ask;
mod confine;
mod connection;
mod control;
mod create;
mod end;
mod failure;
mod hold;
mod measured;
pub mod messages;
mod migration;
mod requests;
mod serving;
mod start;
pub mod tpm;
mod wait;

use std::fs::File;
use std::io;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use clap::Args;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::broker;
use crate::config::{Config, Policy, Uuid};
use crate::lifecycle::{decide, Facts, Stage, Step};
use crate::logger;
use crate::measure::Boot;
use crate::record::RunDir;
use crate::status::LastError;
use crate::storm::Backoff;
use crate::sys::shared::Shared;
use crate::xen::{self, Store};
use crate::xenbus::{self, BusState, Id, NodeError, Paths, RingParams};

use connection::Connection;
use control::Server;
pub use create::{create_state, CreateError};
pub use failure::Failure;
use hold::Blocked;
use messages::Messages;
use tpm::{Setup, Tpm};

/// How long swtpm_setup may take, on the slowest of hosts.
const SETUP_TIMEOUT: Duration = Duration::from_secs(600);

/// How long the broker and the I/O process of a worker that was killed have to end.
const FORMER_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a guest has to close when the toolstack takes its vTPM away. A guest that is being
/// destroyed never does.
const LEAVE_TIMEOUT: Duration = Duration::from_millis(500);

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

/// The TPM's power.
#[derive(Debug)]
enum Power {
    Off,
    /// Another vTPM has the state still.
    Blocked(Blocked),
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
    /// What it may not do itself any more; `None` until it is confined.
    broker: Option<broker::Client>,
    /// A former connection whose command the TPM is still busy with, and until when it is waited for.
    leaving: Option<(Connection, Instant)>,
    power: Power,
    id: Id,
    paths: Paths,
    own_domid: u16,
    store: Rc<Store>,
    config: Config,
    messages: Messages,
    shared: Shared,
    control: Server,
    signals: UnixStream,
    stage: Stage,
    /// Whose state it has, and what the administrator says about it; once that is known.
    uuid: Option<Uuid>,
    policy: Policy,
    /// What the guest boots, for the start of its TPM.
    boot: Boot,
    /// What the kernel lacks for the sandbox.
    lacks: Vec<String>,
    /// The guest boots, and was not saved before.
    boots: bool,
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
    /// The TPM was sent to another host: when to look whether the guest goes on here.
    departed: Option<Instant>,
    /// By the last look it does not.
    suspended: bool,
    last_error: Option<LastError>,
    failed_in_this_life: bool,
    /// The manager wants it to end.
    stopping: bool,
    begun: Instant,
    run_dir: RunDir,
    lock: File,
}

impl Worker {
    /// Takes the right to serve the vTPM; `None` if another worker has it.
    fn new(config: Config, id: Id) -> Result<Option<Self>, Failure> {
        let io = |what| move |e| Failure::Io(what, e);
        let run_dir = RunDir::make(&config.run_dir, id).map_err(io("run directory"))?;
        let deadline = Instant::now() + FORMER_TIMEOUT;
        let lock = loop {
            match run_dir.lock().map_err(io("lock"))? {
                Some(lock) => break lock,
                None if deadline <= Instant::now() => return Ok(None),
                None => std::thread::sleep(Duration::from_millis(2)),
            }
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
        let revivals = u32::try_from(shared.revivals.get()).unwrap_or(u32::MAX);
        let messages = Messages::new(run_dir.messages().map_err(io("messages"))?);
        let store = Rc::new(Store::open()?);
        let own_domid = xenbus::own_domid(&store)?;
        let paths = Paths::new(own_domid, id);
        store.watch(&paths.backend_folder(), "backend")?;
        store.watch(&paths.frontend("state"), "frontend")?;

        Ok(Some(Self {
            connection: None,
            broker: None,
            leaving: None,
            power: Power::Off,
            id,
            paths,
            own_domid,
            store,
            lacks: match config.first_uid {
                Some(_) => confine::lacks(),
                None => Vec::new(),
            },
            config,
            messages,
            shared,
            control,
            signals,
            stage: Stage::New,
            uuid: None,
            policy: Policy::default(),
            boot: Boot::default(),
            boots: false,
            resumes: false,
            tried: None,
            deadline: None,
            retry_at: None,
            retry: Backoff::new(RETRY),
            connect: Backoff::new(RETRY),
            revive: Backoff::resumed(REVIVE, revivals),
            held_for_save: false,
            departed: None,
            suspended: false,
            last_error: None,
            failed_in_this_life: false,
            stopping: false,
            begun: Instant::now(),
            run_dir,
            lock,
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
            Step::Connect if self.deadline.is_some() || !self.is_free() => self.guest_waits(),
            // A suspended guest sends nothing, and what a connection takes would be downtime.
            Step::Recheck if !self.is_free() || self.suspended => (),
            Step::Connect | Step::Recheck => return self.connect(),
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
}
