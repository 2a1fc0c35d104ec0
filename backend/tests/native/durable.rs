// SPDX-License-Identifier: GPL-2.0

//! What a guest was told is stored is on the disk (finding 7).

use std::fs::{self, File};
use std::time::{Duration, Instant};

use crate::guest::{Guest, Outcome};
use crate::host::{wait_for, Host, LIMIT};
use crate::neighbours::Slow;
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
    let _slow = Slow::new(&host.of_vtpm(7), "fsync,fdatasync,syncfs", 400);
    let took = |guest: &mut Guest, command: &[u8]| {
        let start = Instant::now();
        guest.done(command);
        start.elapsed()
    };
    for _ in 0..2 {
        let stored = took(&mut guest, &increment());
        assert!(stored >= DISK, "the response came after {stored:?}");
        // What stores nothing waits for nothing.
        let random = took(&mut guest, &GET_RANDOM);
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

/// Case C3: the state's file system is full. The TPM works again when there is room.
#[test]
fn a_full_disk_is_survived() {
    let Some(host) = Host::bare("") else { return };
    host.mount_small(&host.state_dir(), 600 << 10);
    host.start();
    let mut guest = host.boot(7, &uuid(7));
    let mut neighbour = host.boot(8, &uuid(8));
    guest.done(&nv_define(0x0150_0002, 1_000));
    guest.define_counter();
    let filler = host.state_dir().join("filler");
    let _ = fs::write(&filler, vec![1; 1 << 20]);
    if let Outcome::Response(response) = guest.try_run(&nv_write(0x0150_0002, &[2; 1_000])) {
        assert_ne!(code(&response), 0, "stored, and there is no room");
    }
    neighbour.done(&GET_RANDOM);
    fs::remove_file(&filler).unwrap();

    let works = wait_for(Duration::from_secs(15), || {
        if host.backend_state(7).as_deref() != Some("4") {
            guest.reconnect();
        }
        guest.submit(&increment());
        match guest.wait(Duration::from_secs(5)) {
            Outcome::Response(response) => code(&response) == 0,
            Outcome::Abandoned => false,
            Outcome::Timeout => {
                guest.reconnect();
                false
            }
        }
    });
    assert!(works, "no command works although there is room again");
    assert!(guest.counter() >= 2);
    assert!(wait_for(LIMIT, || guest.try_run(&GET_RANDOM) != Outcome::Abandoned));
}
