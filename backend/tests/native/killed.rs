// SPDX-License-Identifier: GPL-2.0

//! Processes that are killed: a successor comes, and the guest keeps its TPM.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::guest::{Guest, Outcome};
use crate::host::{is_alive, signal, wait_for, Host, LIMIT};
use crate::neighbours::Injected;
use crate::toolstack::uuid;
use crate::tpm::{code, create_primary, extend, increment, GET_RANDOM};

/// A successor is there, and serves, after this long; or, on a machine that is busy, after so many times what a
/// command of the command line takes there, which is ten milliseconds else.
const SUCCESSOR: Duration = Duration::from_secs(1);
const COMMANDS: u32 = 20;

/// What of a TPM a kill must not change.
fn life(guest: &mut Guest) -> (Vec<u8>, u32, u32) {
    (guest.pcr(16), guest.objects(), guest.clock().1)
}

/// A command, which ends in IDLE at most if it was under way, is carried out.
fn goes_on(guest: &mut Guest) {
    guest.submit(&GET_RANDOM);
    if guest.wait(LIMIT) == Outcome::Abandoned {
        guest.done(&GET_RANDOM);
    }
}

#[test]
fn a_killed_worker_has_a_successor() {
    let Some(host) = Host::new() else { return };
    let mut guest = host.boot(7, &uuid(7));
    guest.done(&extend(16));
    guest.done(&create_primary());
    let (before, swtpm) = (life(&mut guest), host.swtpm(7));
    let start = Instant::now();
    host.cli_ok(&["status"]);
    let limit = SUCCESSOR.max(start.elapsed() * COMMANDS);
    let mut fastest = LIMIT;
    for _ in 0..3 {
        let worker = host.worker(7);
        signal(worker, Signal::Kill);
        assert!(wait_for(LIMIT, || !is_alive(worker)));
        let start = Instant::now();
        goes_on(&mut guest);
        fastest = fastest.min(start.elapsed());
        assert!(host.worker(7) != worker && is_alive(swtpm));
        assert_eq!(life(&mut guest), before);
    }
    println!("the successor of a killed worker serves after {fastest:?}");
    assert!(fastest < limit, "{fastest:?} and not {limit:?}");
    host.detach(7);
    assert!(wait_for(LIMIT, || !is_alive(swtpm)));
}

/// The end of a broker is that of its worker: the next one has a broker of its own.
#[test]
fn a_killed_broker_has_a_successor() {
    let Some(host) = Host::new() else { return };
    let mut guest = host.boot(7, &uuid(7));
    guest.done(&extend(16));
    let (before, swtpm) = (life(&mut guest), host.swtpm(7));
    let (worker, broker) = (host.worker(7), host.broker(7));
    signal(broker, Signal::Kill);
    assert!(wait_for(LIMIT, || !is_alive(worker)));
    goes_on(&mut guest);
    assert!(host.broker(7) != broker && is_alive(swtpm));
    assert_eq!(life(&mut guest), before);
}

/// In the midst of what it does when the state has changed: nothing is left there that is in swtpm's way.
#[test]
fn a_worker_killed_while_it_keeps_room_is_in_nobodys_way() {
    let Some(host) = Host::new() else { return };
    let mut guest = host.boot(7, &uuid(7));
    guest.define_counter();
    let counter = guest.counter();
    for call in ["fallocate", "fchown", "renameat2"] {
        let (worker, swtpm) = (host.worker(7), host.swtpm(7));
        let injected = Injected::new(&[worker], &format!("{call}:signal=KILL"));
        guest.submit(&increment());
        assert_eq!(guest.wait(LIMIT), Outcome::Abandoned, "{call}");
        // Its I/O process sees their socket close before it is a zombie.
        assert!(wait_for(LIMIT, || !is_alive(worker)), "{call}");
        drop(injected);
        guest.done(&increment());
        assert!(is_alive(swtpm), "{call}: {}", host.log());
    }
    assert!(guest.counter() >= counter + 3);
}

#[test]
fn a_command_of_a_killed_worker_ends_once() {
    let Some(host) = Host::new() else { return };
    let mut guest = host.boot(7, &uuid(7));
    guest.define_counter();
    let mut sure = guest.counter();
    for round in 0..6 {
        let swtpm = host.swtpm(7);
        // Under way for certain, and with the kill before or after it was carried out.
        if round % 2 == 0 {
            signal(swtpm, Signal::Stop);
        }
        guest.submit(&increment());
        thread::sleep(Duration::from_millis(30 * (round / 2)));
        let whom = if round < 3 {
            host.worker(7)
        } else {
            host.io(7)
        };
        signal(whom, Signal::Kill);
        thread::sleep(Duration::from_millis(100));
        signal(swtpm, Signal::Cont);
        let outcome = guest.wait(LIMIT);
        let counted = guest.counter();
        match outcome {
            Outcome::Response(_) => assert_eq!(counted, sure + 1, "round {round}"),
            Outcome::Abandoned => assert!(
                (sure..=sure + 1).contains(&counted),
                "round {round}: {counted} after {sure}"
            ),
            Outcome::Timeout => panic!("round {round}: the command does not end"),
        }
        sure = counted;
    }
}

#[test]
fn a_killed_io_process_has_a_successor() {
    let Some(host) = Host::new() else { return };
    let mut guest = host.boot(7, &uuid(7));
    guest.done(&extend(16));
    let before = life(&mut guest);
    let worker = host.worker(7);
    for _ in 0..3 {
        signal(host.io(7), Signal::Kill);
        goes_on(&mut guest);
        assert_eq!(life(&mut guest), before);
    }
    assert_eq!(host.worker(7), worker);
}

#[test]
fn an_io_process_killed_as_it_starts_has_a_successor() {
    let Some(host) = Host::new() else { return };
    let mut guest = host.boot(7, &uuid(7));
    guest.done(&extend(16));
    let before = life(&mut guest);
    let (worker, first) = (host.worker(7), host.io(7));
    let slow = Injected::slow(&[host.broker(7)], "setresuid", 500);
    signal(first, Signal::Kill);
    let next = || {
        let all = host.processes("io", Some(7));
        all.into_iter().find(|pid| *pid != first)
    };
    assert!(wait_for(LIMIT, || next().is_some()));
    signal(next().unwrap(), Signal::Kill);
    goes_on(&mut guest);
    drop(slow);
    assert_eq!(life(&mut guest), before);
    assert_eq!(host.worker(7), worker);
    assert_eq!(host.backend_state(7).as_deref(), Some("4"));
}

/// Where none of them lives it is no accident: guest and toolstack are told.
#[test]
fn io_processes_that_always_end_are_told() {
    let Some(host) = Host::new() else { return };
    let _guest = host.boot(7, &uuid(7));
    let killed = Injected::new(&[host.broker(7)], "setresuid:signal=KILL");
    signal(host.io(7), Signal::Kill);
    let told =
        || host.error(7).contains("SIGKILL") && host.backend_state(7).as_deref() != Some("4");
    assert!(wait_for(LIMIT, told), "{}", host.log());
    drop(killed);
}

/// A TPM that is gone is told, and the next start of the guest has one.
#[test]
fn a_killed_swtpm_closes_its_vtpm() {
    let Some(host) = Host::new() else { return };
    let guest = host.boot(7, &uuid(7));
    let mut neighbour = host.boot(8, &uuid(8));
    signal(host.swtpm(7), Signal::Kill);
    assert!(wait_for(LIMIT, || matches!(
        host.backend_state(7).as_deref(),
        Some("5" | "6")
    )));
    assert!(
        host.error(7).contains("swtpm") || host.error(7).contains("TPM"),
        "{:?}",
        host.error(7)
    );
    drop(guest);
    assert!(host.destroy(7));
    host.boot(9, &uuid(7)).done(&GET_RANDOM);
    neighbour.done(&GET_RANDOM);
}

/// Everything is killed at random while guests count in NV, each its own.
fn kill_at_random(host: &Host, guests: u16, kills: u32) {
    let domids: Vec<u16> = (7..7 + guests).collect();
    for domid in &domids {
        host.add(*domid, &uuid(*domid));
    }
    let mut guests: Vec<Guest> = domids
        .iter()
        .map(|domid| {
            host.await_state(*domid, "2");
            let mut guest = Guest::new(host, *domid);
            guest.connect();
            guest.define_counter();
            guest.done(&extend(16));
            guest
        })
        .collect();
    let before: Vec<_> = guests.iter_mut().map(life).collect();
    let over = AtomicBool::new(false);
    let counts = thread::scope(|scope| {
        let workers: Vec<_> = guests
            .iter_mut()
            .map(|guest| scope.spawn(|| count(guest, &over)))
            .collect();
        let mut random = Random::new();
        for _ in 0..kills {
            thread::sleep(Duration::from_millis(random.below(250)));
            let domid = domids[usize::try_from(random.below(domids.len() as u64)).unwrap()];
            match random.below(4) {
                0 => {
                    host.end_manager(Signal::Kill);
                    host.start();
                }
                1 => {
                    let manager = host.manager();
                    signal(manager, Signal::Stop);
                    thread::sleep(Duration::from_millis(random.below(300)));
                    signal(manager, Signal::Cont);
                }
                2 => host
                    .processes("serve", Some(domid))
                    .into_iter()
                    .for_each(|pid| signal(pid, Signal::Kill)),
                _ => host
                    .processes("io", Some(domid))
                    .into_iter()
                    .for_each(|pid| signal(pid, Signal::Kill)),
            }
        }
        over.store(true, Ordering::Relaxed);
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap())
            .collect::<Vec<_>>()
    });
    for ((guest, before), (sure, abandoned)) in guests.iter_mut().zip(before).zip(counts) {
        assert_eq!(life(guest), before, "domain {}", guest.domid);
        println!(
            "domain {}: counted to {sure}, {abandoned} abandoned",
            guest.domid
        );
    }
}

/// Counts until it is over: what was told to be done is done, and nothing is done twice.
fn count(guest: &mut Guest, over: &AtomicBool) -> (u64, u64) {
    let (mut sure, mut abandoned) = (read_counter(guest), 0);
    while !over.load(Ordering::Relaxed) {
        let outcome = guest.try_run(&increment());
        match outcome {
            Outcome::Response(response) => {
                assert_eq!(code(&response), 0);
                sure += 1;
            }
            Outcome::Abandoned => {
                abandoned += 1;
                // It is done once, or not at all.
                let counted = read_counter(guest);
                assert!(
                    (sure..=sure + 1).contains(&counted),
                    "{counted} after {sure}"
                );
                sure = counted;
            }
            Outcome::Timeout => panic!("domain {}: a command does not end", guest.domid),
        }
    }
    assert_eq!(read_counter(guest), sure, "domain {}", guest.domid);
    (sure, abandoned)
}

/// The counter, whatever is killed meanwhile.
fn read_counter(guest: &mut Guest) -> u64 {
    let read = crate::tpm::counter_read();
    loop {
        match guest.try_run(&read) {
            Outcome::Response(response) => {
                assert_eq!(code(&response), 0);
                return crate::tpm::counter_in(&response);
            }
            Outcome::Abandoned => (),
            Outcome::Timeout => panic!("domain {}: a command does not end", guest.domid),
        }
    }
}

#[test]
fn kills_at_random() {
    let Some(host) = Host::new() else { return };
    kill_at_random(&host, 4, 20);
}

#[test]
#[ignore = "takes a minute: make test-deep"]
fn many_kills_at_random() {
    let Some(host) = Host::new() else { return };
    kill_at_random(&host, 8, 200);
}

/// Numbers that differ from run to run; the seed is told.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new() -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let seed = std::env::var("SEED")
            .ok()
            .and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or(u64::from(now.unwrap().subsec_nanos()) | 1);
        println!("SEED={seed}");
        Self(seed)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}
