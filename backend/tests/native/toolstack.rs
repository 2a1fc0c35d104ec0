// SPDX-License-Identifier: GPL-2.0

//! What xl and libxl 4.20 do for a vTPM, in their order and with their timeouts.

use std::process::Command;
use std::time::Duration;

use crate::guest::Guest;
use crate::host::{wait_for, Host};
use crate::hypervisor::{Domain, Reason};
use crate::standins;

/// How long libxl waits for a backend.
pub(crate) const LIBXL: Duration = Duration::from_secs(10);

/// The grant and the port of a domain's own ring to xenstored.
const XENSTORE_GRANT: u32 = 1;
const XENSTORE_PORT: u32 = 1;

/// What the tests use as the uuid of a domain's vTPM.
pub(crate) fn uuid(number: u16) -> String {
    format!("0f8fad5b-d9cb-469f-a165-70867728{number:04x}")
}

/// The backend's directory of a vTPM.
pub(crate) fn backend(domid: u16) -> String {
    format!("/local/domain/0/backend/vtpm/{domid}/0")
}

/// Where libxl notes it.
fn device(domid: u16) -> String {
    format!("/libxl/{domid}/device/vtpm/0")
}

/// The frontend's.
pub(crate) fn frontend(domid: u16) -> String {
    format!("/local/domain/{domid}/device/vtpm/0")
}

impl Host {
    /// `xl create` up to the vTPM's nodes.
    pub(crate) fn add(&self, domid: u16, uuid: &str) {
        self.add_domain(domid, uuid, Domain::Booted);
    }

    /// `xl restore` up to the vTPM's nodes.
    pub(crate) fn add_restored(&self, domid: u16, uuid: &str) {
        self.add_domain(domid, uuid, Domain::Restored);
    }

    fn add_domain(&self, domid: u16, uuid: &str, domain: Domain) {
        self.hypervisor.set_domain(domid, domain);
        self.hypervisor.grant(domid, XENSTORE_GRANT);
        std::mem::forget(self.hypervisor.port(domid, XENSTORE_PORT));
        self.store.introduce(domid, XENSTORE_PORT);
        self.attach(domid, uuid);
    }

    /// `xl vtpm-attach`, without its wait.
    pub(crate) fn attach(&self, domid: u16, uuid: &str) {
        self.attach_to(&backend(domid), domid, uuid);
    }

    /// The same, of a vTPM whose backend has this directory.
    pub(crate) fn attach_to(&self, backend: &str, domid: u16, uuid: &str) {
        let (frontend, domain) = (frontend(domid), domid.to_string());
        self.store.transaction(|t| {
            t.write(&format!("{}/backend", device(domid)), backend);
            t.write(&format!("/local/domain/{domid}/control/shutdown"), "");
            for (node, value) in [
                ("backend", backend),
                ("backend-id", "0"),
                ("handle", "0"),
                ("state", "1"),
            ] {
                t.write(&format!("{frontend}/{node}"), value);
            }
            for (node, value) in [
                ("frontend", &*frontend),
                ("frontend-id", &*domain),
                ("online", "1"),
                ("state", "1"),
                ("handle", "0"),
                ("uuid", uuid),
                ("resume", "False"),
            ] {
                t.write(&format!("{backend}/{node}"), value);
            }
        });
    }

    /// The backend's state.
    pub(crate) fn backend_state(&self, domid: u16) -> Option<String> {
        self.store.read(&format!("{}/state", backend(domid)))
    }

    /// What the backend says of a failure.
    pub(crate) fn error(&self, domid: u16) -> String {
        let node = format!("/local/domain/0/error/backend/vtpm/{domid}/0/error");
        self.store.read(&node).unwrap_or_default()
    }

    /// Waits for a state of the backend's, as long as libxl does.
    pub(crate) fn await_state(&self, domid: u16, state: &str) {
        let is_so = || self.backend_state(domid).as_deref() == Some(state);
        assert!(
            wait_for(LIBXL, is_so),
            "the backend of domain {domid} shows {:?} and not {state}; {:?}",
            self.backend_state(domid),
            self.error(domid)
        );
    }

    /// A guest whose vTPM waits for it.
    pub(crate) fn create(&self, domid: u16, uuid: &str) -> Guest {
        self.add(domid, uuid);
        self.await_state(domid, "2");
        Guest::new(self, domid)
    }

    /// A guest whose vTPM is connected.
    pub(crate) fn boot(&self, domid: u16, uuid: &str) -> Guest {
        let mut guest = self.create(domid, uuid);
        guest.connect();
        guest
    }

    /// A guest that was saved, and whose vTPM is connected.
    pub(crate) fn restore(&self, domid: u16, uuid: &str) -> Guest {
        self.add_restored(domid, uuid);
        let mut guest = Guest::new(self, domid);
        guest.connect();
        guest
    }

    /// What libxl does first to take a device away.
    pub(crate) fn ask_to_close(&self, domid: u16) {
        let backend = backend(domid);
        self.store.transaction(|t| {
            t.write(&format!("{backend}/online"), "0");
            if t.read(&format!("{backend}/state")).as_deref() != Some("6") {
                t.write(&format!("{backend}/state"), "5");
            }
        });
    }

    /// Waits for Closed as libxl does; whether it came.
    pub(crate) fn is_closed(&self, domid: u16) -> bool {
        wait_for(LIBXL, || self.backend_state(domid).as_deref() == Some("6"))
    }

    /// `xl vtpm-detach`.
    pub(crate) fn detach(&self, domid: u16) {
        self.ask_to_close(domid);
        self.await_state(domid, "6");
        self.remove(domid);
    }

    fn remove(&self, domid: u16) {
        self.store.transaction(|t| {
            t.remove(&backend(domid));
            t.remove(&frontend(domid));
            t.remove(&device(domid));
        });
        // xs_path_cleanup: the parent goes with its last child.
        let parent = format!("/local/domain/0/backend/vtpm/{domid}");
        if self.store.list(&parent).is_empty() {
            self.store.remove(&parent);
        }
    }

    /// The end of a domain, whatever it was: what `xl destroy` does, and xl after a domain's end.
    /// Whether the backend closed within libxl's timeout.
    pub(crate) fn destroy(&self, domid: u16) -> bool {
        self.store.remove(&frontend(domid));
        self.ask_to_close(domid);
        let closed = self.is_closed(domid);
        self.remove(domid);
        self.store.remove(&format!("/local/domain/{domid}"));
        self.hypervisor.set_domain(domid, Domain::Dying);
        self.store.release(domid);
        self.hypervisor.set_domain(domid, Domain::Gone);
        closed
    }

    /// The guest ends by itself, and xl takes it away.
    pub(crate) fn shut_down(&self, guest: Guest, reason: Reason) {
        let domid = guest.domid;
        drop(guest);
        self.hypervisor.set_domain(domid, Domain::Shutdown(reason));
        assert!(self.destroy(domid), "domain {domid} is not closed");
    }

    /// `xl save`: the guest suspends, its memory is stored, and the domain is destroyed.
    pub(crate) fn save(&self, guest: Guest) -> bool {
        let domid = guest.domid;
        self.suspend(domid);
        drop(guest);
        self.destroy(domid)
    }

    /// What `xl save` and `xl migrate` do first: the guest suspends, and a helper writes its memory.
    pub(crate) fn suspend(&self, domid: u16) {
        let node = format!("/local/domain/{domid}/control/shutdown");
        let domain = domid.to_string();
        let mut helper = Command::new(standins::directory().join("libxl-save-helper"))
            .args(["--save-domain", "8", "-1", &domain, "0", "0", "0", "1", "0"])
            .spawn()
            .unwrap();
        self.store.write(&node, "suspend");
        self.store.write(&node, "");
        self.hypervisor
            .set_domain(domid, Domain::Shutdown(Reason::Suspend));
        std::thread::sleep(Duration::from_millis(400));
        helper.kill().unwrap();
        helper.wait().unwrap();
    }

    /// The guest goes on after a checkpoint, or a migration that failed.
    pub(crate) fn resume(&self, domid: u16) {
        self.hypervisor.set_domain(domid, Domain::Running);
    }
}
