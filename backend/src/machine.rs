// SPDX-License-Identifier: GPL-2.0

//! The process behind a vTPM: swtpm, or first swtpm_setup where there is no state yet. And who has
//! which state: two vTPMs of one uuid never run at a time.

use std::collections::HashMap;
use std::io;
use std::time::Instant;

use crate::config::{Config, Uuid};
use crate::record::{self, Found};
use crate::state::{self, State};
use crate::swtpm::{self, Setup, SetupError, Swtpm, Version};
use crate::watch::{Registrar, Watched};
use crate::xenbus::Id;

/// Why there is no TPM.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// swtpm did not do it.
    #[error(transparent)]
    Swtpm(#[from] swtpm::Error),
    /// The state is not what it should be.
    #[error(transparent)]
    State(#[from] state::Error),
    /// The state could not be made.
    #[error("making the state of a new TPM: {0}")]
    Setup(#[from] SetupError),
    /// A process could not be started, waited for or ended.
    #[error("process: {0}")]
    Process(#[from] io::Error),
    /// Another vTPM has the state.
    #[error("uuid {0} is in use by vtpm {1}: two vTPMs cannot have one state")]
    InUse(Uuid, String),
}

/// Who has which state.
#[derive(Debug, Default)]
pub struct Claims(HashMap<Uuid, Claim>);

impl Claims {
    /// Whether somebody has it.
    pub fn holds(&self, uuid: &Uuid) -> bool {
        self.0.contains_key(uuid)
    }
}

#[derive(Debug)]
struct Claim {
    holder: Id,
    ending: bool,
}

/// The code that a [`Machine`] gives to its [`Registrar`] for swtpm_setup's end. swtpm's are its own.
pub const SETUP: u8 = 4;

/// How a TPM ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Switched off: PCRs and sessions are lost.
    Off,
    /// The guest was saved: the next start goes on where this one stopped.
    Saved,
}

#[derive(Debug)]
enum Process {
    None,
    /// The state is being made.
    Setup(Watched<Setup>),
    Swtpm(Swtpm),
}

/// The process of one vTPM.
///
/// # Invariants
///
/// While there is a process, or one is about to be started, `uuid` is the one that is claimed.
#[derive(Debug)]
pub struct Machine {
    id: Id,
    registrar: Registrar,
    uuid: Option<Uuid>,
    process: Process,
}

impl Machine {
    /// Without a process.
    pub fn new(id: Id, registrar: Registrar) -> Self {
        Self {
            id,
            registrar,
            uuid: None,
            process: Process::None,
        }
    }

    /// Whether there is a process.
    pub fn is_running(&self) -> bool {
        !matches!(self.process, Process::None)
    }

    /// The TPM, if there is one yet.
    pub fn swtpm(&mut self) -> Option<&mut Swtpm> {
        match &mut self.process {
            Process::Swtpm(swtpm) => Some(swtpm),
            _ => None,
        }
    }

    /// When [`on_deadline`](Self::on_deadline) wants to be called.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.process {
            Process::Swtpm(swtpm) => swtpm.deadline(),
            _ => None,
        }
    }

    /// Goes on if the deadline has passed.
    pub fn on_deadline(&mut self, now: Instant) -> Result<(), Error> {
        match &mut self.process {
            Process::Swtpm(swtpm) if swtpm.deadline().is_some_and(|deadline| deadline <= now) => {
                Ok(swtpm.on_deadline()?)
            }
            _ => Ok(()),
        }
    }

    /// Starts the TPM of `uuid`. Does nothing as long as its state, or this vTPM's process, has not
    /// been given up by whom it had before.
    pub fn start(
        &mut self,
        claims: &mut Claims,
        config: &Config,
        uuid: Uuid,
        asked: Option<Version>,
    ) -> Result<(), Error> {
        if self.is_running() {
            return Ok(());
        }
        match claims.0.get(&uuid) {
            None => (),
            Some(claim) if claim.ending => {
                log::info!("vtpm {}: waits for vtpm {} to end", self.id, claim.holder);
                return Ok(());
            }
            Some(claim) => return Err(Error::InUse(uuid, claim.holder.to_string())),
        }
        self.claim(claims, &uuid);

        let state = config.state(&uuid, asked)?;
        // One that a former daemon left to this very vTPM, or to one that is gone.
        self.end_former(config, &uuid)?;
        log::info!(
            "vtpm {}: TPM {}, {} state {}",
            self.id,
            state.version,
            match (state.exists, state.is_saved()?) {
                (false, _) => "makes",
                (true, false) => "on",
                (true, true) => "goes on with the saved",
            },
            state.path.display()
        );
        self.process = if state.exists {
            Process::Swtpm(self.spawn(config, &state)?)
        } else {
            let setup = Setup::spawn(config, &state)?;
            Process::Setup(self.registrar.add(SETUP, setup)?)
        };
        Ok(())
    }

    fn claim(&mut self, claims: &mut Claims, uuid: &Uuid) {
        // INVARIANT: Claimed before anything is started.
        let claim = Claim {
            holder: self.id,
            ending: false,
        };
        claims.0.insert(uuid.clone(), claim);
        self.uuid = Some(uuid.clone());
    }

    /// Ends what a former daemon left running on a state that nobody has claimed, if it is this vTPM's.
    fn end_former(&self, config: &Config, uuid: &Uuid) -> Result<(), Error> {
        match Found::find(config, uuid)? {
            Some(found) if found.record.vtpm == self.id.to_string() => {
                log::info!("vtpm {}: ends swtpm {} first", self.id, found.record.pid);
                Ok(record::end(config, &[(uuid.clone(), found)])?)
            }
            Some(found) => Err(Error::InUse(uuid.clone(), found.record.vtpm)),
            None => {
                record::remove(config, uuid);
                Ok(())
            }
        }
    }

    fn spawn(&self, config: &Config, state: &State) -> Result<Swtpm, Error> {
        Ok(Swtpm::spawn(config, state, self.id, &self.registrar)?)
    }

    /// Looks for an swtpm that a former daemon left running for this very vTPM. True if there is one:
    /// [`swtpm::Event::Up`] follows, as after [`start`](Self::start). One that is of no use is ended.
    /// One that is another vTPM's is left alone, and is an error: [`end_strays`] is for those.
    pub fn take_over(
        &mut self,
        claims: &mut Claims,
        config: &Config,
        uuid: &Uuid,
    ) -> Result<bool, Error> {
        let Some(found) = Found::find(config, uuid)? else {
            record::remove(config, uuid);
            return Ok(false);
        };
        if let Some(claim) = claims.0.get(uuid) {
            return Err(Error::InUse(uuid.clone(), claim.holder.to_string()));
        }
        if found.record.vtpm != self.id.to_string() {
            return Err(Error::InUse(uuid.clone(), found.record.vtpm));
        }
        let pid = found.record.pid;
        let state = config.state(uuid, None)?;

        match Swtpm::take_over(&state, found, &self.registrar) {
            Some(swtpm) => {
                self.claim(claims, uuid);
                self.process = Process::Swtpm(swtpm);
                log::info!("vtpm {}: takes over swtpm {pid}", self.id);
                Ok(true)
            }
            None => {
                record::remove(config, uuid);
                Ok(false)
            }
        }
    }

    /// The daemon ends, and the process stays for the next one. Only an swtpm that is up can stay.
    pub fn leave(&mut self, claims: &mut Claims) {
        if let Process::Swtpm(swtpm) = std::mem::replace(&mut self.process, Process::None) {
            swtpm.leave();
        }
        self.give_up(claims);
    }

    /// swtpm_setup has ended, perhaps: then swtpm follows, unless the vTPM is ending.
    pub fn on_setup(&mut self, claims: &mut Claims, config: &Config) -> Result<(), Error> {
        let Process::Setup(setup) = &mut self.process else {
            return Ok(());
        };
        let Some(exit) = setup.process().exit()? else {
            return Ok(());
        };
        let Process::Setup(setup) = std::mem::replace(&mut self.process, Process::None) else {
            return Ok(());
        };
        let finished = setup.finish(&exit);
        let claim = self.uuid.as_ref().and_then(|uuid| claims.0.get(uuid));

        if claim.is_some_and(|claim| claim.ending) {
            self.give_up(claims);
            return Ok(finished?);
        }
        finished?;
        self.process = Process::Swtpm(self.spawn(config, setup.state())?);
        Ok(())
    }

    /// Starts the end of the process, if there is one. A swtpm_setup is left to finish its work, for
    /// the next vTPM of this uuid.
    pub fn end(&mut self, claims: &mut Claims, how: End) {
        let uuid = self.uuid.as_ref();

        if let Some(claim) = uuid.and_then(|uuid| claims.0.get_mut(uuid)) {
            claim.ending = true;
        }
        match &mut self.process {
            Process::None => self.give_up(claims),
            Process::Setup(..) => (),
            Process::Swtpm(swtpm) if how == End::Saved => swtpm.save(),
            Process::Swtpm(swtpm) => swtpm.shut_down(),
        }
    }

    /// The process has ended: its state is free.
    pub fn ended(&mut self, claims: &mut Claims, config: &Config) {
        if let (Process::Swtpm(_), Some(uuid)) = (&self.process, &self.uuid) {
            record::remove(config, uuid);
        }
        self.give_up(claims);
    }

    /// Without a process there is no claim.
    fn give_up(&mut self, claims: &mut Claims) {
        self.process = Process::None;
        if let Some(uuid) = self.uuid.take() {
            claims.0.remove(&uuid);
        }
    }
}

/// Ends the swtpms that former daemons left and that nobody `keeps`, by uuid and by what the record calls the
/// vTPM ("domid/devid"). Waits for their ends. Returns which they were.
pub fn end_strays(
    config: &Config,
    keeps: impl Fn(&Uuid, &str) -> bool,
) -> io::Result<Vec<(Uuid, String)>> {
    let mut strays = Found::all(config)?;

    strays.retain(|(uuid, found)| !keeps(uuid, &found.record.vtpm));
    record::end(config, &strays)?;
    let name = |(uuid, found): (Uuid, Found)| (uuid, found.record.vtpm);
    Ok(strays.into_iter().map(name).collect())
}
