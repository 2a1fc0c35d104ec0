// SPDX-License-Identifier: GPL-2.0

//! The process behind a vTPM: swtpm, or first swtpm_setup where there is no state yet. And who has
//! which state: two vTPMs of one uuid never run at a time.

use std::collections::HashMap;
use std::io;
use std::time::Instant;

use crate::config::{self, Config, State, Uuid};
use crate::swtpm::{self, Setup, Swtpm, Version};
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
    Config(#[from] config::Error),
    /// The state could not be made.
    #[error("making the state of a new TPM: {0}")]
    Setup(#[from] io::Error),
    /// Another vTPM has the state.
    #[error("uuid {0} is in use by vtpm {1}: two vTPMs cannot have one state")]
    InUse(Uuid, Id),
}

/// Who has which state.
#[derive(Debug, Default)]
pub struct Claims(HashMap<Uuid, Claim>);

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
    Setup(Watched<Setup>, State),
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
            Some(claim) => return Err(Error::InUse(uuid, claim.holder)),
        }
        // INVARIANT: Claimed before anything is started.
        let claim = Claim {
            holder: self.id,
            ending: false,
        };
        claims.0.insert(uuid.clone(), claim);
        self.uuid = Some(uuid.clone());

        let state = config.state(&uuid, asked)?;
        log::info!(
            "vtpm {}: TPM {}, {} state {}",
            self.id,
            state.version,
            if state.exists { "on" } else { "makes" },
            state.path.display()
        );
        self.process = if state.exists {
            Process::Swtpm(self.spawn(&state)?)
        } else {
            let setup = Setup::spawn(state.version, &state.path)?;
            Process::Setup(self.registrar.add(SETUP, setup)?, state)
        };
        Ok(())
    }

    fn spawn(&self, state: &State) -> Result<Swtpm, Error> {
        let prefix = format!("vtpm {}: ", self.id);
        Ok(Swtpm::spawn(
            state.version,
            &state.path,
            &prefix,
            &self.registrar,
        )?)
    }

    /// Looks for an swtpm that a former daemon left running for this very vTPM. True if there is one:
    /// [`swtpm::Event::Up`] follows, as after [`start`](Self::start). One that the state has, but that
    /// is another vTPM's or of no use, is ended.
    pub fn take_over(
        &mut self,
        _claims: &mut Claims,
        _config: &Config,
        _uuid: &Uuid,
    ) -> Result<bool, Error> {
        Ok(false)
    }

    /// The daemon ends, and the process stays for the next one. Only an swtpm that is up can stay.
    pub fn leave(&mut self, claims: &mut Claims) {
        self.end(claims, End::Off);
    }

    /// swtpm_setup has ended, perhaps: then swtpm follows, unless the vTPM is ending.
    pub fn on_setup(&mut self, claims: &mut Claims) -> Result<(), Error> {
        let Process::Setup(setup, _) = &mut self.process else {
            return Ok(());
        };
        let Some(status) = setup.process().exit_status()? else {
            return Ok(());
        };
        let Process::Setup(setup, state) = std::mem::replace(&mut self.process, Process::None)
        else {
            return Ok(());
        };
        let finished = setup.finish(status);
        let claim = self.uuid.as_ref().and_then(|uuid| claims.0.get(uuid));

        if claim.is_some_and(|claim| claim.ending) {
            self.ended(claims);
            return Ok(finished?);
        }
        finished?;
        self.process = Process::Swtpm(self.spawn(&state)?);
        Ok(())
    }

    /// Starts the end of the process, if there is one. A swtpm_setup is left to finish its work, for
    /// the next vTPM of this uuid.
    pub fn end(&mut self, claims: &mut Claims, _how: End) {
        let uuid = self.uuid.as_ref();

        if let Some(claim) = uuid.and_then(|uuid| claims.0.get_mut(uuid)) {
            claim.ending = true;
        }
        match &mut self.process {
            Process::None => self.ended(claims),
            Process::Setup(..) => (),
            Process::Swtpm(swtpm) => swtpm.shut_down(),
        }
    }

    /// The process has ended: its state is free.
    pub fn ended(&mut self, claims: &mut Claims) {
        self.process = Process::None;
        if let Some(uuid) = self.uuid.take() {
            claims.0.remove(&uuid);
        }
    }
}
