// SPDX-License-Identifier: GPL-2.0

//! `migrate_failures`: each party of a migration is killed at each step. xl decides where the guest is, and the
//! TPM is there; where it does not decide, neither copy starts until somebody says which one counts.

use std::time::Duration;

use rustix::process::Signal;

use crate::guest::Outcome;
use crate::host::{is_alive, signal, wait_for, LIMIT};
use crate::toolstack::uuid;
use crate::tpm::GET_RANDOM;
use crate::two_hosts::{Two, HERE, THERE};

/// How far the migration is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// xl sends the guest's memory.
    Called,
    /// The guest is suspended, and the TPM is under way: packed, and not stored yet.
    Sending,
    /// The TPM has arrived.
    Arrived,
    /// The destination's vTPM shows InitWait.
    Attached,
    /// The guest runs there, with its TPM.
    Running,
    /// The source's domain is destroyed.
    Destroyed,
}

const STEPS: [Step; 6] = [
    Step::Called,
    Step::Sending,
    Step::Arrived,
    Step::Attached,
    Step::Running,
    Step::Destroyed,
];

/// What is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Party {
    Migrate,
    Network,
    Receiver,
    Xl,
    ManagerHere,
    WorkerHere,
    SwtpmHere,
    ManagerThere,
    WorkerThere,
    SwtpmThere,
}

/// Where xl has left the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Here,
    There,
    /// It is suspended here, and nobody resumes it.
    Nowhere,
}

fn kill(two: &mut Two, party: Party) {
    let killed = match party {
        Party::Migrate => two.migrate.as_ref().map(std::process::Child::id),
        Party::Network => two.host.named("cat").first().copied(),
        Party::Receiver => two.receiver(),
        Party::Xl => two.xl(),
        Party::ManagerHere => {
            two.host.end_manager(Signal::Kill);
            two.host.start();
            None
        }
        Party::ManagerThere => {
            two.other.on(|host| {
                host.end_manager(Signal::Kill);
                host.start();
            });
            None
        }
        // At the end there is none any more.
        Party::WorkerHere => two.host.processes("serve", Some(HERE)).first().copied(),
        Party::SwtpmHere => two.host.named("swtpm").first().copied(),
        Party::WorkerThere => two
            .other
            .on(|host| host.processes("serve", Some(THERE)).first().copied()),
        Party::SwtpmThere => two.other.on(|host| host.named("swtpm").first().copied()),
    };
    if let Some(pid) = killed {
        signal(pid, Signal::Kill);
        assert!(wait_for(LIMIT, || !is_alive(pid) || party == Party::Migrate));
    }
}

/// Walks through the migration, and kills `party` at `step`. Where the guest is then.
fn walk(two: &mut Two, step: Step, party: Party) -> At {
    let kill_at = |two: &mut Two, now: Step| {
        if now == step {
            kill(two, party);
        }
    };
    let dead_xl = |now: Step| party == Party::Xl && step <= now;

    two.start().unwrap();
    kill_at(two, Step::Called);
    if dead_xl(Step::Called) {
        return At::Here;
    }
    let receiver = two.receiver().filter(|_| step == Step::Sending);
    if let Some(receiver) = receiver {
        signal(receiver, Signal::Stop);
    }
    two.suspend();
    if let Some(receiver) = receiver {
        assert!(wait_for(LIMIT, || two.mark_here() == "leaving"));
        kill(two, party);
        signal(receiver, Signal::Cont);
    }
    // Whatever there is to send is sent, or not.
    wait_for(Duration::from_secs(2), || two.mark_there() != "expected");
    kill_at(two, Step::Arrived);
    if dead_xl(Step::Arrived) {
        return At::Nowhere;
    }
    if !two.attach() {
        two.destroy_there();
        two.resume_here();
        return At::Here;
    }
    if step == Step::Attached {
        // Time for a worker that takes it before the guest runs: it looks once a second.
        std::thread::sleep(Duration::from_secs(2));
    }
    kill_at(two, Step::Attached);
    if dead_xl(Step::Attached) {
        two.destroy_there();
        return At::Nowhere;
    }
    let guest = two.run_there();
    two.arrived = Some(guest);
    kill_at(two, Step::Running);
    if dead_xl(Step::Running) {
        return At::There;
    }
    two.destroy_here();
    kill_at(two, Step::Destroyed);
    At::There
}

impl PartialOrd for Step {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        let place = |step: &Self| STEPS.iter().position(|other| other == step);
        place(self).partial_cmp(&place(other))
    }
}

/// One TPM may run, where the guest is, and the other does not.
fn judge(two: &mut Two, at: At, step: Step, party: Party) {
    let what = format!("{party:?} at {step:?}: the guest is {at:?}");
    let (here, there) = (two.listed_here(), two.listed_there());
    let marked = |entry: &Option<serde_json::Value>| {
        entry
            .as_ref()
            .is_none_or(|entry| entry["migration"].is_string())
    };
    println!(
        "{what}; here {:?}, there {:?}",
        two.mark_here(),
        two.mark_there()
    );
    match at {
        At::Here => {
            assert!(marked(&there), "{what}: {there:?} may run there");
            if party != Party::SwtpmHere {
                let mut guest = two.guest.take().unwrap();
                if guest.try_run(&GET_RANDOM) == Outcome::Abandoned {
                    guest.done(&GET_RANDOM);
                }
                assert_eq!(guest.pcr(16), two.pcr, "{what}");
                two.guest = Some(guest);
            }
            let unmarked = wait_for(LIMIT, || two.mark_here().is_empty());
            assert!(unmarked || party == Party::SwtpmHere, "{what}: {here:?}");
        }
        At::There => {
            assert!(marked(&here), "{what}: {here:?} may run here");
            assert_eq!(two.mark_there(), "", "{what}: {there:?}");
            if party != Party::SwtpmThere {
                let mut guest = two.arrived.take().unwrap();
                if guest.try_run(&GET_RANDOM) == Outcome::Abandoned {
                    guest.done(&GET_RANDOM);
                }
                assert_eq!(guest.pcr(16), two.pcr, "{what}");
            }
        }
        At::Nowhere => {
            assert!(
                marked(&here) && marked(&there),
                "{what}: {here:?}, {there:?}"
            );
            let uuid7 = uuid(7);
            assert!(
                !two.attach_as(uuid7.clone(), crate::hypervisor::Domain::Restored),
                "{what}"
            );
            two.destroy_there();
            // The person who looks resumes it here.
            two.host.cli_ok(&["take", &uuid7]);
            two.other.on(|host| {
                host.cli_ok(&["discard", "--yes", &uuid(7)]);
            });
            two.resume_here();
            let mut guest = two.guest.take().unwrap();
            assert_eq!(guest.pcr(16), two.pcr, "{what}");
            assert!(two.listed_there().is_none(), "{what}");
        }
    }
}

/// The steps at which most can go wrong.
const SOME: [Step; 2] = [Step::Sending, Step::Attached];

fn killed(party: Party, steps: &[Step]) {
    for &step in steps {
        let Some(mut two) = Two::new() else { return };
        let at = walk(&mut two, step, party);
        // xl ends as it must, unless it has.
        let code = u8::from(at != At::There);
        if party != Party::Migrate || !two.is_migrate_dead() {
            let output = two.end(code);
            let done = output.status.success();
            assert!(
                done == (at == At::There) || at == At::There,
                "{party:?} at {step:?}"
            );
        }
        judge(&mut two, at, step, party);
    }
}

/// At those steps that `make test` has not.
fn killed_at_each_step(parties: &[Party]) {
    let others: Vec<_> = STEPS
        .into_iter()
        .filter(|step| !SOME.contains(step))
        .collect();
    for &party in parties {
        killed(party, &others);
    }
}

#[test]
#[ignore = "takes minutes: make test-deep"]
fn what_carries_it_is_killed_at_each_step() {
    killed_at_each_step(&[Party::Migrate, Party::Network, Party::Receiver, Party::Xl]);
}

#[test]
#[ignore = "takes minutes: make test-deep"]
fn each_process_here_is_killed_at_each_step() {
    killed_at_each_step(&[Party::ManagerHere, Party::WorkerHere, Party::SwtpmHere]);
}

#[test]
#[ignore = "takes minutes: make test-deep"]
fn each_process_there_is_killed_at_each_step() {
    killed_at_each_step(&[Party::ManagerThere, Party::WorkerThere, Party::SwtpmThere]);
}

#[test]
fn migrate_is_killed() {
    killed(Party::Migrate, &SOME);
}

#[test]
fn the_network_fails() {
    killed(Party::Network, &SOME);
}

#[test]
fn the_receiver_is_killed() {
    killed(Party::Receiver, &SOME);
}

#[test]
fn xl_is_killed() {
    killed(Party::Xl, &SOME);
}

#[test]
fn managers_are_killed() {
    killed(Party::ManagerHere, &[Step::Sending]);
    killed(Party::ManagerThere, &[Step::Attached]);
}

#[test]
fn the_sources_worker_is_killed() {
    killed(Party::WorkerHere, &SOME);
}

#[test]
fn the_sources_swtpm_is_killed() {
    killed(Party::SwtpmHere, &[Step::Called, Step::Arrived]);
}

#[test]
fn the_destinations_worker_is_killed() {
    killed(Party::WorkerThere, &SOME);
}

#[test]
fn the_destinations_swtpm_is_killed() {
    killed(Party::SwtpmThere, &[Step::Running]);
}

/// The TPM cannot be packed, or not be stored: the guest goes on here.
#[test]
fn a_disk_is_full() {
    for full_here in [true, false] {
        let Some(mut two) = Two::with_small(full_here) else {
            return;
        };
        two.start().unwrap();
        two.fill(full_here);
        two.suspend();
        assert!(
            !two.attach(),
            "started without its TPM: full here: {full_here}"
        );
        two.destroy_there();
        two.unfill(full_here);
        two.resume_here();
        let output = two.end(1);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("the guest runs here"), "{said}");
        assert!(said.contains("stor") || said.contains("space"), "{said}");
        let mut guest = two.guest.take().unwrap();
        assert_eq!(guest.pcr(16), two.pcr);
        assert_eq!(
            (two.mark_here(), two.mark_there()),
            (String::new(), String::new())
        );
        assert!(two.listed_there().is_none());
    }
}
