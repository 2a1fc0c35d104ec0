// SPDX-License-Identifier: GPL-2.0

//! How a vTPM, or a guest's connection to it, ends: orderly, by a failure, or for the next daemon.

use std::time::Instant;

use log::Level;

use super::{Failure, Host, Vtpm, FAIL_LIMIT, REVIVE_PAUSE};
use crate::config::OnDeath;
use crate::lifecycle::Stage;
use crate::machine::End;
use crate::status::LastError;
use crate::xenbus::BusState;

impl Vtpm {
    /// Ends the vTPM because the daemon ends and nobody follows.
    pub fn stop(&mut self, host: &mut Host) {
        if self.stage != Stage::Closed {
            self.close(host);
        }
    }

    /// Whether a command is under way, for which a daemon that hands over waits a little.
    pub fn is_busy(&mut self) -> bool {
        let busy = |swtpm: &mut crate::swtpm::Swtpm| !swtpm.is_free() && !swtpm.is_ending();
        self.stage != Stage::Starting && self.machine.swtpm().is_some_and(busy)
    }

    /// Leaves everything to the next daemon as it is.
    pub fn leave(mut self, host: &mut Host) {
        if let Some(connection) = self.connection.take() {
            connection.leave();
        }
        self.machine.leave(&mut host.claims);
    }

    /// The connection to the guest cannot be. The TPM stays, for a better one.
    pub(super) fn refuse(&mut self, host: &Host, failure: &Failure) {
        self.report(host, failure);
        self.disconnect();
        self.resumes = false;
        self.stage = Stage::Closing;
        self.show_or_log(host, BusState::Closing);
    }

    /// The TPM cannot be, or cannot go on.
    pub(super) fn fail(&mut self, host: &mut Host, failure: &Failure) {
        match self.stage {
            Stage::Closed => {
                log::warn!("vtpm {}: {failure}", self.id);
                self.machine.end(&mut host.claims, End::Off);
            }
            Stage::New | Stage::Starting => {
                let own = self.facts(host).ok().and_then(|facts| facts.own);
                self.report(host, failure);
                self.close(host);
                if own == Some(BusState::Initialising) {
                    self.tell_toolstack(host, failure);
                }
            }
            Stage::Failing | Stage::Leaving => {
                self.report(host, failure);
                self.close(host);
            }
            Stage::Waiting | Stage::Connected | Stage::Closing => self.lost(host, failure),
        }
    }

    /// The toolstack waits for InitWait, which will not come. It has no ear for a reason, and is told by
    /// removing the node that it waits for; it then takes the rest away.
    fn tell_toolstack(&self, host: &Host, failure: &Failure) {
        let node = self.paths.backend("hotplug-error");
        let told = host
            .store
            .write(&node, &failure.to_string())
            .and_then(|()| host.store.remove(&self.paths.backend("state")));

        match told {
            Ok(()) => log::error!(
                "vtpm {}: not started; the reason stays in {}",
                self.id,
                self.paths.error()
            ),
            Err(e) => log::warn!("vtpm {}: {e}", self.id),
        }
    }

    /// The TPM is lost, and its PCRs with it. A guest that is connected is told to close first.
    pub(super) fn lost(&mut self, host: &mut Host, failure: &Failure) {
        let connected = self.connection.is_some() || self.stage == Stage::Starting;

        self.counters.deaths += 1;
        self.report(host, failure);
        let what = match self.policy.on_death {
            OnDeath::Closed => "closed until the guest restarts",
            OnDeath::Restart => "a fresh one follows",
        };
        self.say(Level::Error, format_args!("TPM lost: {what}"));
        self.disconnect();
        self.machine.end(&mut host.claims, End::Off);
        if connected {
            self.stage = Stage::Failing;
            self.deadline = Some(Instant::now() + FAIL_LIMIT);
            self.show_or_log(host, BusState::Closing);
        } else {
            self.close_lost(host);
        }
    }

    /// Shows Closed after the TPM was lost. If the administrator says so, a fresh one follows: only now,
    /// that no guest is connected any more.
    pub(super) fn close_lost(&mut self, host: &mut Host) {
        self.close(host);
        if self.policy.on_death == OnDeath::Restart {
            self.deadline = Some(Instant::now() + REVIVE_PAUSE);
        }
    }

    /// Leaves the reason of a failure in the log, and where xenbus tools look for it.
    fn report(&mut self, host: &Host, failure: &Failure) {
        self.say(Level::Error, format_args!("{failure}"));
        self.last_error = Some(LastError::now(failure.to_string()));
        if let Err(e) = host.store.write(&self.paths.error(), &failure.to_string()) {
            log::warn!("vtpm {}: {e}", self.id);
        }
    }

    pub(super) fn disconnect(&mut self) {
        if self.connection.take().is_some() {
            self.say(Level::Info, format_args!("disconnected"));
        }
        self.counters.dropped();
        self.unmask_at = None;
        self.tried = None;
    }

    /// Lets go of everything and shows Closed.
    pub(super) fn close(&mut self, host: &mut Host) {
        self.release(host);
        self.show_or_log(host, BusState::Closed);
    }

    /// Lets go of everything.
    pub(super) fn release(&mut self, host: &mut Host) {
        let how = match self.saving.is_marked() {
            true => End::Saved,
            false => End::Off,
        };

        self.disconnect();
        self.deadline = None;
        self.stage = Stage::Closed;
        self.machine.end(&mut host.claims, how);
    }

    /// Closed was shown for long enough: a fresh TPM comes up, or a driver domain removes the folder.
    pub(super) fn after_closed(&mut self, host: &mut Host) {
        let online = match self.facts(host) {
            Ok(facts) => facts.online,
            Err(e) => return self.fail(host, &e.into()),
        };
        if !online {
            self.clean_up(host);
        } else if let Err(failure) = self.start(host) {
            self.fail(host, &failure);
        }
    }

    /// Removes what the toolstack made for this vTPM, and for its guest if that has no other.
    fn clean_up(&self, host: &Host) {
        let store = &host.store;
        let done = store.remove(&self.paths.backend_folder()).and_then(|()| {
            let guests = self.paths.guests_folder();
            match store.list(&guests)?.is_empty() {
                true => store.remove(&guests),
                false => Ok(()),
            }
        });
        if let Err(e) = done {
            log::warn!("vtpm {}: {e}", self.id);
        }
    }

    /// Shows a state to the guest and the toolstack.
    pub(super) fn show(&self, host: &Host, state: BusState) -> Result<(), Failure> {
        let node = self.paths.backend("state");
        let state = state.to_string();

        match host.store.read(&node)? {
            // Not into a folder that was removed meanwhile: that would make half a vTPM.
            None => Ok(()),
            Some(shown) if shown == state => Ok(()),
            Some(_) => {
                log::debug!("vtpm {}: state {state}", self.id);
                Ok(host.store.write(&node, &state)?)
            }
        }
    }

    fn show_or_log(&self, host: &Host, state: BusState) {
        if let Err(e) = self.show(host, state) {
            log::warn!("vtpm {}: {e}", self.id);
        }
    }
}
