// SPDX-License-Identifier: GPL-2.0

//! How a vTPM, or a guest's connection to it, ends: orderly, saved with its guest, by a failure, or for the
//! next worker.

use std::time::{Duration, Instant};

use super::{Failure, Outcome, Power, Worker};
use crate::config::OnDeath;
use crate::events::Event;
use crate::lifecycle::Stage;
use crate::status::LastError;
use crate::xen::{self, Domain, Domains};
use crate::xenbus::BusState;

/// How long a guest has to follow when its TPM is lost.
const FAIL_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a command of a guest that was let go may take: as long as the slowest of commands.
const LEFT_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a running command has when the worker hands over to the next one.
pub(super) const HANDOVER_TIMEOUT: Duration = Duration::from_secs(30);

/// How long Closed is shown in a driver domain before the vTPM's nodes go: libxl, which waits for this very
/// state, takes nodes that are gone when it looks for a failure.
const CLOSED_SHOWN: Duration = Duration::from_secs(1);

/// How soon storing the volatile state is tried again, where it could not be.
const SAVE_AGAIN: Duration = Duration::from_secs(2);

/// So many deaths in a row, and a TPM is not started again.
const MAX_REVIVALS: u32 = 5;

/// The longest reason that is written to xenstore, whose messages are limited to 4 kB.
const MAX_REASON: usize = 1000;

impl Worker {
    /// The connection to the guest cannot be. The TPM stays, for a better one.
    pub(super) fn refuse(&mut self, failure: &Failure) {
        self.report(failure);
        let uuid = self.uuid_text();
        let reason = failure.to_string();
        self.control.tell(&Event::Refused { uuid, reason });
        self.disconnect();
        self.resumes = false;
        self.stage = Stage::Closing;
        self.show_or_log(BusState::Closing);
    }

    /// The TPM cannot be, or cannot go on.
    pub(super) fn fail(&mut self, failure: &Failure) -> Option<Outcome> {
        match self.stage {
            Stage::New => {
                let own = self.facts().ok().and_then(|facts| facts.own);
                self.report(failure);
                self.tell_failed(failure);
                let outcome = self.close();
                if own == Some(BusState::Initialising) {
                    self.tell_toolstack(failure);
                }
                outcome
            }
            Stage::Closed => {
                self.report(failure);
                Some(Outcome::Over)
            }
            Stage::Failing | Stage::Leaving => {
                self.report(failure);
                self.close()
            }
            Stage::Waiting | Stage::Connected | Stage::Closing => self.lost(failure),
        }
    }

    fn tell_failed(&mut self, failure: &Failure) {
        let uuid = self.uuid_text();
        let reason = failure.to_string();
        self.control.tell(&Event::Failed { uuid, reason });
    }

    /// The toolstack waits for InitWait, which will not come. It has no ear for a reason, and is told by
    /// removing the node that it waits for; it then takes the rest away.
    fn tell_toolstack(&self, failure: &Failure) {
        self.write_hotplug_error(failure);
        match self.store.remove(&self.paths.backend("state")) {
            Ok(()) => log::error!("not started; the reason stays in {}", self.paths.error()),
            Err(e) => log::warn!("{e}"),
        }
    }

    fn write_hotplug_error(&self, failure: &Failure) {
        if let Err(e) = self.tell("hotplug-error", &short(&failure.to_string())) {
            log::warn!("{e}");
        }
    }

    /// The TPM is lost, and its PCRs with it. A guest that is connected is told to close first.
    pub(super) fn lost(&mut self, failure: &Failure) -> Option<Outcome> {
        let connected = self.connection.is_some() || self.stage == Stage::Connected;

        self.report(failure);
        match self.is_up() || connected {
            true => {
                self.shared.deaths.add(1);
                let uuid = self.uuid_text();
                let reason = failure.to_string();
                self.control.tell(&Event::Lost { uuid, reason });
                match self.policy.on_death {
                    OnDeath::Closed => log::error!("TPM lost: closed until the guest restarts"),
                    OnDeath::Restart => log::error!("TPM lost: a fresh one follows"),
                }
            }
            false => self.tell_failed(failure),
        }
        self.disconnect();
        match std::mem::replace(&mut self.power, Power::Off) {
            Power::Off | Power::Blocked(_) => (),
            Power::Setup(mut setup, _) => setup.kill(),
            Power::On(tpm) => tpm.kill(&self.run_dir),
        }
        self.leaving = None;
        if connected {
            self.stage = Stage::Failing;
            self.deadline = Some(Instant::now() + FAIL_TIMEOUT);
            self.show_or_log(BusState::Closing);
            None
        } else {
            self.close_lost()
        }
    }

    /// Shows Closed after the TPM was lost. If the administrator says so, a fresh one follows: only now,
    /// that no guest is connected any more.
    pub(super) fn close_lost(&mut self) -> Option<Outcome> {
        self.disconnect();
        self.stage = Stage::Closed;
        self.show_or_log(BusState::Closed);
        if self.policy.on_death != OnDeath::Restart {
            return self.over();
        }
        let now = Instant::now();
        if self.revive.tries() >= MAX_REVIVALS {
            log::error!("the TPM has died {MAX_REVIVALS} times in a row, and is not started again");
            return self.over();
        }
        self.revive.tried(now);
        self.shared.revivals.set(self.revive.tries().into());
        self.deadline = self.revive.not_before(now);
        None
    }

    /// Starts a fresh TPM in the place of one that died.
    pub(super) fn start_again(&mut self) -> Option<Outcome> {
        if self.broker.is_some() {
            // This worker is confined, and can start none.
            self.shared.revives.set(1);
            return Some(self.hand_over());
        }
        self.stage = Stage::New;
        self.failed_in_this_life = true;
        match self.start() {
            Ok(outcome) => outcome,
            Err(failure) => self.fail(&failure),
        }
    }

    /// Leaves the reason of a failure in the log, and where xenbus tools look for it.
    fn report(&mut self, failure: &Failure) {
        let text = failure.to_string();
        log::error!("{text}");
        self.failed_in_this_life = true;
        if let Err(e) = self.store.write(&self.paths.error(), &short(&text)) {
            log::warn!("{e}");
        }
        self.last_error = Some(LastError::now(text));
    }

    /// Lets the guest go; its command, if one is under way, is abandoned.
    pub(super) fn disconnect(&mut self) {
        if let Some(connection) = self.connection.take() {
            log::info!("disconnected");
            let left = connection.leave(&self.shared);
            self.leaving = left.map(|left| (left, Instant::now() + LEFT_TIMEOUT));
        }
    }

    /// The toolstack, which could not save the guest, has the vTPM stay.
    pub(super) fn save_given_up(&mut self) {
        log::info!("the guest goes on, and was not saved");
        self.held_for_save = false;
        self.failed_in_this_life = false;
        self.deadline = None;
        self.stage = match self.connection {
            Some(_) => Stage::Connected,
            None => Stage::Closing,
        };
    }

    /// Ends the TPM and shows Closed: after the volatile state is stored, if the guest is being saved. If that
    /// cannot be, the vTPM does not close, and the guest keeps its TPM.
    pub(super) fn close(&mut self) -> Option<Outcome> {
        match self.guest() {
            Ok(Domain::Suspended) => {
                if let Err(failure) = self.save() {
                    self.hold_for_save(&failure);
                    return None;
                }
            }
            Ok(Domain::Alive) if self.held_for_save => {
                self.deadline = Some(Instant::now() + SAVE_AGAIN);
                self.stage = Stage::Leaving;
                return None;
            }
            Ok(_) => self.end_tpm(),
            Err(e) => {
                // The toolstack gives up after ten seconds, and has to be answered.
                log::warn!("{e}: the TPM is switched off");
                self.end_tpm();
            }
        }
        self.stage = Stage::Closed;
        self.deadline = None;
        self.show_or_log(BusState::Closed);
        self.over()
    }

    /// What became of the guest, as far as the end of its TPM depends on that.
    pub(super) fn guest(&self) -> Result<Domain, String> {
        match (&self.power, &self.broker) {
            // A driver domain cannot ask, and saves no guests.
            (Power::On(_), _) if self.own_domid != 0 || self.stopping => Ok(Domain::Ended),
            (Power::On(_), Some(broker)) => broker.guest(),
            (Power::On(_), None) => Domains::open()
                .and_then(|domains| domains.state(self.id.domid))
                .map_err(|e| e.to_string()),
            _ => Ok(Domain::Ended),
        }
    }

    fn save(&mut self) -> Result<(), Failure> {
        let vm = self.vm();
        let Some(tpm) = self.tpm() else {
            return Ok(());
        };
        tpm.save()?;
        match (&self.broker, &self.power) {
            (Some(broker), _) => broker.mark_saved(vm.as_deref()).map_err(Failure::Mark)?,
            (None, Power::On(tpm)) => tpm.state().mark_saved(vm.as_deref())?,
            _ => (),
        }
        log::info!("volatile state stored for the next start of this guest");
        self.shared.saves.add(1);
        let uuid = self.uuid_text();
        self.control.tell(&Event::Saved { uuid });
        self.disconnect();
        if let Power::On(tpm) = std::mem::replace(&mut self.power, Power::Off) {
            tpm.end_saved(&self.run_dir);
        }
        Ok(())
    }

    /// The only way to tell a toolstack that a save has failed is not to close.
    fn hold_for_save(&mut self, failure: &Failure) {
        if !self.held_for_save {
            self.held_for_save = true;
            self.report(failure);
            self.write_hotplug_error(failure);
            log::error!("the volatile state cannot be stored, so the vTPM does not close");
        }
        self.stage = Stage::Leaving;
        self.deadline = Some(Instant::now() + SAVE_AGAIN);
    }

    fn end_tpm(&mut self) {
        self.disconnect();
        // Whoever waits for a response still is waited for no longer.
        self.leaving = None;
        let entry = self.shared.entry();
        match std::mem::replace(&mut self.power, Power::Off) {
            Power::Off | Power::Blocked(_) => (),
            Power::Setup(mut setup, _) => setup.kill(),
            Power::On(tpm) => {
                if let Err(e) = tpm.end(entry, &self.run_dir) {
                    log::warn!("{e}");
                }
            }
        }
    }

    /// There is nothing in xenstore any more.
    pub(super) fn release(&mut self) -> Outcome {
        self.end_tpm();
        self.stage = Stage::Closed;
        self.remove_error();
        Outcome::Over
    }

    /// Closed is shown. What is left to do is done by whom waits for nothing any more.
    fn over(&mut self) -> Option<Outcome> {
        self.control.stopped();
        let online = self.facts().is_ok_and(|facts| facts.online);
        if !online && !self.failed_in_this_life {
            self.remove_error();
        }
        if !online && self.own_domid != 0 {
            // In a driver domain nobody else removes what the toolstack made there.
            std::thread::sleep(CLOSED_SHOWN);
            if let Err(e) = self.clean_up() {
                log::warn!("{e}");
            }
        }
        Some(Outcome::Over)
    }

    /// Removes what the toolstack made for this vTPM, and for its guest if that has no other.
    fn clean_up(&self) -> Result<(), xen::Error> {
        match self.facts() {
            // Made again meanwhile.
            Ok(facts) if facts.online => return Ok(()),
            facts => facts?,
        };
        self.store.remove(&self.paths.backend_folder())?;
        self.remove_if_empty(&self.paths.guests_folder())
    }

    fn remove_if_empty(&self, folder: &str) -> Result<(), xen::Error> {
        match self.store.list(folder)?.is_empty() {
            true => self.store.remove(folder),
            false => Ok(()),
        }
    }

    /// Removes the error node with the directories above it that are this vTPM's.
    pub(super) fn remove_error(&self) {
        let [own, guests] = self.paths.error_folders();
        let removed = self
            .store
            .remove(&own)
            .and_then(|()| self.remove_if_empty(&guests));
        if let Err(e) = removed {
            log::debug!("{e}");
        }
    }

    /// Leaves the TPM to the next worker. A running command ends first.
    pub(super) fn hand_over(&mut self) -> Outcome {
        if let Some(connection) = self.connection.take() {
            connection.finish(&self.shared, HANDOVER_TIMEOUT);
        }
        log::info!("ends, for the next worker to go on");
        Outcome::HandOver
    }

    /// Writes a node beside the state, if that is there: into a directory that was removed meanwhile it would make
    /// half a vTPM.
    pub(super) fn tell(&self, name: &str, value: &str) -> Result<(), xen::Error> {
        let (state, node) = (self.paths.backend("state"), self.paths.backend(name));
        self.store.transaction(|store| match store.read(&state)? {
            Some(_) => store.write(&node, value),
            None => Ok(()),
        })
    }

    /// Shows a state to the guest and the toolstack: unless the toolstack, which writes there as well, has said
    /// that the vTPM is to go.
    pub(super) fn show(&mut self, state: BusState) -> Result<(), Failure> {
        let node = self.paths.backend("state");
        let online = self.paths.backend("online");
        let text = state.to_string();
        self.store.transaction(|store| {
            let shown = store.read(&node)?;
            match shown.as_deref() {
                // Not into a directory that was removed meanwhile: that would make half a vTPM.
                None => return Ok(()),
                Some(shown) if shown == text => return Ok(()),
                Some(_) => (),
            }
            if state != BusState::Closed && store.read(&online)?.as_deref() != Some("1") {
                return Ok(());
            }
            log::debug!("state {text}");
            store.write(&node, &text)
        })?;
        Ok(())
    }

    fn show_or_log(&mut self, state: BusState) {
        if let Err(e) = self.show(state) {
            log::warn!("{e}");
        }
    }
}

/// What fits into a node, whatever is quoted in it.
fn short(text: &str) -> String {
    let mut end = text.len().min(MAX_REASON);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}
