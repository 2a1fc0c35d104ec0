// SPDX-License-Identifier: GPL-2.0

//! What is kept over a save, and only over a save.

use std::fs;
use std::time::Duration;

use rustix::process::Signal;

use crate::host::{signal, wait_for, Host, LIMIT};
use crate::hypervisor::{Domain, Reason};
use crate::toolstack::{backend, uuid};
use crate::tpm::{extend, GET_RANDOM};

#[test]
fn a_save_keeps_the_pcrs_once() {
    let Some(host) = Host::new() else { return };
    let mut guest = host.boot(7, &uuid(7));
    let reset = guest.pcr(16);
    guest.done(&extend(16));
    let extended = guest.pcr(16);
    assert_ne!(reset, extended);

    assert!(host.save(guest));
    let mut guest = host.restore(8, &uuid(7));
    assert_eq!(guest.pcr(16), extended, "after the restore");
    // The image once more: what the TPM had in memory is used up.
    drop(guest);
    assert!(host.destroy(8));
    let mut guest = host.restore(9, &uuid(7));
    assert_eq!(guest.pcr(16), reset, "after a second restore");
    host.shut_down(guest, Reason::Reboot);
    let mut guest = host.boot(10, &uuid(7));
    assert_eq!(guest.pcr(16), reset, "after the reboot");
}

/// Finding 2 and case C11: the mark of a save outlived it, and the next boot had the old PCRs.
#[test]
fn a_checkpoint_is_no_save() {
    let Some(host) = Host::new() else { return };
    let mut guest = host.boot(7, &uuid(7));
    let reset = guest.pcr(16);
    guest.done(&extend(16));
    host.suspend(7);
    host.resume(7);

    // Its TPM hears no more of it until it reboots.
    std::thread::sleep(Duration::from_millis(300));
    host.shut_down(guest, Reason::Reboot);
    let mut guest = host.boot(8, &uuid(7));
    assert_eq!(guest.pcr(16), reset, "after the reboot");
}

/// The same: a guest with a fixed uuid is saved, and then not restored but booted.
#[test]
fn a_boot_is_no_restore() {
    let Some(host) = Host::new() else { return };
    let mut guest = host.boot(7, &uuid(7));
    let reset = guest.pcr(16);
    guest.done(&extend(16));
    assert!(host.save(guest));
    let mut guest = host.boot(8, &uuid(7));
    assert_eq!(guest.pcr(16), reset, "after the boot");
    // Nor is a TPM that a guest gets while it runs.
    guest.done(&extend(16));
    assert!(host.save(guest));
    let mut guest = host.boot(9, &uuid(9));
    guest.done(&GET_RANDOM);
    host.detach(9);
    host.hypervisor.set_domain(9, Domain::Running);
    host.attach(9, &uuid(7));
    let mut guest = crate::guest::Guest::new(&host, 9);
    guest.connect();
    assert_eq!(guest.pcr(16), reset, "after vtpm-attach");
}

/// What the TPM had in memory is not there: after an older checkpoint, and after a plain `xl migrate`.
#[test]
fn a_restore_without_the_tpm_is_told() {
    let Some(host) = Host::new() else { return };
    let mut guest = host.boot(7, &uuid(7));
    guest.done(&extend(16));
    // `xl save -c`; and later the domain ends, and the image is restored.
    host.suspend(7);
    host.resume(7);
    host.shut_down(guest, Reason::Poweroff);
    let guest = host.restore(8, &uuid(7));
    assert!(host
        .log()
        .contains("its TPM has been used since it was saved"));
    drop(guest);
    assert!(host.destroy(8));

    host.configure("[tpm]\nrestore-without-tpm = \"refuse\"");
    host.end_manager(Signal::Term);
    host.start();
    let wanted = [(7, "and is newer"), (9, "is not on this host")];
    for (domid, (number, wanted)) in (20..).zip(wanted) {
        host.add_restored(domid, &uuid(number));
        assert!(wait_for(LIMIT, || host.backend_state(domid).is_none()));
        assert!(host.error(domid).contains(wanted), "{}", host.error(domid));
        host.destroy(domid);
    }
    let mut guest = host.boot(30, &uuid(7));
    guest.done(&extend(16));
    let extended = guest.pcr(16);
    assert!(host.save(guest));
    assert_eq!(host.restore(31, &uuid(7)).pcr(16), extended, "after a save");
}

#[test]
fn a_crash_and_a_destroy_are_no_save() {
    let Some(host) = Host::new() else { return };
    let mut guest = host.boot(7, &uuid(7));
    let reset = guest.pcr(16);
    guest.done(&extend(16));
    host.shut_down(guest, Reason::Crash);
    let mut guest = host.boot(8, &uuid(7));
    assert_eq!(guest.pcr(16), reset, "after the crash");
    guest.done(&extend(16));
    drop(guest);
    // xl destroy: the domain runs until its devices are gone.
    assert!(host.destroy(8));
    let mut guest = host.boot(9, &uuid(7));
    assert_eq!(guest.pcr(16), reset, "after the destroy");
}

/// Finding 6: Closed was shown before the state was stored.
#[test]
fn closed_comes_after_the_state_is_stored() {
    let Some(host) = Host::new() else { return };
    let mut guest = host.boot(7, &uuid(7));
    guest.done(&extend(16));
    let extended = guest.pcr(16);
    let swtpm = host.swtpm(7);
    host.suspend(7);
    drop(guest);
    signal(swtpm, Signal::Stop);
    host.ask_to_close(7);
    let is_closed = || host.backend_state(7).as_deref() == Some("6");
    assert!(
        !wait_for(Duration::from_secs(2), is_closed),
        "Closed, and nothing is stored"
    );
    signal(swtpm, Signal::Cont);
    assert!(host.destroy(7));
    let mut guest = host.restore(8, &uuid(7));
    assert_eq!(guest.pcr(16), extended, "after the restore");
}

/// Case C4: the state's file system is full when the guest is saved. The guest goes on.
#[test]
fn a_save_that_cannot_be_stored_does_not_close() {
    let Some(host) = Host::bare("") else { return };
    host.mount_small(&host.state_dir(), 600 << 10);
    host.start();
    let mut guest = host.boot(7, &uuid(7));
    guest.done(&extend(16));
    let extended = guest.pcr(16);
    let filler = host.state_dir().join("filler");
    // As much as there is room for.
    let _ = fs::write(&filler, vec![1; 1 << 20]);

    host.suspend(7);
    host.ask_to_close(7);
    assert!(!host.is_closed(7), "Closed, and nothing is stored");
    let node = format!("{}/hotplug-error", backend(7));
    let reason = host.store.read(&node).unwrap_or_default();
    assert!(
        reason.contains("space") || reason.contains("stor"),
        "{reason:?}"
    );

    // libxl gives up; xl resumes the guest, whose TPM is as it was.
    fs::remove_file(&filler).unwrap();
    host.store.write(&format!("{}/online", backend(7)), "1");
    host.resume(7);
    guest.reconnect();
    guest.done(&GET_RANDOM);
    assert_eq!(guest.pcr(16), extended, "after the failed save");
    host.hypervisor.set_domain(7, Domain::Running);
}

#[test]
fn a_tpm_1_2_is_saved_too() {
    let Some(host) = Host::bare("[tpm]\nversion = \"1.2\"") else {
        return;
    };
    host.start();
    let read = [0, 0xc1, 0, 0, 0, 14, 0, 0, 0, 0x15, 0, 0, 0, 10];
    let mut extend = vec![0, 0xc1, 0, 0, 0, 34, 0, 0, 0, 0x14, 0, 0, 0, 10];
    extend.extend_from_slice(&[1; 20]);

    let mut guest = host.boot(7, &uuid(7));
    let reset = guest.done(&read);
    guest.done(&extend);
    let extended = guest.done(&read);
    assert!(host.save(guest));
    let mut guest = host.restore(8, &uuid(7));
    assert_eq!(guest.done(&read), extended, "after the restore");
    host.shut_down(guest, Reason::Reboot);
    let mut guest = host.boot(9, &uuid(7));
    assert_eq!(guest.done(&read), reset, "after the reboot");
}
