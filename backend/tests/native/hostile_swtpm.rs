// SPDX-License-Identifier: GPL-2.0

//! An swtpm that somebody took over (standins/swtpm.c): it is in its sandbox, and hurts its own vTPM.

use std::fs;
use std::time::Duration;

use rustix::process::Signal;

use crate::guest::Guest;
use crate::host::{is_alive, wait_for, Host, LIMIT};
use crate::manager::cpu_time;
use crate::neighbours::Neighbours;
use crate::standins;
use crate::toolstack::uuid;

/// What the processes of the daemon may log of it.
const LOG: usize = 300 << 10;

/// The behaviour is carried out once the TPM is on.
fn misbehaves(behaviour: &str) {
    let Some(host) = Host::bare("") else { return };
    host.replace("/usr/bin/swtpm", &standins::directory().join("swtpm"));
    host.start();
    let mut neighbours = Neighbours::boot(&host);
    host.cli_ok(&["create-state", &uuid(7)]);
    let directory = host.state_dir().join(uuid(7));
    fs::write(directory.join("behaviour"), behaviour).unwrap();
    let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(&directory).unwrap());
    std::os::unix::fs::chown(directory.join("behaviour"), Some(owner), Some(owner)).unwrap();

    host.add(7, &uuid(7));
    if wait_for(LIMIT, || host.backend_state(7).as_deref() != Some("1")) {
        Guest::new(&host, 7).offer();
    }
    std::thread::sleep(Duration::from_millis(500));
    neighbours.are_fine();
    host.end_manager(Signal::Kill);
    host.start();
    assert!(wait_for(LIMIT, || host.status(20).is_some()));
    neighbours.are_fine();
    let manager = host.manager();
    let used = cpu_time(manager);
    std::thread::sleep(Duration::from_secs(1));
    let used = cpu_time(manager) - used;
    assert!(
        used < Duration::from_millis(300),
        "the manager used {used:?} of 1 s"
    );

    assert!(host.destroy(7), "not closed");
    neighbours.are_fine();
    assert!(is_alive(manager));
    let log = host.log();
    assert!(log.len() < LOG, "{} bytes of log", log.len());
    assert!(
        !log.contains('\x1b') && !log.contains("\n<0>"),
        "a line that swtpm forged"
    );
}

#[test]
fn takes_memory() {
    misbehaves("memory");
}

#[test]
fn takes_tasks() {
    misbehaves("tasks");
}

#[test]
fn takes_descriptors() {
    misbehaves("descriptors");
}

#[test]
fn takes_disk() {
    misbehaves("disk");
}

#[test]
fn floods_its_lock() {
    misbehaves("lock");
}

/// Finding 25.
#[test]
fn floods_the_log() {
    misbehaves("log");
}

/// Finding 4.
#[test]
fn floods_its_control_channel() {
    misbehaves("control");
}

#[test]
fn floods_its_data_channel() {
    misbehaves("data");
}

#[test]
fn stops_reading() {
    misbehaves("silent");
}
