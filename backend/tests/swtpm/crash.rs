// SPDX-License-Identifier: GPL-2.0

//! An swtpm that is killed at any moment: its state starts again, and no counter goes back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use xen_vtpmd::swtpm::Version;

use crate::bench::{code, kill, Bench, Running};

/// How often it is killed.
const ROUNDS: u32 = 50;

/// The latest moment: past the start, among the commands.
const LATEST: u64 = 150;

/// The handle of the counter.
const COUNTER: [u8; 4] = [1, 0x50, 0, 1];

/// An empty password.
const PASSWORD: [u8; 13] = [0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0];

/// TPM 2.0: a command on handles, with an empty password.
fn command(code: u16, handles: &[[u8; 4]], parameters: &[u8]) -> Vec<u8> {
    let mut command = vec![0x80, 2, 0, 0, 0, 0, 0, 0];
    command.extend_from_slice(&code.to_be_bytes());
    command.extend(handles.iter().flatten());
    command.extend_from_slice(&PASSWORD);
    command.extend_from_slice(parameters);
    command[5] = u8::try_from(command.len()).unwrap();
    command
}

fn define() -> Vec<u8> {
    // No password of its own; eight bytes, a counter, for whoever has the (empty) password.
    let public = [1, 0x50, 0, 1, 0, 0x0b, 2, 4, 0, 0x14, 0, 0, 0, 8];
    let size = u8::try_from(public.len()).unwrap();
    let mut parameters = vec![0, 0, 0, size];
    parameters.extend_from_slice(&public);
    command(0x12a, &[[0x40, 0, 0, 1]], &parameters)
}

fn increment() -> Vec<u8> {
    command(0x134, &[COUNTER; 2], &[])
}

fn read(swtpm: &mut Running) -> u64 {
    let answer = swtpm.done(&command(0x14e, &[COUNTER; 2], &[0, 8, 0, 0]));
    u64::from_be_bytes(answer[16..24].try_into().unwrap())
}

/// Counts until it is dead; returns how far it certainly got.
fn count(swtpm: &mut Running, mut sure: u64) -> u64 {
    loop {
        // One that is dead does not take it, or does not answer.
        match swtpm.try_run(&increment()) {
            Some(answer) => assert_eq!(code(&answer), 0, "{answer:02x?}"),
            None => return sure,
        }
        sure += 1;
    }
}

#[test]
#[ignore = "takes some ten seconds: make test-deep"]
fn killed_at_any_moment() {
    let Some(bench) = Bench::with_tpm(Version::Tpm2) else {
        return;
    };
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let mut random = seed.subsec_nanos() as u64 | 1;
    println!("seed {random}");
    let mut swtpm = bench.start();
    swtpm.done(&define());
    swtpm.done(&increment());
    let mut sure = read(&mut swtpm);
    swtpm.end();
    let (first, mut while_starting) = (sure, 0);

    for round in 0..ROUNDS {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let moment = Duration::from_micros(random % (LATEST * 1_000));
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(moment);
                // In the midst of a start there may be no record yet.
                while !over.load(Ordering::Relaxed) {
                    if let Some(record) = bench.record() {
                        kill(record.pid.unsigned_abs());
                        return;
                    }
                }
            });
            match bench.try_start() {
                Ok(mut swtpm) => {
                    sure = count(&mut swtpm, sure);
                    swtpm.kill();
                }
                Err(_) => while_starting += 1,
            }
            over.store(true, Ordering::Relaxed);
        });

        let mut swtpm = bench.start();
        let found = read(&mut swtpm);
        // The one that was under way is there or not.
        assert!(
            (sure..=sure + 1).contains(&found),
            "round {round}: {found}, not {sure}"
        );
        sure = found;
        swtpm.end();
    }
    println!(
        "{} increments, {while_starting} killed while they started",
        sure - first
    );
    assert!(sure - first > u64::from(ROUNDS) && while_starting < ROUNDS / 2);
}
