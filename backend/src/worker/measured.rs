// SPDX-License-Identifier: GPL-2.0

//! The worker's part in the measured start: what the guest boots is looked for before InitWait, and the event log
//! is offered before Connected.

use xen_tpm_protocol::layout::NODE_EVENT_LOG;

use super::tpm::Held;
use super::{Failure, Power, Worker};
use crate::events::Event;
use crate::measure::for_driver_domain::RESTORED;
use crate::measure::log::nodes;
use crate::measure::{self, Boot, Measure, Objection};
use crate::xen;

impl Worker {
    /// Looks for what the guest boots: early, while the toolstack can still be told that it has to be measured and
    /// cannot be.
    pub(super) fn find_boot(
        &mut self,
        held: Option<&Held>,
        boots: Option<bool>,
    ) -> Result<(), Failure> {
        self.boot = match self.shared.starts.get() {
            0 if boots == Some(false) => Boot::Unknown(RESTORED.into()),
            0 => Boot::find(&self.store, self.own_domid, self.id)?,
            // The guest has run already, and could be anything by now.
            _ => Boot::Unknown("its TPM was lost, and this one is in its place".into()),
        };
        // Whether the guest goes on, and was measured when it booted, is told by a state that is not another's still.
        match held {
            Some(held) if self.policy.measure == Measure::Required => {
                match !self.boots && held.state.is_saved_for(self.vm().as_deref())? {
                    true => Ok(()),
                    false => Ok(self
                        .boot
                        .check(&self.policy.allowed_kernels, &self.config.run_dir)?),
                }
            }
            _ => Ok(()),
        }
    }

    /// Tells the administrator what is not as he wants it.
    pub(super) fn object(&mut self, objection: Objection) {
        let uuid = self.uuid_text();
        self.control.tell(&match objection {
            Objection::Unmeasured(reason) => {
                log::warn!("the guest is not measured, and its PCR 4 says so: {reason}");
                Event::Unmeasured { uuid, reason }
            }
            Objection::NotAllowed(reason) => {
                log::warn!("the guest does not boot one of allowed-kernels: {reason}");
                Event::NotAllowed { uuid, reason }
            }
        });
    }

    /// Offers the event log to the frontend, if there is one.
    pub(super) fn offer_event_log(&self) -> Result<(), Failure> {
        let Power::On(tpm) = &self.power else {
            return Ok(());
        };
        let log = measure::kept_log(tpm.state_path()).unwrap_or_else(|e| {
            log::warn!("{e}: the guest has none");
            None
        });
        let log = log.unwrap_or_default();
        let nodes = nodes(&log);
        let (state, folder) = (
            self.paths.backend("state"),
            self.paths.backend(NODE_EVENT_LOG),
        );
        let offered: Result<(), xen::Error> = self.store.transaction(|store| {
            // Not into a directory that was removed meanwhile: that would make half a vTPM.
            if store.read(&state)?.is_none() {
                return Ok(());
            }
            store.remove(&folder)?;
            for (number, value) in nodes.iter().enumerate() {
                store.write(&format!("{folder}/{number}"), value)?;
            }
            Ok(())
        });
        Ok(offered?)
    }
}
