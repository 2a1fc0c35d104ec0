// SPDX-License-Identifier: GPL-2.0

//! What the manager asks of a worker, and the vTPM's status.

use std::time::Duration;

use super::connection;
use super::control::{self, Request};
use super::end::HANDOVER_TIMEOUT;
use super::{Outcome, Power, Worker};
use crate::config::Uuid;
use crate::counters::used_by;
use crate::lifecycle::Stage;
use crate::status;

impl Worker {
    /// A request of the manager's.
    pub(super) fn on_request(&mut self, request: (control::Source, Request)) -> Option<Outcome> {
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
                self.respond(client, synced);
            }
            Request::ClearLockout => {
                let (cleared, outcome) = self.clear_lockout();
                self.respond(client, cleared);
                return outcome;
            }
            Request::Depart { migration, peer } => {
                let (departed, outcome) = self.depart(&migration, &peer);
                self.respond(client, departed);
                return outcome;
            }
        }
        None
    }

    fn respond(&mut self, client: control::Source, done: Result<(), String>) {
        match done {
            Ok(()) => self.control.respond(client, &serde_json::json!({})),
            Err(e) => self
                .control
                .respond(client, &serde_json::json!({ "error": e })),
        }
    }

    /// A command of the administrator's between the guest's: the I/O process, which has the data channel, ends
    /// after the guest's command, and another one follows.
    fn clear_lockout(&mut self) -> (Result<(), String>, Option<Outcome>) {
        let outcome = match self.pause(HANDOVER_TIMEOUT) {
            Ok(outcome) => outcome,
            Err(busy) => return (Err(busy), None),
        };
        let Some(tpm) = self.tpm() else {
            return (Err("there is no TPM at the moment".into()), outcome);
        };
        let cleared = tpm.client().clear_lockout().map_err(|e| e.to_string());
        let stored = tpm.sync().map_err(|e| e.to_string());
        (cleared.and(stored), outcome)
    }

    /// Ends the I/O process after the guest's command. Another one follows.
    pub(super) fn pause(&mut self, timeout: Duration) -> Result<Option<Outcome>, String> {
        if self.leaving.is_some() {
            let busy = "the TPM is busy with a command of a former connection: try again later";
            return Err(busy.into());
        }
        let mut outcome = None;
        if let Some(connection) = self.connection.take() {
            connection.finish(&self.shared, timeout);
            (self.resumes, self.tried) = (true, None);
            if connection::is_under_way(&self.shared) {
                outcome = self.new_data_channel();
            }
        }
        Ok(outcome)
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
