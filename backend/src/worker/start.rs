// SPDX-License-Identifier: GPL-2.0

//! How a vTPM starts: who it is, its right to the state, and its TPM, which is made, started, or
//! taken over from a former worker.

use std::rc::Rc;
use std::time::{Duration, Instant};

use xen_tpm_protocol::layout::{FEATURE_VALUE, NODE_FEATURE};

use super::hold::Blocked;
use super::tpm::{self, Held, Place, Setup, Tpm};
use super::{Failure, Outcome, Power, Worker, SETUP_TIMEOUT};
use crate::config::{Sandbox, Uuid};
use crate::events::Event;
use crate::key;
use crate::lifecycle::{Facts, Stage};
use crate::logger;
use crate::notes::{Notes, Use};
use crate::state::Guest;
use crate::swtpm::GiveUp;
use crate::xen::Domains;
use crate::xenbus::{self, BusState, Paths};

/// How long InitWait is shown at least: libxl waits for this very state, and reads it only some time
/// after it was written.
const INIT_WAIT: Duration = Duration::from_millis(300);

impl Worker {
    /// Reads who it is, and what the administrator says about that.
    fn identify(&mut self) -> Result<Uuid, Failure> {
        self.paths.check_frontend(&self.store, self.id)?;
        let node = self.paths.backend("uuid");
        let uuid: Uuid = xenbus::read_as(&self.store, &node, "a uuid", |uuid| uuid.parse().ok())?;

        self.policy = self.config.policy(&uuid).clone();
        self.uuid = Some(uuid.clone());
        logger::about_uuid(&uuid);
        Ok(uuid)
    }

    /// The uuid of the guest's domain, which tells a restored guest from others.
    pub(super) fn vm(&self) -> Option<String> {
        let path = self.store.read(&Paths::vm(self.id)).ok().flatten()?;
        path.strip_prefix("/vm/").map(str::to_owned)
    }

    /// Shows InitWait as soon as nothing stands against serving this vTPM, and starts the TPM. What takes time,
    /// or is another program's to do, comes after it.
    pub(super) fn start(&mut self) -> Result<Option<Outcome>, Failure> {
        self.begun = Instant::now();
        self.failed_in_this_life = false;
        let uuid = self.identify()?;
        let boots = self.guest_boots()?;
        self.boots = boots == Some(true);
        let node = self.paths.backend("tpm-version");
        let asked = match self.store.read(&node)? {
            None => None,
            Some(_) => {
                let parse = |version: &str| version.parse().ok();
                Some(xenbus::read_as(&self.store, &node, "1.2 or 2.0", parse)?)
            }
        };
        if self.config.sandbox == Sandbox::Required && !self.lacks.is_empty() {
            let lacks = self.lacks.join(", ");
            let text = format!("sandbox = \"required\", and there is no {lacks} here");
            return Err(Failure::Connection(text));
        }
        if let Some(key_file) = &self.policy.key_file {
            key::sealed::check(key_file).map_err(tpm::Error::from)?;
        }
        let brought_by = self.await_arrival(&uuid)?;
        let held = match brought_by {
            Some(_) => None,
            None => self.hold(&uuid, asked)?,
        };
        if let (Some(false), Some(held)) = (boots, &held) {
            self.check_restored(held)?;
        }
        self.find_boot(held.as_ref(), boots)?;
        self.store.remove(&self.paths.error())?;
        self.tell(NODE_FEATURE, FEATURE_VALUE)?;
        // Until it is shown, all of this is done again where xenstore fails.
        self.show(BusState::InitWait)?;
        self.stage = Stage::Waiting;
        self.deadline = Some(Instant::now() + INIT_WAIT);
        match held {
            Some(held) => self.switch_on(held)?,
            None => self.power = Power::Blocked(Blocked::new(asked, brought_by)),
        }
        Ok(None)
    }

    /// Whether the guest boots, so that no saved state is for it, or is restored; `None` where that is not known. It
    /// can be seen only before the guest runs, which is until InitWait is shown.
    fn guest_boots(&self) -> Result<Option<bool>, Failure> {
        let own = self.store.read(&self.paths.backend("state"))?;
        let initialising = own == Some(BusState::Initialising.to_string());
        // A driver domain cannot ask, and saves no guests.
        if !initialising || self.own_domid != 0 {
            return Ok(None);
        }
        match Domains::open().and_then(|domains| domains.boots(self.id.domid)) {
            // Only there the registers tell.
            Ok(false) if cfg!(not(target_arch = "x86_64")) => Ok(None),
            Ok(boots) => Ok(Some(boots)),
            Err(e) => {
                log::warn!("{e}: a saved state is for the guest of its uuid, booted or restored");
                Ok(None)
            }
        }
    }

    /// swtpm is waited for as long as the toolstack wants the vTPM to be there. The worker alone has the connection
    /// to xenstored, which it replaces when it confines itself.
    pub(super) fn give_up(&self) -> GiveUp {
        let (store, online) = (Rc::downgrade(&self.store), self.paths.backend("online"));
        GiveUp::when(move || {
            let online = store.upgrade().map(|store| store.read(&online));
            matches!(online, Some(Ok(online)) if online.as_deref() != Some("1"))
        })
    }

    /// Starts swtpm, or swtpm_setup first.
    pub(super) fn switch_on(&mut self, held: Held) -> Result<(), Failure> {
        let vm = self.vm();
        let give_up = self.give_up();
        let place = Place {
            config: &self.config,
            run: &self.run_dir,
            give_up,
        };
        let path = held.state.path.display().to_string();
        let version = held.state.version;
        let guest = Guest {
            vm: vm.as_deref(),
            boots: self.boots,
        };
        if !held.state.exists {
            log::info!("TPM {version}: makes the state {path}");
            let setup = Setup::start(&place, held, &self.messages)?;
            self.power = Power::Setup(setup, Instant::now() + SETUP_TIMEOUT);
            return Ok(());
        }
        let tpm = Tpm::start(
            &place,
            held,
            guest,
            std::mem::take(&mut self.boot),
            &self.shared,
            &mut self.messages,
        )?;
        let (restored, objection) = (tpm.resumed, tpm.objection.clone());
        match restored {
            true => log::info!("TPM {version} goes on with the saved state {path}"),
            false => log::info!("TPM {version} on the state {path}"),
        }
        self.power = Power::On(Box::new(tpm));
        let us = u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.note_use();
        let uuid = self.uuid_text();
        self.control.tell(&Event::Started { uuid, us, restored });
        if let Some(objection) = objection {
            self.object(objection);
        }
        Ok(())
    }

    /// Notes who uses the state, for `xen-vtpmd list`.
    fn note_use(&self) {
        let Power::On(tpm) = &self.power else {
            return;
        };
        let name = self
            .store
            .read(&format!("/local/domain/{}/name", self.id.domid));
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let used = Use {
            time: crate::admin::now(),
            host: host.trim().to_owned(),
            domid: self.id.domid,
            devid: self.id.devid,
            name: name.ok().flatten().unwrap_or_default(),
        };
        if let Err(e) = Notes::note_use(tpm.state_path(), used) {
            log::warn!("who uses the TPM is not noted: {e}");
        }
    }

    pub(super) fn uuid_text(&self) -> String {
        self.uuid.as_ref().map(Uuid::to_string).unwrap_or_default()
    }

    /// Goes on where a former worker stopped, if the TPM is still there. A fresh one does not take the
    /// place of the one that a running guest had, unless the administrator says so.
    pub(super) fn take_over(&mut self, facts: Facts) -> Result<Option<Outcome>, Failure> {
        use BusState::{Closed, Closing, Connected, Initialised};

        let uuid = self.identify()?;
        let guest = matches!(facts.frontend, Some(Initialised | Connected | Closing));
        let place = Place {
            config: &self.config,
            run: &self.run_dir,
            give_up: self.give_up(),
        };
        match Tpm::adopt(&place, &uuid, &self.shared) {
            Ok(Some(tpm)) => {
                log::info!("goes on with swtpm {}", tpm.pid());
                self.power = Power::On(Box::new(tpm));
                self.stage = match facts.own {
                    Some(Connected) => Stage::Connected,
                    Some(Closing) => Stage::Closing,
                    _ => Stage::Waiting,
                };
                self.resumes = self.stage != Stage::Waiting;
                self.find_departed();
                self.tell(NODE_FEATURE, FEATURE_VALUE)?;
                return Ok(self.evaluate());
            }
            Ok(None) => (),
            Err(e) if guest => {
                self.stage = Stage::Connected;
                return Ok(self.lost(&e.into()));
            }
            Err(e) => return Err(e.into()),
        }
        match facts.own {
            Some(Connected | Closing) if guest => {
                self.stage = Stage::Connected;
                Ok(self.lost(&Failure::Gone))
            }
            Some(Closed) if self.shared.revives.get() != 0 => {
                self.shared.revives.set(0);
                Ok(self.start_again())
            }
            Some(Closed) => {
                log::warn!("closed by a former worker");
                Ok(self.close_lost())
            }
            _ => self.start(),
        }
    }

    /// swtpm or swtpm_setup has ended.
    pub(super) fn on_process(&mut self) -> Option<Outcome> {
        let failure = match &mut self.power {
            Power::Off | Power::Blocked(_) => return None,
            Power::Setup(setup, _) => match setup.finish(&self.config, &mut self.messages) {
                Ok(None) => return None,
                Ok(Some(())) => {
                    let Power::Setup(setup, _) = std::mem::replace(&mut self.power, Power::Off)
                    else {
                        return None;
                    };
                    match self.switch_on(setup.into_held()) {
                        Ok(()) => return None,
                        Err(failure) => failure,
                    }
                }
                Err(e) => {
                    self.power = Power::Off;
                    e.into()
                }
            },
            Power::On(tpm) => match tpm.ended(&mut self.messages, &self.run_dir) {
                None => return None,
                Some(e) => {
                    self.power = Power::Off;
                    e.into()
                }
            },
        };
        self.fail(&failure)
    }
}
