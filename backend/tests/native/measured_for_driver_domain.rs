// SPDX-License-Identifier: GPL-2.0

//! The measured start where the backend is a driver domain: both halves, dom0's and the driver domain's, over one
//! xenstored.

use std::fs;

use rustix::process::Signal;

use crate::boots::{BOOT, VM};
use crate::host::{wait_for, Host, LIMIT};
use crate::hypervisor::{Domain, Reason};
use crate::toolstack::uuid;

/// The event log that is kept beside the state of a vTPM.
fn kept_log(host: &Host) -> Option<Vec<u8>> {
    fs::read(host.state_dir().join(format!("{}.eventlog", uuid(7)))).ok()
}

/// Dom0 hashes for a driver domain, which has the same in its log as dom0 would have.
#[test]
fn measured_start_of_a_driver_domains_vtpm() {
    let Some(host) = Host::new() else { return };
    let guest = host.boot_measured(7, BOOT);
    let log = kept_log(&host).unwrap();
    host.shut_down(guest, Reason::Reboot);

    let folder = |domid: u16| format!("/local/domain/5/backend/vtpm/{domid}/0");
    let said = |domid: u16, node: &str| host.store.read(&format!("{}/boot/{node}", folder(domid)));
    let has = |domid: u16, node: &str| wait_for(LIMIT, || said(domid, node).is_some());
    let introduce = |domid: u16, domain| {
        host.hypervisor.set_domain(domid, domain);
        host.attach_to(&folder(domid), domid, &uuid(7));
    };
    host.build(8, BOOT, true);
    introduce(8, Domain::Booted);
    assert!(has(8, "cmdline"), "{}", host.log());
    // What was there when the manager started, of a guest that is restored, and of a kernel that is not there.
    host.end_manager(Signal::Term);
    host.build(9, BOOT, true);
    introduce(9, Domain::Restored);
    host.build(10, BOOT, true);
    let kernel = format!("/vm/{VM}/image/kernel");
    host.store.write(&kernel, "/nowhere/vmlinuz");
    introduce(10, Domain::Booted);
    host.start();
    for domid in [9, 10] {
        assert!(has(domid, "not-measured"), "{}", host.log());
        assert_eq!(said(domid, "kernel"), None);
    }
    assert!(host.log().contains("it is restored"), "{}", host.log());
    assert!(host.log().contains("/nowhere/vmlinuz is not there"));

    // From here on this is the driver domain; nothing is in dom0.
    host.end_manager(Signal::Term);
    host.store.write("/local/domain/0/domid", "5");
    for domid in [9, 10] {
        host.store.remove(&folder(domid));
    }
    let state = host.state_dir().join(format!("{}.eventlog", uuid(7)));
    fs::remove_file(&state).unwrap();
    host.start();
    assert!(
        wait_for(LIMIT, || kept_log(&host).is_some()),
        "{}",
        host.log()
    );
    assert!(kept_log(&host).unwrap() == log, "the same as in dom0");

    let next = |domid: u16, spoil: &dyn Fn(&str), reason: &str| {
        host.store.remove(&folder(domid - 1));
        assert!(wait_for(LIMIT, || host
            .processes("serve", Some(domid - 1))
            .is_empty()));
        fs::remove_file(&state).unwrap();
        host.attach_to(&folder(domid), domid, &uuid(7));
        spoil(&format!("{}/boot", folder(domid)));
        assert!(
            wait_for(LIMIT, || kept_log(&host).is_some()),
            "{}",
            host.log()
        );
        let is_told = wait_for(LIMIT, || host.log().contains(reason));
        assert!(is_told, "{reason}: {}", host.log());
        assert!(kept_log(&host).unwrap() != log);
    };
    next(9, &|_| (), "no xen-vtpmd runs there");
    next(
        10,
        &|boot| host.store.write(&format!("{boot}/not-measured"), "x"),
        "dom0 could not",
    );
    next(
        11,
        &|boot| {
            host.store.transaction(|t| {
                t.write(&format!("{boot}/cmdline"), "ro");
                t.write(&format!("{boot}/kernel"), "11:00");
            });
        },
        "of the kernel",
    );
}
