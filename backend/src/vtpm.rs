// SPDX-License-Identifier: GPL-2.0

//! One vTPM's life: carries out what [`lifecycle`](crate::lifecycle) decides.

mod end;
mod serve;

use std::io;
use std::time::{Duration, Instant};

use log::Level;
use xen_tpm_protocol::layout::{FEATURE_VALUE, NODE_FEATURE};

use crate::config::{Config, Policy, Uuid};
use crate::connection::{self, Connection};
use crate::counters::{used_by, Counters};
use crate::lifecycle::{decide, Facts, Stage, Step};
use crate::logger::Limited;
use crate::machine::{self, Claims, Machine};
use crate::saving::Saving;
use crate::status::{self, LastError};
use crate::storm::Storm;
use crate::swtpm;
use crate::watch::{Registrar, Watched};
use crate::xen::{self, Store};
use crate::xenbus::{self, BusState, Id, NodeError, Particulars, Paths};

/// How long InitWait is shown at least: libxl waits for this very state, and reads it only some time
/// after it was written.
const INIT_WAIT: Duration = Duration::from_millis(300);

/// How long the TPM of a new vTPM may take. libxl gives up after ten seconds; before that there is to be
/// a reason.
const START_LIMIT: Duration = Duration::from_secs(9);

/// How long a guest has to follow when its TPM is lost.
const FAIL_LIMIT: Duration = Duration::from_secs(2);

/// How long a TPM that died is not started again: a guest that kills its TPM is not to keep us busy.
const REVIVE_PAUSE: Duration = Duration::from_secs(1);

/// How long Closed is shown in a driver domain before the vTPM's folder goes: libxl, which waits for this very
/// state, takes a folder that is gone when it looks for a failure.
const CLOSED_SHOWN: Duration = Duration::from_secs(1);

/// How long a guest has to close when the toolstack takes its vTPM away. A guest that is being
/// destroyed never does.
const LEAVE_LIMIT: Duration = Duration::from_millis(500);

/// Why a vTPM, or a guest's connection to it, cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The toolstack's or the guest's nodes are wrong.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// Xen did not do it.
    #[error(transparent)]
    Xen(#[from] xen::Error),
    /// There is no connection to the guest.
    #[error(transparent)]
    Connection(#[from] connection::Error),
    /// There is no TPM.
    #[error(transparent)]
    Machine(#[from] machine::Error),
    /// The toolstack waits no longer.
    #[error("no TPM after {} s, and the toolstack waits for 10 s: try again, state that is being made is finished meanwhile", START_LIMIT.as_secs())]
    Slow,
    /// The TPM of a guest that is running has ended.
    #[error("the TPM ended while no daemon ran")]
    Gone,
}

impl From<swtpm::Error> for Failure {
    fn from(e: swtpm::Error) -> Self {
        machine::Error::from(e).into()
    }
}

/// What all vTPMs have in common.
#[derive(Debug)]
pub struct Host {
    /// The connection to xenstored.
    pub store: Watched<Store>,
    /// The own domain.
    pub own_domid: u16,
    /// The administrator's decisions.
    pub config: Config,
    /// Who has which state.
    pub claims: Claims,
    /// The daemon hands over to the next one: no new command is taken.
    pub leaving: bool,
}

/// One vTPM.
#[derive(Debug)]
pub struct Vtpm {
    id: Id,
    paths: Paths,
    stage: Stage,
    registrar: Registrar,
    machine: Machine,
    /// Whose state it has, and what the administrator says about it; once that is known.
    uuid: Option<Uuid>,
    policy: Policy,
    /// The TPM that is coming up was left by a former daemon.
    taken_over: bool,
    /// The guest's page, too, was a former daemon's.
    resumes: bool,
    connection: Option<Connection>,
    /// The particulars of the last attempt to connect, so that it is not repeated.
    tried: Option<Particulars>,
    /// When the stage ends that ends by time: starting, showing InitWait, failing, leaving, and being
    /// closed if the TPM is to come back, or the folder to go.
    deadline: Option<Instant>,
    /// When the guest, which sent events for nothing, can send the next.
    unmask_at: Option<Instant>,
    storm: Storm,
    saving: Saving,
    counters: Counters,
    last_error: Option<LastError>,
    /// For what the guest can cause.
    limited: Limited,
}

impl Vtpm {
    /// A vTPM that was found in xenstore.
    pub fn new(host: &Host, id: Id, registrar: Registrar) -> Result<Self, xen::Error> {
        let paths = Paths::new(host.own_domid, id);
        host.store
            .watch(&paths.frontend("state"), &id.to_string())?;
        if let Some((node, token)) = save_watch(host, id) {
            host.store.watch(&node, &token)?;
        }

        Ok(Self {
            id,
            paths,
            stage: Stage::New,
            machine: Machine::new(id, registrar.clone()),
            registrar,
            uuid: None,
            policy: Policy::default(),
            taken_over: false,
            resumes: false,
            connection: None,
            tried: None,
            deadline: None,
            unmask_at: None,
            storm: Storm::default(),
            saving: Saving::new(id.domid),
            counters: Counters::default(),
            last_error: None,
            limited: Limited::default(),
        })
    }

    /// Whether it has a process.
    pub fn is_running(&self) -> bool {
        self.machine.is_running()
    }

    /// Whether it waits for another to give up its state, or for its own former process to end.
    pub fn is_waiting(&self) -> bool {
        !self.is_running() && matches!(self.stage, Stage::Starting | Stage::Closed)
    }

    /// Whether it can be forgotten.
    pub fn is_gone(&self, host: &Host) -> bool {
        self.stage == Stage::Closed
            && !self.is_running()
            && matches!(host.store.read(&self.paths.backend("state")), Ok(None))
    }

    /// Takes back what [`new`](Self::new) asked xenstored for.
    pub fn forget(self, host: &Host) {
        let state = (self.paths.frontend("state"), self.id.to_string());
        for (node, token) in [Some(state), save_watch(host, self.id)].iter().flatten() {
            if let Err(e) = host.store.unwatch(node, token) {
                log::debug!("vtpm {}: {e}", self.id);
            }
        }
        log::debug!("vtpm {}: gone", self.id);
    }

    /// When [`on_deadline`](Self::on_deadline) wants to be called.
    pub fn deadline(&self) -> Option<Instant> {
        [
            self.deadline,
            self.unmask_at,
            self.saving.deadline(),
            self.machine.deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Goes on after something got readable: what the code says that it was registered with.
    pub fn on_ready(&mut self, host: &mut Host, code: u8) {
        let done = match code {
            connection::GUEST => self.on_guest(host),
            machine::SETUP => {
                let done = self.machine.on_setup(&mut host.claims, &host.config);
                done.map_err(Failure::from)
            }
            code => match swtpm::Source::from_code(code) {
                Some(source) => self.on_swtpm(host, source),
                None => Ok(()),
            },
        };
        if let Err(failure) = done {
            self.fail(host, &failure);
        }
    }

    /// Goes on after [`deadline`](Self::deadline) has passed.
    pub fn on_deadline(&mut self, host: &mut Host, now: Instant) {
        self.saving.look(now);
        if let Err(e) = self.machine.on_deadline(now) {
            self.fail(host, &e.into());
        }
        if self.unmask_at.is_some_and(|time| time <= now) {
            self.unmask(host);
        }
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.deadline = None;
            match self.stage {
                Stage::Starting => self.fail(host, &Failure::Slow),
                Stage::Failing => self.close_lost(host),
                Stage::Leaving => self.close(host),
                Stage::Closed => self.after_closed(host),
                _ => self.evaluate(host),
            }
        }
    }

    /// The node changed by which a toolstack asks the guest to end, or to be saved. The guest can write
    /// it as well.
    pub fn on_save_hint(&mut self) {
        self.saving.hint();
    }

    /// Compares xenstore with the own stage, and takes the step that follows.
    pub fn evaluate(&mut self, host: &mut Host) {
        let done = self.facts(host).map_err(Failure::from).and_then(|facts| {
            let step = decide(self.stage, facts);
            log::trace!("vtpm {}: {:?}, {facts:?}: {step:?}", self.id, self.stage);
            self.take(host, facts, step)
        });
        if let Err(failure) = done {
            self.fail(host, &failure);
        }
    }

    /// What `xen-vtpmd status` shows of it.
    pub fn status(&mut self) -> status::Vtpm {
        let swtpm = self.machine.swtpm();
        let used = swtpm.as_ref().and_then(|swtpm| used_by(swtpm.id()));
        status::Vtpm {
            domid: self.id.domid,
            devid: self.id.devid,
            uuid: self.uuid.as_ref().map(Uuid::to_string),
            version: swtpm.as_ref().map(|swtpm| swtpm.version().to_string()),
            state: format!("{:?}", self.stage).to_lowercase(),
            pid: swtpm.map(|swtpm| swtpm.id()),
            swtpm_used_us: used.map(|used| used.as_secs_f64() * 1e6),
            last_error: self.last_error.clone(),
            ..status::Vtpm::default()
        }
        .count(&self.counters)
    }

    fn facts(&self, host: &Host) -> Result<Facts, xen::Error> {
        let state = |node: &str| match host.store.read(node) {
            Ok(value) => Ok(value.and_then(|value| value.parse().ok())),
            // Not text: a guest may write what it likes.
            Err(e) if e.kind() == io::ErrorKind::InvalidData => Ok(None),
            // In a driver domain, what is not there (any more) looks like what is not ours to read.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(None),
            Err(e) => Err(e),
        };
        let online = host.store.read(&self.paths.backend("online"))?;

        Ok(Facts {
            own: state(&self.paths.backend("state"))?,
            online: online.as_deref() == Some("1"),
            frontend: state(&self.paths.frontend("state"))?,
        })
    }

    fn take(&mut self, host: &mut Host, facts: Facts, step: Step) -> Result<(), Failure> {
        match step {
            Step::Nothing if self.stage == Stage::Starting => self.start(host)?,
            Step::Nothing => (),
            Step::Start => {
                self.deadline = Some(Instant::now() + START_LIMIT);
                self.start(host)?;
            }
            Step::TakeOver => self.take_over(host, facts)?,
            // InitWait is still to be shown for a while.
            Step::Connect if self.deadline.is_some() => (),
            Step::Connect | Step::Recheck => self.connect(host)?,
            Step::FollowClosing => {
                self.stage = Stage::Closing;
                self.show(host, BusState::Closing)?;
            }
            Step::WaitAgain => {
                self.disconnect();
                self.resumes = false;
                self.stage = Stage::Waiting;
                self.show(host, BusState::InitWait)?;
            }
            Step::Leave => {
                self.stage = Stage::Leaving;
                self.deadline = Some(Instant::now() + LEAVE_LIMIT);
            }
            Step::Close if self.stage == Stage::Failing && facts.online => self.close_lost(host),
            Step::Close => self.close(host),
            Step::Release => self.release(host),
            Step::Restart => {
                self.release(host);
                self.deadline = Some(Instant::now() + START_LIMIT);
                self.start(host)?;
            }
        }
        // In a driver domain nobody else removes what the toolstack made there.
        if self.stage == Stage::Closed && !facts.online && host.own_domid != 0 {
            self.deadline
                .get_or_insert_with(|| Instant::now() + CLOSED_SHOWN);
        }
        Ok(())
    }

    /// Reads who it is, and what the administrator says about that.
    fn identify(&mut self, host: &Host) -> Result<Uuid, Failure> {
        self.paths.check_frontend(&host.store, self.id)?;
        let node = self.paths.backend("uuid");
        let uuid: Uuid = xenbus::read_as(&host.store, &node, "a uuid", |uuid| uuid.parse().ok())?;

        self.policy = host.config.policy(&uuid).clone();
        self.uuid = Some(uuid.clone());
        Ok(uuid)
    }

    /// Starts the TPM, or goes on waiting for what it has to wait for.
    fn start(&mut self, host: &mut Host) -> Result<(), Failure> {
        self.stage = Stage::Starting;
        if self.is_running() {
            return Ok(());
        }
        let uuid = self.identify(host)?;
        let node = self.paths.backend("tpm-version");
        let asked = match host.store.read(&node)? {
            None => None,
            Some(_) => {
                let parse = |version: &str| version.parse().ok();
                Some(xenbus::read_as(&host.store, &node, "1.2 or 2.0", parse)?)
            }
        };

        Ok(self
            .machine
            .start(&mut host.claims, &host.config, uuid, asked)?)
    }

    /// Goes on where a former daemon stopped, if the TPM is still there. A fresh one does not take the
    /// place of the one that a running guest had, unless the administrator says so.
    fn take_over(&mut self, host: &mut Host, facts: Facts) -> Result<(), Failure> {
        use BusState::{Closed, Closing, Connected, Initialised};

        let uuid = self.identify(host)?;
        let guest = matches!(facts.frontend, Some(Initialised | Connected | Closing));
        self.stage = Stage::Starting;
        if self
            .machine
            .take_over(&mut host.claims, &host.config, &uuid)?
        {
            self.taken_over = true;
            return Ok(());
        }
        match facts.own {
            Some(Connected | Closing) if guest => {
                self.lost(host, &Failure::Gone);
                Ok(())
            }
            Some(Closed) => {
                log::warn!("vtpm {}: was closed by a former daemon", self.id);
                self.close_lost(host);
                Ok(())
            }
            _ => self.start(host),
        }
    }

    /// The TPM takes commands: tells the toolstack and the guest.
    fn up(&mut self, host: &mut Host) -> Result<(), Failure> {
        let own = self.facts(host)?.own;

        host.store.remove(&self.paths.error())?;
        host.store
            .write(&self.paths.backend(NODE_FEATURE), FEATURE_VALUE)?;
        self.deadline = None;
        self.stage = Stage::Waiting;
        if std::mem::take(&mut self.taken_over) {
            log::info!("vtpm {}: taken over", self.id);
            match own {
                Some(BusState::Connected) => self.stage = Stage::Connected,
                Some(BusState::Closing) => self.stage = Stage::Closing,
                _ => (),
            }
            self.resumes = self.stage != Stage::Waiting;
        } else {
            self.say(Level::Info, format_args!("up"));
            self.deadline = Some(Instant::now() + INIT_WAIT);
            self.show(host, BusState::InitWait)?;
        }
        self.evaluate(host);
        Ok(())
    }

    /// Connects to what the guest has published, unless that was tried already.
    fn connect(&mut self, host: &mut Host) -> Result<(), Failure> {
        let particulars = match Particulars::read(&host.store, &self.paths) {
            Ok(particulars) if self.tried == Some(particulars) => return Ok(()),
            Ok(particulars) => particulars,
            Err(e) if self.stage == Stage::Waiting || self.resumes => {
                self.refuse(host, &e.into());
                return Ok(());
            }
            // Between two connections the guest's nodes may be anything.
            Err(e) => {
                log::debug!("vtpm {}: {e}", self.id);
                return Ok(());
            }
        };

        self.disconnect();
        self.tried = Some(particulars);
        match self.open(particulars) {
            Ok(()) => {
                host.store.remove(&self.paths.error())?;
                self.show(host, BusState::Connected)?;
                self.pump(host, None).map(drop)
            }
            Err(failure) => {
                self.refuse(host, &failure);
                Ok(())
            }
        }
    }

    fn open(&mut self, particulars: Particulars) -> Result<(), Failure> {
        let Particulars { ring_ref, port } = particulars;
        let mut connection = Connection::open(self.id, particulars, &self.registrar)?;

        if std::mem::take(&mut self.resumes) {
            let interrupted = self
                .machine
                .swtpm()
                .is_some_and(|tpm| tpm.was_interrupted());
            connection.resume(interrupted)?;
        }
        self.say(
            Level::Info,
            format_args!("connected, grant {ring_ref}, port {port}"),
        );
        self.connection = Some(connection);
        self.counters.connections += 1;
        self.stage = Stage::Connected;
        Ok(())
    }

    /// Logs what the guest can cause.
    fn say(&mut self, level: Level, line: std::fmt::Arguments<'_>) {
        self.limited.log(level, self.id, line);
    }
}

/// The watch for [`Vtpm::on_save_hint`]. Dom0 sees it, and saves guests; a driver domain does neither.
fn save_watch(host: &Host, id: Id) -> Option<(String, String)> {
    (host.own_domid == 0).then(|| (xenbus::shutdown_node(id), xenbus::save_token(id)))
}
