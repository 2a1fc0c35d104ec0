// SPDX-License-Identifier: GPL-2.0

//! What the source knows of the guest that is to go: its domain, its vTPMs and their workers.

use std::path::PathBuf;

use super::{Error, Offer};
use crate::admin;
use crate::archive::transfer;
use crate::config::{Config, Uuid};
use crate::key;
use crate::record::{Record, RunDir};
use crate::xen::Store;
use crate::xenbus::{self, Id, Paths};

/// A vTPM of the guest's.
#[derive(Debug)]
pub struct Vtpm {
    /// Which one.
    pub uuid: Uuid,
    /// Where the state is.
    pub path: PathBuf,
    /// Its worker's directory.
    pub run: RunDir,
    /// What the destination is told of it.
    pub offer: Offer,
}

/// The guest.
#[derive(Debug)]
pub struct Guest {
    /// Its domain.
    pub domid: u16,
    /// Its vTPMs.
    pub vtpms: Vec<Vtpm>,
}

/// This host's name.
pub fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

/// The guest of this name or domain id, as xl takes it.
pub fn find(config: &Config, guest: &str) -> Result<Guest, Error> {
    let store = Store::open()?;
    let own = xenbus::own_domid(&store)?;
    let mut domid = None;
    for domain in store.list("/local/domain")? {
        let name = store.read(&format!("/local/domain/{domain}/name"))?;
        if name.as_deref() == Some(guest) || domain == guest {
            domid = domain.parse().ok();
        }
    }
    let domid: u16 =
        domid.ok_or_else(|| Error::Guest(format!("there is no domain {guest:?} here")))?;
    let mut vtpms = Vec::new();
    for devid in store.list(&format!("/local/domain/{domid}/device/vtpm"))? {
        let id = Id::from_names(&domid.to_string(), &devid);
        let id = id.ok_or_else(|| Error::Guest(format!("{devid:?} is no vTPM's number")))?;
        let paths = Paths::new(own, id);
        let backend = store.read(&paths.frontend("backend-id"))?;
        if own != 0 || backend.as_deref() != Some("0") {
            let text = format!(
                "the backend of vtpm {id} is not in dom0: save, export, import and restore move it"
            );
            return Err(Error::Guest(text));
        }
        vtpms.push(vtpm(config, &store, id, &paths)?);
    }
    match vtpms.is_empty() {
        true => Err(Error::Guest(format!(
            "domain {guest:?} has no vTPM: `xl migrate` is all that it needs"
        ))),
        false => Ok(Guest { domid, vtpms }),
    }
}

fn vtpm(config: &Config, store: &Store, id: Id, paths: &Paths) -> Result<Vtpm, Error> {
    let parse = |uuid: &str| uuid.parse().ok();
    let uuid: Uuid = xenbus::read_as(store, &paths.backend("uuid"), "a uuid", parse)?;
    let having = Record::with_state(&config.run_dir, &uuid)?;
    let run = having.into_iter().find(|(other, _)| *other == id);
    let (_, run) = run.ok_or_else(|| {
        Error::Guest(format!(
            "vtpm {id} has no TPM that is up: see `xen-vtpmd status`"
        ))
    })?;
    let state = config.state(&uuid, None)?;
    let offer = Offer {
        uuid: uuid.to_string(),
        version: state.version.to_string(),
        identity: transfer::identity(&state)?,
        key: admin::key_of(&state.path, state.version),
    };
    Ok(Vtpm {
        uuid,
        path: state.path,
        run,
        offer,
    })
}

impl Vtpm {
    /// The key that the state is encrypted by, for a destination that has another one.
    pub fn key(&self, config: &Config) -> Result<Option<String>, Error> {
        let key_file = config.policy(&self.uuid).key_file.as_deref();
        let key = key::of_state(key_file, &self.uuid, &self.path, true)?;
        Ok(key.map(|key| String::from_utf8_lossy(&key.hex()[..]).into_owned()))
    }
}
