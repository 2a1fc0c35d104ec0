// SPDX-License-Identifier: GPL-2.0

//! A process of the daemon's that an attacker has taken over: standins/faults.c tries in it what the test says.
//! And the clock of all of them, which goes forward when the test says so.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use crate::host::{wait_for, Host, LIMIT};

/// The process's id, by how many seconds the clock is ahead, then so many attempts: how, on what, and the error that came of it.
const ATTEMPTS: usize = 31;
const ON: usize = 251;
const ATTEMPT: usize = 1 + ON + 4;
const HEAD: usize = 8;
pub(crate) const SIZE: usize = HEAD + ATTEMPTS * ATTEMPT;

/// Time has passed for all processes of the host.
pub(crate) fn pass(host: &Host, seconds: u32) {
    let file = File::options().write(true).open(host.path("takeover"));
    file.unwrap()
        .write_all_at(&seconds.to_ne_bytes(), 4)
        .unwrap();
}

/// Has the process try all of these, at the next call into Xen's libraries that `poke` leads to. Returns the error
/// number of each, 0 for success.
pub(crate) fn attempts(host: &Host, pid: u32, all: &[(char, String)], poke: impl Fn()) -> Vec<i32> {
    assert!(all.len() < ATTEMPTS);
    let path = host.path("takeover");
    let file = File::options().write(true).open(&path).unwrap();
    for (n, (how, on)) in all.iter().enumerate() {
        assert!(on.len() < ON);
        let mut bytes = vec![0; ATTEMPT];
        bytes[0] = u8::try_from(*how).unwrap();
        bytes[1..=on.len()].copy_from_slice(on.as_bytes());
        let at = HEAD + n * ATTEMPT;
        file.write_all_at(&bytes, at as u64).unwrap();
    }
    file.write_all_at(&pid.to_ne_bytes(), 0).unwrap();
    let tried = wait_for(LIMIT, || {
        poke();
        fs::read(&path).unwrap()[..4] == [0; 4]
    });
    assert!(tried, "process {pid} makes no call");
    let bytes = fs::read(&path).unwrap();
    let error = |n: usize| {
        let at = HEAD + (n + 1) * ATTEMPT;
        i32::from_ne_bytes(bytes[at - 4..at].try_into().unwrap())
    };
    (0..all.len()).map(error).collect()
}
