// SPDX-License-Identifier: GPL-2.0

//! A daemon that is gone, as after kill -9, and its successor.

use std::io::Write;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{kill_process, Pid, Signal};
use xen_vtpmd::config::Config;
use xen_vtpmd::machine::{end_strays, Claims, End, Error as MachineError, Machine};
use xen_vtpmd::swtpm::Version;
use xen_vtpmd::watch::Watcher;
use xen_vtpmd::xenbus::Id;

use crate::bench::{code, extend_2, pcr_2, wait_for, Bench, Running, Seen, GET_RANDOM, ID};

/// TPM 2.0: makes an RSA key, which takes long, and one of the three places for objects.
fn create_primary() -> Vec<u8> {
    let mut command = vec![0x80, 2, 0, 0, 0, 0, 0, 0, 1, 0x31, 0x40, 0, 0, 1];
    command.extend_from_slice(&[0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0]);
    // No secrets; an RSA key that decrypts others, 2048 bits, with AES-128-CFB.
    command.extend_from_slice(&[0, 4, 0, 0, 0, 0]);
    command.extend_from_slice(&[0, 26, 0, 1, 0, 0x0b, 0, 3, 0, 0x72, 0, 0]);
    command.extend_from_slice(&[0, 6, 0, 128, 0, 0x43, 0, 0x10, 8, 0, 0, 0, 0, 0, 0, 0]);
    command.extend_from_slice(&[0, 0, 0, 0, 0, 0]);
    command[5] = u8::try_from(command.len()).unwrap();
    command
}

/// TPM 2.0: the handles of the objects that take up room.
fn objects(swtpm: &mut Running) -> usize {
    let mut command = vec![0x80, 1, 0, 0, 0, 22, 0, 0, 1, 0x7a, 0, 0, 0, 1];
    command.extend_from_slice(&[0x80, 0, 0, 0, 0, 0, 0, 9]);
    let answer = swtpm.done(&command);
    u32::from_be_bytes(answer[15..19].try_into().unwrap()) as usize
}

fn taken_over(bench: &Bench) -> Running {
    let mut swtpm = bench.take_over().expect("an swtpm to take over");
    assert!(!swtpm.is_free());
    assert_eq!(swtpm.next().unwrap(), Seen::Up);
    assert!(swtpm.is_free());
    swtpm
}

#[test]
fn an_idle_tpm_goes_on() {
    let Some(bench) = Bench::with_tpm(Version::Tpm2) else {
        return;
    };
    let mut swtpm = bench.start();
    swtpm.done(&extend_2(16));
    let extended = pcr_2(&mut swtpm, 16);
    let pid = swtpm.id();
    swtpm.forget();

    let mut swtpm = taken_over(&bench);
    assert_eq!(swtpm.id(), pid);
    assert!(!swtpm.was_interrupted());
    assert_eq!(swtpm.established(), Some(false));
    assert_eq!(pcr_2(&mut swtpm, 16), extended);
    // And again; the locality is set anew.
    assert_eq!(code(&swtpm.run(3, &GET_RANDOM)), 0);
    swtpm.forget();
    let mut swtpm = taken_over(&bench);
    assert_eq!(pcr_2(&mut swtpm, 16), extended);
    swtpm.end();
}

#[test]
fn handed_over() {
    let Some(bench) = Bench::with_tpm(Version::Tpm12) else {
        return;
    };
    let swtpm = bench.start();
    let pid = swtpm.id();

    swtpm.swtpm.leave();
    let swtpm = taken_over(&bench);
    assert_eq!(swtpm.id(), pid);
    swtpm.end();
}

#[test]
fn a_running_command_is_waited_for_and_undone() {
    let Some(bench) = Bench::with_tpm(Version::Tpm2) else {
        return;
    };
    let mut swtpm = bench.start();
    swtpm.done(&extend_2(16));
    let extended = pcr_2(&mut swtpm, 16);
    let objects_before = objects(&mut swtpm);
    // The answer has to be a good one, or there would be nothing to undo.
    swtpm.done(&create_primary());
    assert_eq!(objects(&mut swtpm), objects_before + 1);
    // Held, so that the second daemon, too, dies while it waits, however fast the key is made.
    let pid = Pid::from_raw(swtpm.id().try_into().unwrap()).unwrap();
    kill_process(pid, Signal::Stop).unwrap();
    swtpm.submit(0, &create_primary()).unwrap();
    swtpm.forget();
    let mut second = bench.take_over().unwrap();
    assert_eq!(second.next_within(Duration::from_millis(50)), None);
    second.forget();
    kill_process(pid, Signal::Cont).unwrap();

    let mut swtpm = taken_over(&bench);
    assert!(swtpm.was_interrupted());
    swtpm.settled().unwrap();
    assert!(!swtpm.was_interrupted());
    assert_eq!(objects(&mut swtpm), objects_before + 1);
    assert_eq!(pcr_2(&mut swtpm, 16), extended);
    swtpm.end();
}

#[test]
fn an_answer_that_nobody_read_is_dropped() {
    let Some(bench) = Bench::with_tpm(Version::Tpm2) else {
        return;
    };
    let mut swtpm = bench.start();
    swtpm.submit(0, &GET_RANDOM).unwrap();
    sleep(Duration::from_millis(200));
    swtpm.forget();

    let mut swtpm = taken_over(&bench);
    assert!(swtpm.was_interrupted());
    // The next answer is the next command's.
    pcr_2(&mut swtpm, 16);
    assert!(!swtpm.was_interrupted(), "a new command ends that");
    swtpm.end();
}

#[test]
fn an_answer_that_was_read_but_not_delivered_interrupts() {
    let Some(bench) = Bench::with_tpm(Version::Tpm2) else {
        return;
    };
    let mut swtpm = bench.start();
    swtpm.submit(0, &GET_RANDOM).unwrap();
    assert!(matches!(swtpm.next(), Ok(Seen::Answer(_))));
    swtpm.forget();

    let swtpm = taken_over(&bench);
    assert!(swtpm.was_interrupted());
    swtpm.end();
}

#[test]
fn a_locality_that_nobody_saw_set_is_set_anew() {
    let Some(bench) = Bench::with_tpm(Version::Tpm2) else {
        return;
    };
    let mut swtpm = bench.start();
    // The reply stays unread; the command is never sent.
    swtpm.submit(2, &extend_2(16)).unwrap();
    sleep(Duration::from_millis(200));
    swtpm.forget();

    let mut swtpm = taken_over(&bench);
    assert!(swtpm.was_interrupted());
    // PCR 20 is not for locality 0.
    assert_eq!(code(&swtpm.run(0, &extend_2(20))), 0x907);
    assert_eq!(code(&swtpm.run(2, &extend_2(20))), 0);
    swtpm.end();
}

#[test]
fn a_request_that_is_still_unread_is_waited_for() {
    let Some(bench) = Bench::with_tpm(Version::Tpm2) else {
        return;
    };
    let mut swtpm = bench.start();
    let pid = swtpm.id().to_string();
    let signal = |name: &str| {
        let mut kill = Command::new("kill");
        assert!(kill.args([name, &pid]).status().unwrap().success());
    };

    signal("-STOP");
    swtpm.submit(2, &extend_2(16)).unwrap();
    swtpm.forget();
    let mut swtpm = bench.take_over().unwrap();
    assert_eq!(swtpm.next_within(Duration::from_millis(200)), None);
    signal("-CONT");
    assert_eq!(swtpm.next().unwrap(), Seen::Up);
    pcr_2(&mut swtpm, 16);
    swtpm.end();
}

#[test]
fn a_tpm_that_had_not_started_is_killed() {
    let Some(bench) = Bench::with_tpm(Version::Tpm2) else {
        return;
    };
    let swtpm = bench.spawn().unwrap();
    wait_for(|| bench.found().is_some());
    swtpm.forget();

    assert!(bench.take_over().is_none());
    assert!(bench.found().is_none());
    bench.start().end();
}

#[test]
fn a_record_of_another_process_is_not_believed() {
    let Some(bench) = Bench::with_tpm(Version::Tpm2) else {
        return;
    };
    let swtpm = bench.start();
    let path = bench.config.run_dir.join(format!("{}.json", bench.uuid));
    let text = std::fs::read_to_string(&path).unwrap();
    let own = format!("\"pid\":{}", swtpm.id());
    let put = |text: &str| {
        let mut file = std::fs::File::create(&path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    };

    assert!(text.contains(&own), "{text}");
    // This very process, whose start was another.
    put(&text.replace(&own, &format!("\"pid\":{}", std::process::id())));
    assert!(bench.found().is_none());
    put(&text);
    assert!(bench.found().is_some());
    swtpm.end();
    assert!(bench.found().is_none());
}

#[test]
fn a_taken_over_tpm_dies() {
    let Some(bench) = Bench::with_tpm(Version::Tpm2) else {
        return;
    };
    let swtpm = bench.start();
    swtpm.forget();
    let mut swtpm = taken_over(&bench);

    swtpm.kill();
    drop(swtpm);
    bench.start().end();
}

/// What the daemon has of a vTPM, without the guest.
struct Owner {
    machine: Machine,
    claims: Claims,
    watcher: Watcher,
}

impl Owner {
    fn new(id: Id) -> Self {
        let watcher = Watcher::new().unwrap();
        Self {
            machine: Machine::new(id, watcher.registrar(1)),
            claims: Claims::default(),
            watcher,
        }
    }

    /// Takes part in what happens until this is so.
    fn until(&mut self, config: &Config, done: impl Fn(&mut Machine) -> bool) {
        let limit = Instant::now() + crate::bench::LIMIT;
        while !done(&mut self.machine) {
            assert!(Instant::now() < limit);
            for (_, code) in self.watcher.wait(20).unwrap() {
                let source = xen_vtpmd::swtpm::Source::from_code(code);
                let ended = match (self.machine.swtpm(), source) {
                    (Some(swtpm), Some(source)) => swtpm.on_ready(source).is_err(),
                    _ => {
                        self.machine.on_setup(&mut self.claims, config).unwrap();
                        false
                    }
                };
                if ended {
                    self.machine.ended(&mut self.claims, config);
                }
            }
            self.machine.on_deadline(Instant::now()).unwrap();
        }
    }
}

fn is_up(machine: &mut Machine) -> bool {
    machine.swtpm().is_some_and(|swtpm| swtpm.is_free())
}

#[test]
fn a_machine_from_nothing_to_its_end() {
    if !crate::bench::have_swtpm() {
        return;
    }
    let bench = Bench::new(None);
    let config = &bench.config;
    let other = Id { domid: 8, devid: 0 };
    let mut first = Owner::new(ID);

    assert!(!first
        .machine
        .take_over(&mut first.claims, config, &bench.uuid)
        .unwrap());
    let start = |owner: &mut Owner| {
        let Owner {
            machine, claims, ..
        } = owner;
        machine.start(claims, config, bench.uuid.clone(), Some(Version::Tpm2))
    };
    start(&mut first).unwrap();
    first.until(config, is_up);
    assert!(first.claims.holds(&bench.uuid));
    first.machine.leave(&mut first.claims);
    assert!(!first.claims.holds(&bench.uuid) && bench.found().is_some());

    // Another vTPM with this uuid gets nothing of it.
    let mut second = Owner::new(other);
    let refused = second
        .machine
        .take_over(&mut second.claims, config, &bench.uuid);
    assert!(matches!(refused, Err(MachineError::InUse(_, holder)) if holder == "7/0"));
    assert!(matches!(start(&mut second), Err(MachineError::InUse(..))));

    let mut third = Owner::new(ID);
    assert!(third
        .machine
        .take_over(&mut third.claims, config, &bench.uuid)
        .unwrap());
    third.until(config, is_up);
    third.machine.end(&mut third.claims, End::Saved);
    third.until(config, |machine| !machine.is_running());
    assert!(bench.found().is_none() && bench.state().is_saved().unwrap());

    // Now it is free, until that daemon is gone as well.
    let mut fourth = Owner::new(other);
    start(&mut fourth).unwrap();
    fourth.until(config, is_up);
    fourth.machine.leave(&mut fourth.claims);
    assert!(end_strays(config, |_, vtpm| vtpm == "8/0")
        .unwrap()
        .is_empty());
    assert!(bench.found().is_some());
    let ended = end_strays(config, |_, _| false).unwrap();
    assert_eq!(ended, [(bench.uuid.clone(), "8/0".to_owned())]);
    assert!(bench.found().is_none());
    assert!(end_strays(config, |_, _| false).unwrap().is_empty());
}
