// SPDX-License-Identifier: GPL-2.0

//! The manager's bad days: no guest notices.

use std::fs;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{getrlimit, prlimit, Pid, Resource, Rlimit, Signal};

use crate::guest::Outcome;
use crate::host::{is_alive, signal, wait_for, Host, LIMIT};
use crate::toolstack::uuid;
use crate::tpm::{extend, GET_RANDOM};

/// Finding 1: an error of xs_check_watch ended every TPM.
#[test]
fn an_error_of_a_watch_ends_no_tpm() {
    let Some(host) = Host::new() else { return };
    let mut guest = host.boot(7, &uuid(7));
    guest.done(&extend(16));
    let (extended, swtpm) = (guest.pcr(16), host.swtpm(7));
    for kind in ["run", "serve"] {
        host.faults.fail(kind, "xs_check_watch", 1, Errno::INVAL);
        guest.show("4");
        host.add(8, &uuid(8));
        host.keep_manager();
        host.await_state(8, "2");
        host.detach(8);
        assert_eq!(guest.pcr(16), extended, "after an error in `{kind}`");
        assert!(is_alive(swtpm));
    }
}

/// Finding 27: the end of xenstored was not noticed.
#[test]
fn the_end_of_xenstored_is_survived() {
    let Some(mut host) = Host::new() else { return };
    drop(host.boot(7, &uuid(7)));
    host.replace_xenstored();
    // What it shows after that is libxl's business to repair; a new guest has its vTPM.
    host.boot(8, &uuid(8)).done(&GET_RANDOM);
    host.keep_manager();
    let log = host.log();
    let told = log.matches("trying again until it works").count();
    assert!(told <= 2, "{told} lines: {log}");
}

#[test]
fn a_manager_that_is_stopped_or_killed_is_not_missed() {
    let Some(host) = Host::new() else { return };
    let mut guest = host.boot(7, &uuid(7));
    signal(host.manager(), Signal::Stop);
    guest.done(&GET_RANDOM);
    guest.reconnect();
    guest.done(&extend(16));
    let extended = guest.pcr(16);
    host.end_manager(Signal::Kill);
    guest.done(&GET_RANDOM);
    guest.reconnect();
    host.start();
    assert!(wait_for(LIMIT, || host
        .status(7)
        .is_some_and(|vtpm| vtpm["uuid"] == uuid(7))));
    assert_eq!(guest.pcr(16), extended);
    host.detach(7);
}

/// Finding 16: two managers at once.
#[test]
fn a_second_manager_is_refused() {
    let Some(host) = Host::new() else { return };
    let mut guest = host.boot(7, &uuid(7));
    let first = host.manager();
    let socket = "/run/xen-vtpmd/control.sock";
    assert!(wait_for(LIMIT, || host.cli(&["status"]).status.success()));
    // Whoever looks for the first one by its socket does not see it now.
    fs::rename(socket, "/run/xen-vtpmd/away").unwrap();
    let output = host.cli(&["run"]);
    let reason = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{reason}");
    assert!(reason.contains("running already"), "{reason}");
    assert!(is_alive(first));
    guest.done(&GET_RANDOM);
}

/// Finding 17: a restart with another configuration ended TPMs.
#[test]
fn a_new_configuration_is_for_vtpms_to_come() {
    let Some(host) = Host::new() else { return };
    let mut guest = host.boot(7, &uuid(7));
    guest.done(&extend(16));
    let (extended, swtpm) = (guest.pcr(16), host.swtpm(7));
    host.configure(&format!("[vtpm.\"{}\"]\nversion = \"1.2\"", uuid(7)));
    host.end_manager(Signal::Kill);
    host.start();
    // A successor reads the new one as well.
    for worker in host.processes("serve", Some(7)) {
        signal(worker, Signal::Kill);
    }
    assert!(wait_for(LIMIT, || host
        .status(7)
        .is_some_and(|vtpm| vtpm["pid"] == swtpm)));
    assert!(is_alive(swtpm));
    assert_eq!(guest.pcr(16), extended);
}

/// Finding 22: SIGTERM gave a command that was under way two seconds.
#[test]
fn a_command_outlives_the_manager() {
    let Some(host) = Host::new() else { return };
    let mut guest = host.boot(7, &uuid(7));
    let swtpm = host.swtpm(7);
    signal(swtpm, Signal::Stop);
    guest.submit(&GET_RANDOM);
    std::thread::sleep(Duration::from_millis(200));
    host.end_manager(Signal::Term);
    host.start();
    std::thread::sleep(Duration::from_millis(500));
    signal(swtpm, Signal::Cont);
    let outcome = guest.wait(LIMIT);
    assert!(matches!(outcome, Outcome::Response(_)), "{outcome:?}");
}

/// Finding 24: without a descriptor left, a client made the loop spin.
#[test]
fn no_descriptor_left_is_no_spinning() {
    let Some(host) = Host::new() else { return };
    assert!(wait_for(LIMIT, || host.cli(&["status"]).status.success()));
    let manager = host.manager();
    let used: Vec<u64> = fs::read_dir(format!("/proc/{manager}/fd"))
        .unwrap()
        .map(|entry| {
            entry
                .unwrap()
                .file_name()
                .to_str()
                .unwrap()
                .parse()
                .unwrap()
        })
        .collect();
    let free = (0..).find(|fd| !used.contains(fd)).unwrap();
    let pid = Pid::from_raw(i32::try_from(manager).unwrap());
    let limit = Rlimit {
        current: Some(free),
        maximum: getrlimit(Resource::Nofile).maximum,
    };
    let before = prlimit(pid, Resource::Nofile, limit).unwrap();
    let clients = [(); 3].map(|()| UnixStream::connect("/run/xen-vtpmd/control.sock").unwrap());
    let start = cpu_time(manager);
    std::thread::sleep(Duration::from_secs(2));
    let used = cpu_time(manager) - start;
    assert!(used < Duration::from_millis(300), "{used:?} in 2 s");
    drop(clients);
    prlimit(pid, Resource::Nofile, before).unwrap();
    let start = Instant::now();
    assert!(
        wait_for(LIMIT, || host.cli(&["status"]).status.success()),
        "{:?}",
        start.elapsed()
    );
}

/// The processor time that a process has used.
pub(crate) fn cpu_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit_once(") ").unwrap().1.split(' ');
    let ticks: u64 = fields
        .skip(11)
        .take(2)
        .map(|field| field.parse::<u64>().unwrap())
        .sum();
    Duration::from_millis(ticks * 10)
}

/// What `stop` closed: the next manager opens it again where the administrator wants fresh TPMs. Otherwise it
/// stays closed, since a running guest could forge the past of a TPM with fresh PCRs.
#[test]
fn what_was_stopped_is_opened_again_where_that_is_wanted() {
    for (on_death, shown) in [("restart", "2"), ("closed", "6")] {
        let config = format!("[tpm]\non-death = \"{on_death}\"\n");
        let Some(host) = Host::bare(&config) else {
            return;
        };
        host.start();
        let guest = host.boot(7, &uuid(7));
        host.cli_ok(&["stop"]);
        host.manager_ended(LIMIT).expect("the manager ends");
        guest.show("6");
        assert_eq!(host.backend_state(7).as_deref(), Some("6"), "{on_death}");
        host.start();
        assert!(wait_for(LIMIT, || host
            .log()
            .contains("closed by a former worker")));
        assert!(wait_for(LIMIT, || host
            .processes("serve", Some(7))
            .is_empty()
            == (shown == "6")));
        host.await_state(7, shown);
    }
}
