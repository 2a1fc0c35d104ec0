// SPDX-License-Identifier: GPL-2.0

//! One vTPM: carries out what [`lifecycle`](crate::lifecycle) decides, and passes commands between
//! the guest's page and swtpm.

use std::io;
use std::time::{Duration, Instant};

use xen_tpm_protocol::layout::{FEATURE_VALUE, NODE_FEATURE};

use crate::config::Config;
use crate::connection::{self, Connection};
use crate::lifecycle::{decide, Facts, Stage, Step};
use crate::machine::{self, Claims, End, Machine};
use crate::swtpm::{self, Event};
use crate::watch::{Registrar, Watched};
use crate::xen::{self, Store};
use crate::xenbus::{self, BusState, Id, NodeError, Particulars, Paths};

/// How long InitWait is shown at least: libxl waits for this very state, and reads it only some time
/// after it was written.
const INIT_WAIT: Duration = Duration::from_millis(300);

/// How long a guest has to follow when its TPM is lost.
const FAIL_LIMIT: Duration = Duration::from_secs(2);

/// How long a guest has to close when the toolstack takes its vTPM away. A guest that is being
/// destroyed never does.
const LEAVE_LIMIT: Duration = Duration::from_millis(500);

/// The highest locality there is.
const MAX_LOCALITY: u8 = 4;

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
    /// The administrator's decisions.
    pub config: Config,
    /// Who has which state.
    pub claims: Claims,
}

/// One vTPM.
#[derive(Debug)]
pub struct Vtpm {
    id: Id,
    paths: Paths,
    stage: Stage,
    registrar: Registrar,
    machine: Machine,
    connection: Option<Connection>,
    /// The particulars of the last attempt to connect, so that it is not repeated.
    tried: Option<Particulars>,
    /// When the stage ends that ends by time: showing InitWait, failing, leaving.
    deadline: Option<Instant>,
}

impl Vtpm {
    /// A vTPM that was found in xenstore.
    pub fn new(
        host: &Host,
        own_domid: u16,
        id: Id,
        registrar: Registrar,
    ) -> Result<Self, xen::Error> {
        let paths = Paths::new(own_domid, id);
        host.store
            .watch(&paths.frontend("state"), &id.to_string())?;

        Ok(Self {
            id,
            paths,
            stage: Stage::New,
            machine: Machine::new(id, registrar.clone()),
            registrar,
            connection: None,
            tried: None,
            deadline: None,
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
        let node = self.paths.frontend("state");
        if let Err(e) = host.store.unwatch(&node, &self.id.to_string()) {
            log::debug!("vtpm {}: {e}", self.id);
        }
        log::debug!("vtpm {}: gone", self.id);
    }

    /// When [`on_deadline`](Self::on_deadline) wants to be called.
    pub fn deadline(&self) -> Option<Instant> {
        [self.deadline, self.machine.deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Goes on after something got readable: what the code says that it was registered with.
    pub fn on_ready(&mut self, host: &mut Host, code: u8) {
        let done = match code {
            connection::GUEST => self.on_guest(host),
            machine::SETUP => {
                let done = self.machine.on_setup(&mut host.claims);
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
        if let Err(e) = self.machine.on_deadline(now) {
            self.fail(host, &e.into());
        }
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.deadline = None;
            match self.stage {
                Stage::Failing | Stage::Leaving => self.close(host),
                _ => self.evaluate(host),
            }
        }
    }

    /// Compares xenstore with the own stage, and takes the step that follows.
    pub fn evaluate(&mut self, host: &mut Host) {
        let done = self.facts(host).map_err(Failure::from).and_then(|facts| {
            let step = decide(self.stage, facts);
            log::trace!("vtpm {}: {:?}, {facts:?}: {step:?}", self.id, self.stage);
            self.take(host, step)
        });
        if let Err(failure) = done {
            self.fail(host, &failure);
        }
    }

    /// Ends the vTPM because the daemon ends.
    pub fn stop(&mut self, host: &mut Host) {
        if self.stage != Stage::Closed {
            self.close(host);
        }
    }

    fn facts(&self, host: &Host) -> Result<Facts, xen::Error> {
        let state = |node: &str| match host.store.read(node) {
            Ok(value) => Ok(value.and_then(|value| value.parse().ok())),
            // Not text: a guest may write what it likes.
            Err(e) if e.kind() == io::ErrorKind::InvalidData => Ok(None),
            Err(e) => Err(e),
        };
        let online = host.store.read(&self.paths.backend("online"))?;

        Ok(Facts {
            own: state(&self.paths.backend("state"))?,
            online: online.as_deref() == Some("1"),
            frontend: state(&self.paths.frontend("state"))?,
        })
    }

    fn take(&mut self, host: &mut Host, step: Step) -> Result<(), Failure> {
        match step {
            Step::Nothing if self.stage == Stage::Starting => self.start(host),
            Step::Nothing => Ok(()),
            Step::Start => self.start(host),
            // InitWait is still to be shown for a while.
            Step::Connect if self.deadline.is_some() => Ok(()),
            Step::Connect | Step::Recheck => self.connect(host),
            Step::FollowClosing => {
                self.stage = Stage::Closing;
                self.show(host, BusState::Closing)
            }
            Step::WaitAgain => {
                self.disconnect();
                self.stage = Stage::Waiting;
                self.show(host, BusState::InitWait)
            }
            Step::Leave => {
                self.stage = Stage::Leaving;
                self.deadline = Some(Instant::now() + LEAVE_LIMIT);
                Ok(())
            }
            Step::Close => {
                self.close(host);
                Ok(())
            }
            Step::Release => {
                self.release(host);
                Ok(())
            }
            Step::Restart => {
                self.release(host);
                self.start(host)
            }
        }
    }

    /// Starts the TPM, or goes on waiting for what it has to wait for.
    fn start(&mut self, host: &mut Host) -> Result<(), Failure> {
        self.stage = Stage::Starting;
        if self.is_running() {
            return Ok(());
        }
        self.paths.check_frontend(&host.store, self.id)?;
        let node = self.paths.backend("uuid");
        let uuid = xenbus::read_as(&host.store, &node, "a uuid", |uuid| uuid.parse().ok())?;
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

    /// The TPM takes commands: tells the toolstack and the guest.
    fn up(&mut self, host: &mut Host) -> Result<(), Failure> {
        let Facts { own, frontend, .. } = self.facts(host)?;
        let published = matches!(frontend, Some(BusState::Initialised | BusState::Connected));

        host.store.remove(&self.paths.error())?;
        host.store
            .write(&self.paths.backend(NODE_FEATURE), FEATURE_VALUE)?;
        self.stage = Stage::Waiting;
        if own == Some(BusState::Connected) && published {
            log::info!("vtpm {}: up, takes over a guest", self.id);
        } else {
            log::info!("vtpm {}: up", self.id);
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
            Err(e) if self.stage == Stage::Waiting => {
                self.refuse(host, &e.into());
                return Ok(());
            }
            // Between two connections the guest's nodes may be anything.
            Err(e) => {
                log::debug!("vtpm {}: {e}", self.id);
                return Ok(());
            }
        };
        let Particulars { ring_ref, port } = particulars;

        self.disconnect();
        self.tried = Some(particulars);
        match Connection::open(self.id, particulars, &self.registrar) {
            Ok(connection) => {
                log::info!("vtpm {}: connected, grant {ring_ref}, port {port}", self.id);
                self.connection = Some(connection);
                self.stage = Stage::Connected;
                host.store.remove(&self.paths.error())?;
                self.show(host, BusState::Connected)?;
                self.pump(host)
            }
            Err(e) => {
                self.refuse(host, &e.into());
                Ok(())
            }
        }
    }

    /// The guest has sent an event, perhaps.
    fn on_guest(&mut self, host: &mut Host) -> Result<(), Failure> {
        match self.connection.as_ref().map(Connection::take_event) {
            Some(Ok(true)) => self.pump(host),
            Some(Err(e)) => {
                self.refuse(host, &e.into());
                Ok(())
            }
            Some(Ok(false)) | None => Ok(()),
        }
    }

    /// swtpm has something to say.
    fn on_swtpm(&mut self, host: &mut Host, source: swtpm::Source) -> Result<(), Failure> {
        let Some(swtpm) = self.machine.swtpm() else {
            return Ok(());
        };
        let bad_locality = swtpm.version().bad_locality();
        let (pid, ending) = (swtpm.id(), swtpm.is_ending());

        let answer = match swtpm.on_ready(source) {
            Ok(None) => return Ok(()),
            Ok(Some(Event::Up)) => return self.up(host),
            Ok(Some(Event::Answer(answer))) => answer,
            Ok(Some(Event::LocalityRefused(_))) => &bad_locality,
            Ok(Some(Event::Undone)) => return self.pump(host),
            Err(e) => {
                let expected = ending && matches!(e, swtpm::Error::Ended(_));
                if let swtpm::Error::Ended(status) = &e {
                    log::info!("vtpm {}: swtpm {pid} ended ({status})", self.id);
                    self.machine.ended(&mut host.claims);
                }
                return if expected { Ok(()) } else { Err(e.into()) };
            }
        };
        let delivered = match &mut self.connection {
            Some(connection) => connection.answer(answer),
            None => Ok(false),
        };
        match (delivered, self.machine.swtpm()) {
            (Ok(false), Some(swtpm)) => swtpm.undo()?,
            (Ok(_), _) => (),
            (Err(e), _) => self.refuse(host, &e.into()),
        }
        self.pump(host)
    }

    /// Looks at the page once, and passes on what is there.
    fn pump(&mut self, host: &mut Host) -> Result<(), Failure> {
        let (Some(connection), Some(swtpm)) = (&mut self.connection, self.machine.swtpm()) else {
            return Ok(());
        };
        let done = match connection.look(swtpm.is_free()) {
            Ok(Some((locality, command))) if locality <= MAX_LOCALITY => {
                return Ok(swtpm.submit(locality, command)?);
            }
            Ok(Some((locality, _))) => {
                log::debug!("vtpm {}: locality {locality} refused", self.id);
                let answer = swtpm.version().bad_locality();
                connection.answer(&answer).map(drop)
            }
            Ok(None) => Ok(()),
            Err(e) => Err(e),
        };
        if let Err(e) = done {
            self.refuse(host, &e.into());
        }
        Ok(())
    }

    /// The connection to the guest cannot be. The TPM stays, for a better one.
    fn refuse(&mut self, host: &Host, failure: &Failure) {
        self.report(host, failure);
        self.connection = None;
        self.stage = Stage::Closing;
        self.show_or_log(host, BusState::Closing);
    }

    /// The TPM cannot be. A guest that is connected is told to close first.
    fn fail(&mut self, host: &mut Host, failure: &Failure) {
        if self.stage == Stage::Closed {
            log::warn!("vtpm {}: {failure}", self.id);
            return self.machine.end(&mut host.claims, End::Off);
        }
        self.report(host, failure);
        if self.connection.is_none() {
            return self.close(host);
        }
        log::error!(
            "vtpm {}: TPM lost, closed until the guest restarts",
            self.id
        );
        self.disconnect();
        self.machine.end(&mut host.claims, End::Off);
        self.stage = Stage::Failing;
        self.deadline = Some(Instant::now() + FAIL_LIMIT);
        self.show_or_log(host, BusState::Closing);
    }

    /// Leaves the reason of a failure in the log, and where xenbus tools look for it.
    fn report(&self, host: &Host, failure: &Failure) {
        log::error!("vtpm {}: {failure}", self.id);
        if let Err(e) = host.store.write(&self.paths.error(), &failure.to_string()) {
            log::warn!("vtpm {}: {e}", self.id);
        }
    }

    fn disconnect(&mut self) {
        self.connection = None;
        self.tried = None;
    }

    /// Lets go of everything and shows Closed.
    fn close(&mut self, host: &mut Host) {
        self.release(host);
        self.show_or_log(host, BusState::Closed);
    }

    /// Lets go of everything.
    fn release(&mut self, host: &mut Host) {
        self.disconnect();
        self.deadline = None;
        self.stage = Stage::Closed;
        self.machine.end(&mut host.claims, End::Off);
    }

    /// Shows a state to the guest and the toolstack.
    fn show(&self, host: &Host, state: BusState) -> Result<(), Failure> {
        let node = self.paths.backend("state");
        log::debug!("vtpm {}: {state:?}", self.id);

        // Not into a folder that was removed meanwhile: that would make half a vTPM.
        match host.store.read(&node)? {
            Some(_) => Ok(host.store.write(&node, &state.to_string())?),
            None => Ok(()),
        }
    }

    fn show_or_log(&self, host: &Host, state: BusState) {
        if let Err(e) = self.show(host, state) {
            log::warn!("vtpm {}: {e}", self.id);
        }
    }
}
