// SPDX-License-Identifier: GPL-2.0

//! The connection to the guest while the vTPM is served: how it is made, what its I/O process asks
//! for, and what follows when that process ends.

use std::time::Instant;

use rustix::io::Errno;

use super::connection::{self, Connection};
use super::{Failure, Outcome, Power, Worker};
use crate::io::link::{Ask, Tell};
use crate::lifecycle::Stage;
use crate::state;
use crate::status::LastError;
use crate::swtpm;
use crate::sys::release_memory;
use crate::sys::shared::Entry;
use crate::xenbus::{NodeError, RingParams};

/// How often in a row a connection is tried whose I/O process ends as it starts.
const OPEN_TRIES: u32 = 5;

impl Worker {
    /// Connects to what the guest has published, unless that was tried already.
    pub(super) fn connect(&mut self) -> Result<Option<Outcome>, Failure> {
        let params = match RingParams::read(&self.store, &self.paths) {
            Ok(params) if self.tried == Some(params) => return Ok(None),
            Ok(params) => params,
            Err(e @ NodeError::Xen(_)) => return Err(e.into()),
            Err(e) if self.stage == Stage::Waiting || self.resumes => {
                self.refuse(&e.into());
                return Ok(None);
            }
            // Between two connections the guest's nodes may be anything.
            Err(e) => {
                log::debug!("{e}");
                return Ok(None);
            }
        };
        let now = Instant::now();
        if let Some(at) = self.connect.not_before(now) {
            self.retry_at = Some(at);
            return Ok(None);
        }
        self.connect.tried(now);
        self.disconnect();
        match self.confine() {
            Ok(None) => (),
            Err(failure @ Failure::Connection(_)) => {
                self.refuse(&failure);
                return Ok(None);
            }
            ended => return ended,
        }
        self.offer_event_log()?;
        self.tried = Some(params);
        match self.open(params) {
            Ok(()) => {
                log::info!("connected, grant {}, port {}", params.ring_ref, params.port);
                self.shared.connections.add(1);
                self.stage = Stage::Connected;
                self.failed_in_this_life = false;
                self.remove_error();
                Ok(None)
            }
            Err(Failure::IoProcess(how)) if self.connect.tries() < OPEN_TRIES => {
                self.retry_at = Some(now);
                Ok(self.io_process_ended(how))
            }
            Err(failure) => {
                self.refuse(&failure);
                Ok(None)
            }
        }
    }

    fn open(&mut self, params: RingParams) -> Result<(), Failure> {
        let (Power::On(tpm), Some(broker)) = (&self.power, &self.broker) else {
            return Ok(());
        };
        let opening = connection::Opening {
            broker,
            params,
            tpm,
            shared: &self.shared,
            resumed: self.resumes,
            messages: self.messages.file(),
        };
        let (connection, lacks) = Connection::open(&opening)?;
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
    pub(super) fn on_link(&mut self) -> Option<Outcome> {
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
    pub(super) fn connection_lost(&mut self, reason: Option<String>) -> Option<Outcome> {
        let connection = self.connection.take()?;
        let how = connection.end_now(self.broker.as_ref());
        self.io_process_ended(reason.unwrap_or(how))
    }

    /// What it was at is nobody's any more; the next one goes on.
    fn io_process_ended(&mut self, reason: String) -> Option<Outcome> {
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
    pub(super) fn settle(&mut self) -> Option<Outcome> {
        if !connection::is_under_way(&self.shared) {
            return None;
        }
        let failed = self.new_data_channel();
        self.shared.note(Entry::Free);
        failed
    }

    /// swtpm has, or may have, a response for a process that is no more.
    pub(super) fn new_data_channel(&mut self) -> Option<Outcome> {
        let give_up = self.give_up();
        let Power::On(tpm) = &mut self.power else {
            return None;
        };
        match tpm.reconnect(&self.run_dir, swtpm::client::TIMEOUT, give_up) {
            Ok(()) => None,
            Err(e) => self.fail(&e.into()),
        }
    }
}
