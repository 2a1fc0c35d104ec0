// SPDX-License-Identifier: GPL-2.0

//! The log: nobody fills it, and nobody writes somebody else's lines.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::host::{signal, wait_for, Host, LIMIT};
use crate::toolstack::uuid;

/// What a terminal and journald would take for something else.
const FORGED: &str = "x\n<0>xen-vtpmd: forged\x1b[2J\n";

/// Finding 9a: a guest that goes round and round wrote a line each time.
#[test]
fn a_guest_does_not_fill_the_log() {
    let Some(host) = Host::new() else { return };
    let guest = host.boot(7, &uuid(7));
    let before = host.log().len();
    let (start, mut rounds) = (Instant::now(), 0);
    guest.show("6");
    guest.await_backend("2");
    host.store.write(&guest.node("ring-ref"), [1; 2_000]);
    while start.elapsed() < Duration::from_secs(4) && rounds < 60 {
        let soon = Duration::from_secs(1);
        guest.show("3");
        wait_for(soon, || host.backend_state(7).as_deref() == Some("5"));
        guest.show("6");
        wait_for(soon, || host.backend_state(7).as_deref() == Some("2"));
        rounds += 1;
    }
    let log = host.log().split_off(before);
    assert!(log.lines().count() <= 25, "{rounds} rounds:\n{log:.4000}");
    assert!(log.len() <= 30_000, "{rounds} rounds: {} bytes", log.len());
    assert!(host.error(7).len() < 3_000);
}

/// The same: what it does first does not hide what comes then.
#[test]
fn the_end_of_an_swtpm_is_always_logged() {
    let Some(host) = Host::new() else { return };
    let mut guest = host.boot(7, &uuid(7));
    // More lines than its limit allows in a minute; each connection waits longer than the one before.
    for _ in 0..6 {
        guest.reconnect();
    }
    let before = host.log().len();
    signal(host.swtpm(7), Signal::Kill);
    let is_told = || {
        let log = host.log().split_off(before);
        log.contains("signal: 9") || log.contains("SIGKILL")
    };
    assert!(wait_for(Duration::from_secs(5), is_told));
}

/// Finding 13: the text of a lock file, which is swtpm's to write, was printed as it was.
#[test]
fn the_text_of_a_lock_is_nobodys_message() {
    let Some(host) = Host::new() else { return };
    let _guest = host.boot(7, &uuid(7));
    let mut locks = Vec::new();
    for directory in [host.state_dir(), host.state_dir().join(uuid(7))] {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|name| name == "lock") || path.ends_with(".lock") {
                fs::write(&path, FORGED).unwrap();
                locks.push(path);
            }
        }
    }
    assert!(!locks.is_empty());
    let file = host.path("export").display().to_string();
    let output = host.cli(&["export", &uuid(7), &file]);
    assert!(!output.status.success());
    host.add(8, &uuid(7));
    let has_failed = || !host.error(8).is_empty();
    wait_for(LIMIT, has_failed);
    for text in [
        String::from_utf8_lossy(&output.stderr).into_owned(),
        host.log(),
        host.error(8),
    ] {
        assert!(!text.contains('\x1b') && !text.contains("\n<0>"), "{text}");
    }
}
