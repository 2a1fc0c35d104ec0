// SPDX-License-Identifier: GPL-2.0

//! The worker's part in a migration. At the source it packs the TPM of the suspended guest, and takes that back
//! where the guest goes on. At the destination it lets the toolstack wait until the TPM has arrived, so that no
//! guest is started without, and takes it when the guest runs.

use std::thread::sleep;
use std::time::{Duration, Instant};

use super::tpm::Held;
use super::{Failure, Outcome, Power, Worker};
use crate::config::{Config, Uuid};
use crate::migrate::depart;
use crate::migrate::mark::{Mark, Receiving, Role};
use crate::state::{self, Lock};
use crate::swtpm::Version;
use crate::xen::Domain;

/// How long a TPM that is on its way is waited for: libxl waits ten seconds for InitWait.
const ARRIVAL: Duration = Duration::from_secs(8);

/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(20);

/// How long a command of the guest's may take that is under way when it is suspended.
const COMMAND: Duration = Duration::from_secs(6);

/// How often a source looks whether its guest goes on. Where it does not, that is downtime.
const WATCH: Duration = Duration::from_millis(500);

fn unread(uuid: &Uuid, e: &std::io::Error) -> state::Error {
    state::Error::Marked(format!("vTPM {uuid}: {uuid}.migration: {e}"))
}

/// Takes what a migration has brought: once the guest `runs`, or the source has said so. `None` before that.
pub(super) fn arrived(
    config: &Config,
    uuid: &Uuid,
    migration: &str,
    asked: Option<Version>,
    runs: bool,
) -> Result<Option<Held>, state::Error> {
    let lock = match Lock::wait(config, uuid, Duration::ZERO) {
        // Somebody looks at it.
        Err(state::Error::Locked { .. }) => return Ok(None),
        lock => lock?,
    };
    let path = config.state_path(uuid);
    let gone = || {
        let text = format!("vTPM {uuid}: the source has taken back what it had sent");
        Err(state::Error::Marked(text))
    };
    match Mark::read(&path).map_err(|e| unread(uuid, &e))? {
        Some(mark) if mark.migration != migration || mark.role != Role::Arrived => return gone(),
        Some(_) if !runs => return Ok(None),
        // From here on it is this host's.
        Some(_) => Mark::remove(&path).map_err(|e| unread(uuid, &e))?,
        None => (),
    }
    let held = Held::with(config, uuid, asked, lock)?;
    match held.state.exists {
        true => Ok(Some(held)),
        false => gone(),
    }
}

impl Worker {
    /// Waits for a TPM that is on its way, and says which migration has brought it. `None` where none does.
    pub(super) fn await_arrival(&self, uuid: &Uuid) -> Result<Option<String>, Failure> {
        let path = self.config.state_path(uuid);
        let read = || Mark::read(&path).map_err(|e| unread(uuid, &e));
        let refuse = |mark: &Mark| Failure::from(state::Error::Marked(mark.refusal(uuid)));
        let Some(first) = read()? else {
            return Ok(None);
        };
        let online = self.give_up();
        let limit = Instant::now() + ARRIVAL;
        loop {
            let there = Receiving::is_there(&self.config.run_dir, uuid);
            let there = there.map_err(|e| Failure::Io("the migration's lock", e))?;
            match read()? {
                Some(mark) if mark.migration != first.migration => return Err(refuse(&mark)),
                // One that boots is another guest, or the same at another time.
                Some(mark) if !there || self.boots => return Err(refuse(&mark)),
                Some(mark) if mark.role == Role::Arrived => return Ok(Some(mark.migration)),
                Some(mark) if mark.role != Role::Expected => return Err(refuse(&mark)),
                Some(mark) if Instant::now() >= limit || online.is_so() => {
                    return Err(refuse(&mark));
                }
                Some(_) => sleep(LOOK),
                None if path.exists() => return Ok(Some(first.migration)),
                None => return Err(refuse(&first.with(Role::Failed))),
            }
        }
    }

    /// Packs the TPM of a guest that is suspended. It is not given up: the guest may go on here.
    pub(super) fn depart(
        &mut self,
        migration: &str,
        peer: &str,
    ) -> (Result<(), String>, Option<Outcome>) {
        match self.guest() {
            Ok(Domain::Suspended) => (),
            Ok(other) => return (Err(format!("the guest is not suspended: {other:?}")), None),
            Err(e) => return (Err(e), None),
        }
        let outcome = match self.pause(COMMAND) {
            Ok(outcome) => outcome,
            Err(busy) => return (Err(busy), None),
        };
        let packed = self.pack(migration, peer);
        if packed.is_ok() {
            log::info!("packed for {peer}");
            self.departed = Some(Instant::now() + WATCH);
            self.suspended = true;
        }
        (packed, outcome)
    }

    fn pack(&mut self, migration: &str, peer: &str) -> Result<(), String> {
        let (vm, file, give_up) = (self.vm(), self.run_dir.departing(), self.give_up());
        let tpm = self.tpm().ok_or("there is no TPM at the moment")?;
        let begun = Instant::now();
        let stored = tpm.save().and_then(|()| tpm.sync());
        // It goes on.
        tpm.client().set_give_up(give_up);
        stored.map_err(|e| e.to_string())?;
        log::info!("stored for {peer} in {} ms", begun.elapsed().as_millis());
        match (&self.broker, &self.power) {
            (Some(broker), _) => broker.pack(vm.as_deref(), migration, peer),
            (None, Power::On(tpm)) => {
                depart::pack(tpm.state(), vm.as_deref(), migration, peer, &file)
            }
            _ => Err("there is no TPM at the moment".into()),
        }
    }

    /// What a former worker has packed.
    pub(super) fn find_departed(&mut self) {
        self.departed = Some(Instant::now() + WATCH);
    }

    /// Looks whether a guest whose TPM was sent goes on here.
    pub(super) fn watch_departed(&mut self, now: Instant) {
        let in_doubt = match (&self.broker, &self.power) {
            (Some(broker), _) => broker.is_in_doubt(),
            (None, Power::On(tpm)) => depart::is_in_doubt(tpm.state(), self.id.domid),
            _ => Ok(false),
        };
        if let Err(e) = &in_doubt {
            log::warn!("{e}");
        }
        self.suspended = in_doubt == Ok(true);
        self.departed = (in_doubt != Ok(false)).then(|| now + WATCH);
    }
}
