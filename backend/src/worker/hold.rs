// SPDX-License-Identifier: GPL-2.0

//! The right to a state that another vTPM has. That of a guest that is being saved, migrated or rebooted lets go
//! of it in the end, here or on a host that shares the storage, and this one waits for that behind InitWait. That
//! of a guest that runs does not, and this one is refused.

use std::time::{Duration, Instant};

use super::migration::arrived;
use super::tpm::Held;
use super::{Failure, Power, Worker};
use crate::config::{RestoreWithoutTpm, Uuid};
use crate::record::Record;
use crate::state;
use crate::swtpm::Version;
use crate::xen::{Domain, Domains};
use crate::xenbus::{BusState, Id, Paths};

/// How often the state is asked for. NFS carries each attempt to the server.
const PAUSE: Duration = Duration::from_millis(100);

/// How often one that has arrived is, as long as its guest does not run: what that takes would be downtime.
const ARRIVED_PAUSE: Duration = Duration::from_secs(1);

/// How long a guest that wants its TPM waits for the state.
const LIMIT: Duration = Duration::from_secs(60);

/// A state that is waited for.
#[derive(Debug)]
pub(super) struct Blocked {
    asked: Option<Version>,
    /// When it is asked for again.
    pub(super) next: Instant,
    /// Until when the guest waits, if it does.
    limit: Option<Instant>,
    /// The migration that has brought it, whose guest has to run before it is taken.
    brought_by: Option<String>,
}

impl Blocked {
    pub(super) fn new(asked: Option<Version>, brought_by: Option<String>) -> Self {
        let mut this = Self {
            asked,
            next: Instant::now(),
            limit: None,
            brought_by,
        };
        this.next += this.pause();
        this
    }

    fn pause(&self) -> Duration {
        match (&self.brought_by, self.limit) {
            (Some(_), None) => ARRIVED_PAUSE,
            _ => PAUSE,
        }
    }
}

impl Worker {
    /// Takes the state; `None` if it is to be waited for.
    pub(super) fn hold(
        &self,
        uuid: &Uuid,
        asked: Option<Version>,
    ) -> Result<Option<Held>, Failure> {
        match Held::take(&self.config, uuid, asked) {
            Err(e @ state::Error::Locked { .. }) => match self.holder(uuid)? {
                Some(other) => Err(Failure::InUse(uuid.clone(), other)),
                None => {
                    log::info!("{e}: waits for it");
                    Ok(None)
                }
            },
            held => Ok(Some(held?)),
        }
    }

    /// The vTPM of this host that has the state, if it is to keep it: its guest runs, and the toolstack does not
    /// take it away.
    fn holder(&self, uuid: &Uuid) -> Result<Option<Id>, Failure> {
        let having = Record::with_state(&self.config.run_dir, uuid);
        for (id, _) in having.map_err(|e| Failure::Io("run directory", e))? {
            if id != self.id && self.keeps(id)? {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    fn keeps(&self, id: Id) -> Result<bool, Failure> {
        let paths = Paths::new(self.own_domid, id);
        let shows = |node: &str| self.store.read(&paths.backend(node));
        if shows("online")?.as_deref() != Some("1")
            || shows("state")?.is_none_or(|state| state == BusState::Closed.to_string())
        {
            return Ok(false);
        }
        match self.own_domid {
            0 => Ok(Domains::open()?.state(id.domid)? == Domain::Alive),
            // A driver domain cannot ask, and saves no guests.
            _ => Ok(true),
        }
    }

    /// Looks whether what the TPM of a restored guest had in memory is there.
    pub(super) fn check_restored(&self, held: &Held) -> Result<(), Failure> {
        let (state, vm) = (&held.state, self.vm());
        if state.exists && state.is_saved_for(vm.as_deref())? {
            return Ok(());
        }
        let what = match state.exists {
            true => "its TPM has been used since it was saved, and is newer",
            false => "its TPM is not on this host",
        };
        match self.policy.restore_without_tpm {
            RestoreWithoutTpm::GoOn => {
                log::warn!("the guest is restored, and {what}: its PCRs are gone");
                Ok(())
            }
            RestoreWithoutTpm::Refuse => {
                let key = "restore-without-tpm = \"refuse\"";
                let text = format!("the guest is restored, and {what}: {key}");
                Err(Failure::Connection(text))
            }
        }
    }

    /// The guest has published a connection, and waits for its TPM.
    pub(super) fn guest_waits(&mut self) {
        let now = Instant::now();
        if let Power::Blocked(blocked) = &mut self.power {
            if blocked.limit.is_none() {
                blocked.limit = Some(now + LIMIT);
                // Not before InitWait was shown for a while.
                blocked.next = self.deadline.unwrap_or(now);
            }
        }
    }

    /// Asks for the state again.
    pub(super) fn hold_again(&mut self, now: Instant) -> Option<super::Outcome> {
        let (Power::Blocked(blocked), Some(uuid)) = (&mut self.power, &self.uuid) else {
            return None;
        };
        blocked.next = now + blocked.pause();
        let taken = match &blocked.brought_by {
            None => Held::take(&self.config, uuid, blocked.asked),
            Some(migration) => {
                let (asked, runs) = (blocked.asked, blocked.limit.is_some());
                match arrived(&self.config, uuid, migration, asked, runs) {
                    Ok(Some(held)) => Ok(held),
                    Ok(None) => return None,
                    Err(e) => Err(e),
                }
            }
        };
        let failure = match taken {
            Err(state::Error::Locked { .. }) if blocked.limit.is_none_or(|limit| now < limit) => {
                return None;
            }
            Ok(held) => {
                self.power = Power::Off;
                self.switch_on(held).err()?
            }
            Err(e) => e.into(),
        };
        self.fail(&failure)
    }
}
