// SPDX-License-Identifier: GPL-2.0

//! What a guest was told is stored is on the disk (finding 7).

use std::fs::{self, File};
use std::time::{Duration, Instant};

use crate::guest::{Guest, Outcome};
use crate::host::{wait_for, Host, LIMIT};
use crate::hypervisor::Reason;
use crate::neighbours::Injected;
use crate::toolstack::uuid;
use crate::tpm::{code, increment, nv_define, nv_write, GET_RANDOM};

/// How long a disk takes to store something here.
const DISK: Duration = Duration::from_millis(400);

/// The response waits for the disk, so it has to be asked before.
#[test]
fn a_response_comes_after_the_state_is_durable() {
    let Some(host) = Host::new() else { return };
    let mut guest = host.boot(7, &uuid(7));
    guest.define_counter();
    let _slow = Injected::slow(&host.of_vtpm(7), "fsync,fdatasync,syncfs", 400);
    let took = |guest: &mut Guest, command: &[u8]| {
        let start = Instant::now();
        guest.done(command);
        start.elapsed()
    };
    for _ in 0..2 {
        let stored = took(&mut guest, &increment());
        assert!(stored >= DISK, "the response came after {stored:?}");
        // What stores nothing waits for nothing; a machine that is busy may.
        let random = (0..5).map(|_| took(&mut guest, &GET_RANDOM)).min().unwrap();
        assert!(random < DISK, "{random:?}");
    }
}

/// A state file that a crash of the machine left empty or short is refused by its name, and stays.
#[test]
fn a_broken_state_is_refused_and_kept() {
    for length in [0, 100] {
        let Some(host) = Host::new() else { return };
        let guest = host.boot(7, &uuid(7));
        drop(guest);
        assert!(host.destroy(7));
        let file = host.state_dir().join(uuid(7)).join("tpm2-00.permall");
        File::options()
            .write(true)
            .open(&file)
            .unwrap()
            .set_len(length)
            .unwrap();

        host.add(8, &uuid(7));
        let mut guest = Guest::new(&host, 8);
        let says_why = || host.error(8).contains("tpm2-00.permall");
        if wait_for(Duration::from_secs(5), || {
            host.backend_state(8).as_deref() == Some("2")
        }) {
            guest.offer();
        }
        assert!(
            wait_for(Duration::from_secs(5), says_why),
            "{length} bytes: {:?}",
            host.error(8)
        );
        assert_ne!(host.backend_state(8).as_deref(), Some("4"));
        assert_eq!(fs::metadata(&file).unwrap().len(), length);
    }
}

/// Where room is kept for the next write of the state.
fn kept(host: &Host) -> std::path::PathBuf {
    host.state_dir().join(uuid(7)).join("TMP2-00.permall")
}

/// Case C3: the state's file system is full. The room that is kept is enough for what the guest writes.
#[test]
fn a_full_disk_is_not_noticed() {
    let Some(host) = Host::bare("") else { return };
    host.mount_small(&host.state_dir(), 600 << 10);
    host.start();
    let mut guest = host.boot(7, &uuid(7));
    guest.done(&nv_define(0x0150_0002, 1_000));
    guest.define_counter();
    assert!(fs::metadata(kept(&host)).unwrap().len() > 4_000);
    // As much as there is room for.
    let _ = fs::write(host.state_dir().join("filler"), vec![1; 1 << 20]);
    for _ in 0..5 {
        guest.done(&nv_write(0x0150_0002, &[2; 1_000]));
        guest.done(&increment());
    }
    let counted = guest.counter();
    host.shut_down(guest, Reason::Poweroff);
    assert_eq!(host.boot(8, &uuid(7)).counter(), counted);
}

/// Case C3, without that room. What is done to a TPM 2.0 whose state cannot be written.
fn fill_the_disk(config: &str) -> Option<(Host, Guest)> {
    let host = Host::bare(config)?;
    host.mount_small(&host.state_dir(), 600 << 10);
    host.start();
    let mut guest = host.boot(7, &uuid(7));
    let mut neighbour = host.boot(8, &uuid(8));
    guest.done(&nv_define(0x0150_0002, 1_000));
    guest.define_counter();
    // Somebody has taken the room that is kept for the next write, too.
    let _ = fs::remove_file(kept(&host));
    let _ = fs::write(host.state_dir().join("filler"), vec![1; 1 << 20]);
    if let Outcome::Response(response) = guest.try_run(&nv_write(0x0150_0002, &[2; 1_000])) {
        assert_ne!(code(&response), 0, "stored, and there is no room");
    }
    neighbour.done(&GET_RANDOM);
    Some((host, guest))
}

/// The guest is told, and has lost nothing that was stored.
#[test]
fn a_full_disk_is_told() {
    let Some((host, mut guest)) = fill_the_disk("") else {
        return;
    };
    // libtpms goes into failure mode with the next command at the latest.
    let _ = guest.try_run(&GET_RANDOM);
    assert!(wait_for(LIMIT, || host.backend_state(7).as_deref()
        == Some("5")
        || host.backend_state(7).as_deref() == Some("6")));
    let state = host.state_dir().display().to_string();
    assert!(host.error(7).contains(&state), "{:?}", host.error(7));
    fs::remove_file(host.state_dir().join("filler")).unwrap();
    drop(guest);
    assert!(host.destroy(7));
    assert_eq!(host.boot(9, &uuid(7)).counter(), 1);
}

/// Where a TPM that died is to be started anew, it works again when there is room.
#[test]
fn a_full_disk_is_survived() {
    let Some((host, mut guest)) = fill_the_disk("[tpm]\non-death = \"restart\"") else {
        return;
    };
    let _ = guest.try_run(&GET_RANDOM);
    fs::remove_file(host.state_dir().join("filler")).unwrap();
    let works = wait_for(LIMIT, || match host.backend_state(7).as_deref() {
        Some("4") => {
            guest.submit(&increment());
            let outcome = guest.wait(Duration::from_secs(5));
            if outcome == Outcome::Timeout {
                guest.reconnect();
            }
            matches!(outcome, Outcome::Response(response) if code(&response) == 0)
        }
        Some("2") => {
            guest.offer();
            guest.await_backend("4");
            false
        }
        _ => {
            guest.show("6");
            false
        }
    });
    assert!(
        works,
        "no command works although there is room again: {:?}",
        host.error(7)
    );
    assert_eq!(guest.counter(), 2);
}
