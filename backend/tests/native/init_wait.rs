// SPDX-License-Identifier: GPL-2.0

//! InitWait comes early (case C8): libxl waits ten seconds for it, whatever the making of a TPM, its start, or
//! another vTPM that has the state still takes.

use std::fs::File;
use std::time::{Duration, Instant};

use rustix::fs::{flock, FlockOperation};

use crate::guest::Guest;
use crate::host::{wait_for, Host, LIMIT};
use crate::takeover;
use crate::toolstack::{backend, uuid, LIBXL};
use crate::tpm::{extend, GET_RANDOM};

/// A worker's start takes less, and what it must not wait for takes longer, on a busy machine too.
const SOON: Duration = Duration::from_secs(8);

/// InitWait comes soon for each of these.
fn waits_soon(host: &Host, domids: &[u16]) {
    let start = Instant::now();
    for domid in domids {
        host.add(*domid, &uuid(*domid));
    }
    for domid in domids {
        host.await_state(*domid, "2");
    }
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
}

#[test]
fn does_not_wait_for_a_new_tpm() {
    let Some(host) = Host::bare("") else { return };
    host.wrap("/usr/bin/swtpm_setup", "sleep 9; exec $real \"$@\"");
    host.start();
    waits_soon(&host, &[7, 8, 9]);
    let mut guest = Guest::new(&host, 7);
    guest.connect();
    guest.done(&GET_RANDOM);
}

/// One that does not say what it can do is used for what each can.
#[test]
fn does_not_wait_for_an_swtpm_that_hangs_when_it_is_asked() {
    let Some(host) = Host::bare("") else { return };
    // swtpm_setup asks as well.
    host.cli_ok(&["create-state", &uuid(7)]);
    let script = "case $* in *print-capabilities*) exec sleep 1000;; esac; exec $real \"$@\"";
    host.wrap("/usr/bin/swtpm", script);
    host.start();
    waits_soon(&host, &[7]);
    let mut guest = Guest::new(&host, 7);
    guest.connect();
    guest.done(&GET_RANDOM);
    assert!(host.named("sleep").is_empty());
}

/// As while a guest is migrated: its other host lets go of the state after this one was asked for it.
#[test]
fn does_not_wait_for_the_state() {
    let Some(host) = Host::new() else { return };
    host.boot(7, &uuid(7)).done(&GET_RANDOM);
    assert!(host.destroy(7));
    let lock = host.state_dir().join(format!("{}.lock", uuid(7)));
    let lock = File::options().write(true).open(lock).unwrap();
    assert!(wait_for(LIMIT, || flock(
        &lock,
        FlockOperation::NonBlockingLockExclusive
    )
    .is_ok()));

    waits_soon(&host, &[7]);
    let mut guest = Guest::new(&host, 7);
    guest.offer();
    // Longer than the worker once waited.
    let connects = || host.backend_state(7).as_deref() != Some("2");
    assert!(!wait_for(LIBXL, connects), "{:?}", host.backend_state(7));
    drop(lock);
    guest.await_backend("4");
    guest.done(&GET_RANDOM);
}

/// A migration to the same host: the destination's vTPM is there before the source's is gone.
#[test]
fn of_a_migrated_guest_comes_before_the_state_does() {
    let Some(host) = Host::new() else { return };
    let mut source = host.boot(7, &uuid(7));
    source.done(&extend(16));
    let extended = source.pcr(16);
    host.suspend(7);
    host.add_restored(8, &uuid(7));
    host.await_state(8, "2");
    drop(source);
    assert!(host.destroy(7));
    let mut guest = Guest::new(&host, 8);
    guest.connect();
    assert_eq!(guest.pcr(16), extended);
}

/// xl is told at once, and by whom the state is used.
#[test]
fn does_not_come_for_the_tpm_of_a_guest_that_runs() {
    let Some(host) = Host::new() else { return };
    let mut guest = host.boot(7, &uuid(7));
    guest.done(&GET_RANDOM);
    host.add(8, &uuid(7));
    assert!(wait_for(SOON, || host.backend_state(8).is_none()));
    let node = format!("{}/hotplug-error", backend(8));
    let reason = host.store.read(&node).unwrap_or_default();
    assert!(reason.contains("in use by vtpm 7/0"), "{reason:?}");
    host.destroy(8);
    guest.done(&GET_RANDOM);
}

/// A guest is not left waiting for ever.
#[test]
fn of_a_state_that_nobody_lets_go_of_ends() {
    let Some(host) = Host::new() else { return };
    std::fs::create_dir_all(host.state_dir()).unwrap();
    let lock = File::create(host.state_dir().join(format!("{}.lock", uuid(7)))).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    let mut guest = host.create(7, &uuid(7));
    guest.offer();
    let closes = || host.backend_state(7).as_deref() == Some("6");
    // The worker may begin to count before this, or after it.
    takeover::pass(&host, 50);
    assert!(!wait_for(Duration::from_secs(1), closes));
    takeover::pass(&host, 115);
    assert!(wait_for(LIMIT, closes));
    assert!(host.error(7).contains("is in use"), "{}", host.error(7));
}
