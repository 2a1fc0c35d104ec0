// SPDX-License-Identifier: GPL-2.0

//! What a command, an event and a vTPM cost, counted.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::guest::Guest;
use crate::host::{signal, wait_for, Host, LIMIT};
use crate::neighbours::attach;
use crate::processes;
use crate::standins;
use crate::toolstack::uuid;
use crate::tpm::GET_RANDOM;

/// System calls of the I/O process for one command.
const CALLS: u64 = 6;

/// Private memory of a worker, its broker and its I/O process, in KiB: as it is installed, and as cargo test builds it.
const MEMORY: u64 = if cfg!(debug_assertions) { 2048 } else { 1024 };

/// A host whose swtpms are trivial ones.
fn trivial() -> Option<Host> {
    let host = Host::bare("")?;
    let made = standins::directory().join("permall");
    if !made.exists() {
        host.cli_ok(&["create-state", &uuid(1)]);
        fs::copy(
            host.state_dir().join(uuid(1)).join("tpm2-00.permall"),
            &made,
        )
        .unwrap();
    }
    host.replace("/usr/bin/swtpm", &standins::directory().join("swtpm"));
    fs::write("/usr/lib/real/trivial", "").unwrap();
    fs::copy(&made, "/usr/lib/real/permall").unwrap();
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    fs::set_permissions("/usr/lib/real/permall", readable).unwrap();
    let find = "while [ $# -gt 0 ]; do case $1 in --tpm-state|--tpmstate) dir=${2#dir=}; esac; shift; done";
    let copy = "cat /usr/lib/real/permall >${dir#file://}/tpm2-00.permall";
    host.wrap("/usr/bin/swtpm_setup", &format!("{find}\n{copy}"));
    host.start();
    Some(host)
}

/// Guests 100, 101 and so on, connected.
fn boot(host: &Host, n: u16) -> Vec<Guest> {
    for domid in 100..100 + n {
        host.add(domid, &uuid(domid));
    }
    (100..100 + n)
        .map(|domid| {
            let mut guest = Guest::new(host, domid);
            guest.connect();
            guest
        })
        .collect()
}

/// System calls of a vTPM's worker and I/O process during so many commands.
fn count_calls(host: &Host, guest: &mut Guest, commands: u64) -> BTreeMap<String, u64> {
    let domid = Some(guest.domid);
    let mut all = host.processes("serve", domid);
    all.extend(host.processes("io", domid));
    if all.is_empty() {
        all.push(host.manager());
    }
    let trace = host.path("trace");
    let mut strace = Command::new("strace");
    strace
        .args(["-f", "-q", "-c", "-U", "calls,name", "-o"])
        .arg(&trace);
    let mut child = attach(strace, &all);
    for _ in 0..commands {
        guest.done(&GET_RANDOM);
    }
    signal(child.id(), Signal::Int);
    child.wait().unwrap();
    let text = fs::read_to_string(&trace).unwrap();
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let calls = words.next()?.parse().ok()?;
            Some((words.next()?.to_owned(), calls)).filter(|(name, _)| name != "total")
        })
        .collect()
}

#[test]
fn a_command_costs_six_system_calls() {
    let Some(host) = Host::new() else { return };
    let mut guest = host.boot(7, &uuid(7));
    for _ in 0..20 {
        guest.done(&GET_RANDOM);
    }
    let commands = 160;
    let counts = count_calls(&host, &mut guest, commands);
    let total: u64 = counts.values().sum();
    println!("{commands} commands: {total} calls, {counts:?}");
    // Some for what is not a command: timers, and the attaching.
    assert!(total <= CALLS * commands + commands / 8, "{counts:?}");
}

/// What is not shared with others of a process, in KiB.
fn private_memory(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let lines = text.lines().filter(|line| line.starts_with("Private_"));
    let sizes = lines.map(|line| line.split_ascii_whitespace().nth(1).unwrap());
    sizes.map(|size| size.parse::<u64>().unwrap()).sum()
}

#[test]
fn a_vtpm_costs_a_mebibyte() {
    let Some(host) = Host::new() else { return };
    let mut guest = host.boot(7, &uuid(7));
    let _other = host.boot(8, &uuid(8));
    guest.done(&GET_RANDOM);
    let all = [host.worker(7), host.broker(7), host.io(7)].map(private_memory);
    println!("worker, broker and I/O process: {all:?} KiB");
    assert!(all.iter().sum::<u64>() <= MEMORY, "{all:?} KiB");
}

/// Calls into Xen's libraries, once none has come for a while: the manager looks at its connection every two
/// seconds, and whatever else follows from what was done has followed.
fn calls_so_far(host: &Host) -> u64 {
    let mut calls = host.faults.total();
    let none_came = wait_for(LIMIT, || {
        std::thread::sleep(Duration::from_millis(300));
        let before = std::mem::replace(&mut calls, host.faults.total());
        before == calls
    });
    assert!(none_came, "the calls into Xen's libraries do not end");
    calls
}

/// Calls into Xen's libraries of a vTPM's life, and those for forty events of it.
fn cost_of_a_life(host: &Host) -> (u64, u64) {
    let begin = calls_so_far(host);
    let guest = host.boot(50, &uuid(50));
    let mut concerned = vec![host.manager(), host.xenstored.id()];
    concerned.extend(host.of_vtpm(50));
    // Not all: a look at a thousand takes longer than the manager sleeps.
    let settle = || processes::settle(&concerned);
    settle();
    let before = calls_so_far(host);
    for round in 0..20 {
        // One by one: the worker looks once for several that arrive together.
        guest.show("4");
        settle();
        let shutdown = "/local/domain/50/control/shutdown";
        host.store
            .write(shutdown, if round % 2 == 0 { "x" } else { "" });
        settle();
    }
    let after = calls_so_far(host);
    drop(guest);
    assert!(host.destroy(50));
    (before - begin + calls_so_far(host) - after, after - before)
}

/// Findings 3 and 9: what an event, a start and an end cost does not grow with the number of vTPMs.
fn an_event_costs_the_same_with(others: u16) {
    let Some(host) = trivial() else { return };
    let mut costs = Vec::new();
    for n in [1, others] {
        let guests = boot(&host, n);
        // What arrives together differs from life to life.
        let lives: Vec<_> = (0..3).map(|_| cost_of_a_life(&host)).collect();
        let least = |of: fn(&(u64, u64)) -> u64| lives.iter().map(of).min().unwrap();
        costs.push((least(|life| life.0), least(|life| life.1)));
        for guest in guests {
            let domid = guest.domid;
            drop(guest);
            assert!(host.destroy(domid));
        }
    }
    println!("calls for a life and for events, with 1 and with {others} others: {costs:?}");
    let [(life, events), (life_of_many, events_of_many)] = costs[..] else {
        panic!("{costs:?}");
    };
    assert!(events_of_many * 100 <= events * 105, "{costs:?}");
    // Less than three calls for each of the others.
    assert!(life_of_many < life + 3 * u64::from(others), "{costs:?}");
}

#[test]
fn an_event_costs_what_it_costs_with_one() {
    an_event_costs_the_same_with(15);
}

#[test]
#[ignore = "takes minutes: make test-deep"]
fn an_event_costs_the_same_with_a_thousand() {
    an_event_costs_the_same_with(1_000);
}

/// The processor time that the kernel has counted for these processes, in microseconds.
fn processor_time(pids: &[u32]) -> u64 {
    let of = |pid: &u32| -> u64 {
        let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap();
        text.split(' ').next().unwrap().parse::<u64>().unwrap() / 1_000
    };
    pids.iter().map(of).sum()
}

/// A line of the table of costs in Documentation/xen-vtpmd.rst, with one of `n` guests at work.
fn print_costs(host: &Host, n: u16) {
    const COMMANDS: u64 = 5_000;
    let mut guests = boot(host, n);
    calls_so_far(host);
    let guest = &mut guests[0];
    guest.done(&GET_RANDOM);
    let (worker, io, swtpm) = (host.worker(100), host.io(100), host.swtpm(100));
    let of_daemon = [host.manager(), worker, io];
    let before = (processor_time(&of_daemon), processor_time(&[swtpm]));
    let mut times: Vec<Duration> = (0..COMMANDS)
        .map(|_| {
            let start = Instant::now();
            guest.done(&GET_RANDOM);
            start.elapsed()
        })
        .collect();
    let used = processor_time(&of_daemon) - before.0;
    let used_by_swtpm = processor_time(&[swtpm]) - before.1;
    times.sort();
    let each = |time: u64| time as f64 / COMMANDS as f64;
    let calls: u64 = count_calls(host, guest, 500).values().sum();
    let (life, events) = cost_of_a_life(host);
    println!(
        "{n} vTPMs: {:.2} calls, {:.1} us of the daemon, {:.1} us of swtpm, median {:?}; worker {} KiB, \
         broker {} KiB, I/O process {} KiB, swtpm {} KiB, manager {} KiB; {life} calls into libraries for a life, {:.2} \
         for an event",
        calls as f64 / 500.0,
        each(used),
        each(used_by_swtpm),
        times[times.len() / 2],
        private_memory(worker),
        private_memory(host.broker(100)),
        private_memory(io),
        private_memory(swtpm),
        private_memory(host.manager()),
        events as f64 / 40.0,
    );
}

/// With `XEN_VTPMD=` a release build: what cargo test builds is slower, and larger.
#[test]
#[ignore = "takes minutes: make test-deep"]
fn the_table_of_costs() {
    for n in [1, 8] {
        let Some(host) = Host::new() else { return };
        print_costs(&host, n);
    }
    // With a stand-in for swtpm.
    let Some(host) = trivial() else { return };
    print_costs(&host, 1_000);
}

/// The manager's start, and its cost for each event, with many live workers.
fn many(n: u16, start_limit: Duration) {
    let Some(host) = trivial() else { return };
    let begin = Instant::now();
    let mut guests = boot(&host, n);
    println!("{n} vTPMs connected in {:?}", begin.elapsed());
    host.end_manager(Signal::Kill);
    let start = Instant::now();
    host.start();
    let knows_all = || {
        let report = host.cli(&["status", "--json"]).stdout;
        let report: serde_json::Value = serde_json::from_slice(&report).unwrap_or_default();
        report["vtpms"]
            .as_array()
            .is_some_and(|vtpms| vtpms.len() == usize::from(n))
    };
    assert!(wait_for(LIMIT, knows_all));
    let took = start.elapsed();
    println!("a manager found {n} live workers in {took:?}");
    for guest in &mut guests {
        guest.done(&GET_RANDOM);
    }
    let mut new = host.boot(50, &uuid(50));
    new.done(&GET_RANDOM);
    assert!(took < start_limit, "{took:?}");
}

#[test]
fn a_manager_starts_with_live_workers() {
    many(30, Duration::from_secs(2));
}

#[test]
#[ignore = "takes minutes: make test-deep"]
fn a_manager_starts_with_a_thousand_live_workers() {
    many(1_000, Duration::from_secs(2));
}
