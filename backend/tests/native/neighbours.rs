// SPDX-License-Identifier: GPL-2.0

//! One vTPM's trouble is its own: the others have their TPMs at their usual speed meanwhile.

use std::fs::{self, File};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{flock, FlockOperation};
use rustix::io::Errno;
use rustix::process::Signal;

use crate::guest::{Guest, Outcome};
use crate::host::{signal, wait_for, Host, LIMIT};
use crate::toolstack::uuid;
use crate::tpm::{nv_define, nv_write, GET_RANDOM};

/// No command of a guest with a healthy TPM takes as long.
const SLOW: Duration = Duration::from_secs(1);

/// The neighbours: each has a TPM that works.
pub(crate) fn boot_neighbours(host: &Host) -> Vec<Guest> {
    let guests: Vec<u16> = (20..23).collect();
    for domid in &guests {
        host.add(*domid, &uuid(*domid));
    }
    guests
        .into_iter()
        .map(|domid| {
            host.await_state(domid, "2");
            let mut guest = Guest::new(host, domid);
            guest.connect();
            guest.done(&GET_RANDOM);
            guest
        })
        .collect()
}

/// They work meanwhile, and connect anew; the command line answers as well.
pub(crate) fn are_fine(host: &Host, neighbours: &mut [Guest]) {
    thread::scope(|scope| {
        for guest in neighbours.iter_mut() {
            scope.spawn(|| {
                for round in 0..30 {
                    let start = Instant::now();
                    guest.submit(&GET_RANDOM);
                    let outcome = guest.wait(LIMIT);
                    let took = start.elapsed();
                    assert!(matches!(outcome, Outcome::Response(_)), "{outcome:?}");
                    assert!(took < SLOW, "domain {}: {took:?}", guest.domid);
                    if round == 15 {
                        guest.reconnect();
                    }
                }
            });
        }
    });
    let start = Instant::now();
    host.cli_ok(&["status"]);
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "status took {:?}",
        start.elapsed()
    );
}

#[test]
fn of_an_swtpm_that_does_not_respond() {
    let Some(host) = Host::new() else { return };
    let mut neighbours = boot_neighbours(&host);
    let mut guest = host.boot(7, &uuid(7));
    let swtpm = host.swtpm(7);
    signal(swtpm, Signal::Stop);
    guest.submit(&GET_RANDOM);
    are_fine(&host, &mut neighbours);
    // It is ended in the end, and its guest gets its other end.
    host.ask_to_close(7);
    are_fine(&host, &mut neighbours);
    assert!(wait_for(LIMIT, || host.backend_state(7).as_deref() == Some("6")));
}

/// Finding 5: everybody waited for a lock that another host may hold.
#[test]
fn of_a_lock_that_is_held() {
    let Some(host) = Host::bare("") else { return };
    host.wrap("/usr/bin/swtpm_setup", "sleep 1; exec $real \"$@\"");
    host.start();
    let mut neighbours = boot_neighbours(&host);
    host.add(7, &uuid(7));
    assert!(wait_for(LIMIT, || !host.named("sleep").is_empty()));
    let held = File::options()
        .append(true)
        .create(true)
        .open(host.state_dir().join(".lock"))
        .unwrap();
    flock(&held, FlockOperation::LockExclusive).unwrap();
    let is_made = || host.named("sleep").is_empty() && host.named("swtpm_setup").is_empty();
    wait_for(Duration::from_secs(5), is_made);
    thread::sleep(Duration::from_millis(500));
    are_fine(&host, &mut neighbours);
    drop(held);
    let mut guest = Guest::new(&host, 7);
    guest.connect();
    guest.done(&GET_RANDOM);
}

/// A file system that takes its time to store.
#[test]
fn of_a_disk_that_is_slow() {
    let Some(host) = Host::new() else { return };
    let mut neighbours = boot_neighbours(&host);
    let mut guest = host.boot(7, &uuid(7));
    guest.done(&nv_define(0x0150_0002, 64));
    let processes = host.of_vtpm(7);
    let _slow = Slow::new(
        &processes,
        "fsync,fdatasync,syncfs,rename,renameat,renameat2",
        2_000,
    );
    guest.submit(&nv_write(0x0150_0002, &[1; 64]));
    are_fine(&host, &mut neighbours);
    assert!(matches!(guest.wait(LIMIT), Outcome::Response(_)));
}

/// Findings 8 and 26: a quota that is used up, or an error of xenstored's that passes.
#[test]
fn of_xenstored_that_refuses() {
    let Some(host) = Host::new() else { return };
    let mut neighbours = boot_neighbours(&host);
    let mut guest = host.boot(7, &uuid(7));
    for (call, error) in [
        ("xs_write", Errno::NOSPC),
        ("xs_read", Errno::IO),
        ("xs_read", Errno::NOMEM),
    ] {
        for kind in ["run", "serve"] {
            host.faults.fail(kind, call, 1, error);
        }
        guest.show("4");
        guest.reconnect();
        guest.done(&GET_RANDOM);
    }
    are_fine(&host, &mut neighbours);
}

/// strace that makes system calls of some processes slow, until it is dropped.
pub(crate) struct Slow(std::process::Child);

impl Slow {
    /// Each of these calls takes this many milliseconds more.
    pub(crate) fn new(processes: &[u32], calls: &str, ms: u32) -> Self {
        let mut strace = std::process::Command::new("strace");
        strace.args(["-f", "-q", "-o", "/dev/null", "-e"]);
        strace.arg(format!("inject={calls}:delay_enter={}", ms * 1_000));
        for pid in processes {
            strace.arg("-p").arg(pid.to_string());
        }
        let child = strace.spawn().unwrap();
        let is_traced = |pid: &u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            !status.contains("TracerPid:\t0\n")
        };
        assert!(wait_for(LIMIT, || processes.iter().all(is_traced)));
        Self(child)
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        // strace lets go of its processes when it is asked to end.
        signal(self.0.id(), Signal::Term);
        let _ = self.0.wait();
    }
}
