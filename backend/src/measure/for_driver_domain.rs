// SPDX-License-Identifier: GPL-2.0

//! The measured start where the backend is a driver domain, which does not see dom0's files: dom0's manager hashes
//! what the guest boots, and writes the digests below the vTPM's nodes, where nobody but dom0 and the driver domain
//! can write. The worker in the driver domain waits for them.

use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use super::cache;
use super::digest::{Bank, Digests};
use super::images::{Boot, Images, MAX_CMDLINE};
use crate::swtpm::GiveUp;
use crate::xen::{self, Domains, Store};
use crate::xenbus::{Id, Paths};

/// Where libxl has its own nodes, which no guest can write.
pub const LIBXL: &str = "/libxl";

/// The folder below the vTPM's nodes, which is there as soon as dom0 is at it; what is written in it in one
/// transaction: the last alone, or the others, but for the initrd where there is none.
const FOLDER: &str = "boot";
const CMDLINE: &str = "boot/cmdline";
const KERNEL: &str = "boot/kernel";
const INITRD: &str = "boot/initrd";
const NOT_MEASURED: &str = "boot/not-measured";

/// Why a guest that was saved is not measured: its files may be others by now.
pub const RESTORED: &str = "it is restored, and what it has booted is not known";

/// How long dom0 may take to begin. There need not be a manager.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(5);

/// How long it may take for all of it: more than it waits for libxl.
const TIMEOUT: Duration = Duration::from_secs(90);

/// How often its nodes are looked at.
const PAUSE: Duration = Duration::from_millis(50);

// In dom0.

/// The guest's vTPM that a change below [`LIBXL`] is about: `/libxl/DOMID/device/vtpm/DEVID/backend`.
fn device(path: &str) -> Option<Id> {
    let (domid, device) = path.strip_prefix("/libxl/")?.split_once('/')?;
    let devid = device
        .strip_prefix("device/vtpm/")?
        .strip_suffix("/backend")?;
    Id::from_names(domid, devid)
}

/// The domain that a backend's directory is in, if it is the backend of this vTPM and not dom0.
fn driver_domain(backend: &str, id: Id) -> Option<u16> {
    let (domid, _) = backend.strip_prefix("/local/domain/")?.split_once('/')?;
    let domid = Id::from_names(domid, "0")?.domid;
    let folder = Paths::new(domid, id).backend_folder();
    (domid != 0 && backend == folder).then_some(domid)
}

/// Looks at what libxl has made, or at all of it at first, and has it hashed where a driver domain waits for that:
/// each in a thread, since libxl is waited for. There are as many as there are vTPMs that are just made.
pub fn on_change(store: &Store, run_dir: &Path, path: &str) -> Result<(), xen::Error> {
    let mut changed: Vec<Id> = device(path).into_iter().collect();
    if path == LIBXL {
        for domid in store.list(LIBXL)? {
            for devid in store.list(&format!("{LIBXL}/{domid}/device/vtpm"))? {
                changed.extend(Id::from_names(&domid, &devid));
            }
        }
    }
    for id in changed {
        let node = format!("{LIBXL}/{}/device/vtpm/{}/backend", id.domid, id.devid);
        let Some(domain) = store.read(&node)?.and_then(|path| driver_domain(&path, id)) else {
            continue;
        };
        // A manager that starts finds all of them, and most have been measured.
        if is_told(&Paths::new(domain, id), |node| store.read(node))? {
            continue;
        }
        let run_dir = run_dir.to_owned();
        let hash = move || {
            if let Err(e) = measure(domain, id, run_dir) {
                log::warn!(vtpm:% = id; "measuring it for domain {domain}: {e}");
            }
        };
        let spawned = thread::Builder::new().name("measure".into()).spawn(hash);
        if let Err(e) = spawned {
            log::warn!(vtpm:% = id; "measuring it for domain {domain}: {e}");
        }
    }
    Ok(())
}

/// Whether the driver domain has been told.
fn is_told(
    paths: &Paths,
    read: impl Fn(&str) -> Result<Option<String>, xen::Error>,
) -> Result<bool, xen::Error> {
    Ok(read(&paths.backend(CMDLINE))?.is_some() || read(&paths.backend(NOT_MEASURED))?.is_some())
}

/// Hashes what the guest boots, and tells the driver domain.
fn measure(domain: u16, id: Id, run_dir: PathBuf) -> Result<(), xen::Error> {
    let store = Rc::new(Store::open()?);
    let paths = Paths::new(domain, id);
    let write = |nodes: &[(&str, &str)]| {
        store.transaction(|store| {
            // Not into a directory that was removed meanwhile, and not twice: the worker has read it.
            if store.read(&paths.backend("state"))?.is_none()
                || is_told(&paths, |node| store.read(node))?
            {
                return Ok(false);
            }
            for (node, value) in nodes {
                store.write(&paths.backend(node), value)?;
            }
            Ok(true)
        })
    };
    if !write(&[(FOLDER, "")])? {
        return Ok(());
    }
    let (weak, state) = (Rc::downgrade(&store), paths.backend("state"));
    let give_up = GiveUp::when(move || {
        let state = weak.upgrade().map(|store| store.read(&state));
        matches!(state, Some(Ok(None)))
    });
    match digests(&store, id, &run_dir, &give_up) {
        Ok((cmdline, kernel, initrd)) => {
            let mut nodes = vec![(CMDLINE, &*cmdline), (KERNEL, &*kernel)];
            nodes.extend(initrd.as_deref().map(|initrd| (INITRD, initrd)));
            write(&nodes)?;
        }
        // Paths of dom0's are not for whom can read it there.
        Err(reason) => {
            log::warn!(vtpm:% = id; "domain {domain} cannot measure the guest: {reason}");
            write(&[(NOT_MEASURED, "see dom0's log")])?;
        }
    }
    Ok(())
}

type Texts = (String, String, Option<String>);

fn digests(store: &Rc<Store>, id: Id, run_dir: &Path, give_up: &GiveUp) -> Result<Texts, String> {
    match Domains::open().and_then(|domains| domains.boots(id.domid)) {
        Ok(false) if cfg!(target_arch = "x86_64") => return Err(RESTORED.into()),
        Ok(_) => (),
        Err(e) => log::warn!(vtpm:% = id; "{e}: it is taken for one that boots"),
    }
    let boot = Boot::find(store, 0, id).map_err(|e| e.to_string())?;
    let images = boot.images(give_up)?;
    let digests = images.digests(&Bank::ALL, &run_dir.join(cache::FILE))?;
    let initrd = digests.initrd.map(|initrd| initrd.to_text());
    Ok((images.cmdline, digests.kernel.to_text(), initrd))
}

// In the driver domain.

/// Where dom0's words will be.
#[derive(Debug)]
pub struct Awaited {
    /// The worker's connection.
    store: Weak<Store>,
    paths: Paths,
}

impl Awaited {
    /// For a vTPM of this domain's.
    pub fn new(store: &Rc<Store>, own_domid: u16, id: Id) -> Self {
        Self {
            store: Rc::downgrade(store),
            paths: Paths::new(own_domid, id),
        }
    }

    fn read(&self, node: &str) -> Result<Option<String>, String> {
        let store = self
            .store
            .upgrade()
            .ok_or("the worker has another connection")?;
        let value = store.read(&self.paths.backend(node));
        value.map_err(|e| e.to_string())
    }

    /// Waits for them.
    pub(super) fn images(&self, give_up: &GiveUp) -> Result<Images, String> {
        let begun = Instant::now();
        loop {
            // The others are there when this one is.
            if let Some(cmdline) = self.read(CMDLINE)? {
                let kernel = self.read(KERNEL)?.unwrap_or_default();
                return images(cmdline, &kernel, self.read(INITRD)?.as_deref());
            }
            if let Some(where_to_look) = self.read(NOT_MEASURED)? {
                return Err(format!("dom0 could not measure it: {where_to_look:?}"));
            }
            let waited = begun.elapsed();
            if waited > BEGIN_TIMEOUT && self.read(FOLDER)?.is_none() {
                return Err("dom0 does not measure it: no xen-vtpmd runs there".into());
            }
            if waited > TIMEOUT {
                return Err("dom0 does not say what it boots".into());
            }
            if give_up.is_so() {
                return Err("the vTPM is taken away".into());
            }
            thread::sleep(PAUSE);
        }
    }
}

fn images(cmdline: String, kernel: &str, initrd: Option<&str>) -> Result<Images, String> {
    let digests = |what: &str, text: &str| {
        Digests::from_text(text).ok_or_else(|| format!("dom0 says {text:?} of the {what}"))
    };
    if cmdline.len() > MAX_CMDLINE {
        return Err(format!("its command line has {} bytes", cmdline.len()));
    }
    let initrd = initrd.map(|text| digests("initrd", text)).transpose()?;
    Ok(Images::told(digests("kernel", kernel)?, initrd, cmdline))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_driver_domain_serves() {
        let id = Id { domid: 7, devid: 1 };
        assert_eq!(device("/libxl/7/device/vtpm/1/backend"), Some(id));
        for other in [
            "/libxl",
            "/libxl/7",
            "/libxl/7/device/vtpm/1",
            "/libxl/7/device/vtpm/1/frontend",
            "/libxl/7/device/vbd/1/backend",
            "/libxl/07/device/vtpm/1/backend",
        ] {
            assert_eq!(device(other), None, "{other}");
        }
        let backend = "/local/domain/5/backend/vtpm/7/1";
        assert_eq!(driver_domain(backend, id), Some(5));
        for other in [
            "/local/domain/0/backend/vtpm/7/1",
            "/local/domain/5/backend/vtpm/7/0",
            "/local/domain/05/backend/vtpm/7/1",
            "/local/domain/5/backend/vtpm/7/1/x",
            "",
        ] {
            assert_eq!(driver_domain(other, id), None, "{other}");
        }
    }

    #[test]
    fn what_dom0_says_is_checked() {
        let text = Digests::of(&Bank::ALL, b"kernel").to_text();
        let cache = Path::new("/nonexistent");
        let told = images("ro".into(), &text, Some(&text)).unwrap();
        let digests = told.digests(&[Bank::Sha256], cache).unwrap();
        assert_eq!(digests.kernel.iter().len(), 1);
        assert!(digests.initrd.is_some());

        assert!(images("x".repeat(MAX_CMDLINE + 1), &text, None).is_err());
        for bad in ["", "4:00", &text[1..], &text.replace("11:", "12:")] {
            assert!(images("ro".into(), bad, None).is_err(), "{bad:?}");
            assert!(images("ro".into(), &text, Some(bad)).is_err(), "{bad:?}");
        }
        // A bank that dom0 does not know is none that can be left out.
        let (sha1, _) = text.split_once(' ').unwrap();
        let told = images("ro".into(), sha1, None).unwrap();
        assert!(told.digests(&[Bank::Sha1], cache).is_ok());
        assert!(told.digests(&[Bank::Sha256], cache).is_err());
    }
}
