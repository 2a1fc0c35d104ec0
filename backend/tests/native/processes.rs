// SPDX-License-Identifier: GPL-2.0

//! What runs on this machine, and whether it has come to rest.

use std::fs;

use crate::host::{wait_for, LIMIT};

/// The ids of all processes.
pub(crate) fn all_processes() -> impl Iterator<Item = u32> {
    numbers("/proc")
}

fn numbers(directory: &str) -> impl Iterator<Item = u32> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// A thread, whether it sleeps, and how often it went to sleep so far.
#[derive(PartialEq)]
struct Thread(u32, bool, u64);

impl Thread {
    fn look(pid: u32, tid: u32) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/task/{tid}/status")).ok()?;
        let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        let sleeps = line("State:\t")?.starts_with(['S', 'T', 'Z']);
        let times = line("voluntary_ctxt_switches:\t")?.parse().ok()?;
        Some(Self(tid, sleeps, times))
    }
}

/// Waits until these processes are asleep, and were since the last look: whatever was to follow from what
/// the test did has followed, however slow the machine is. What waits for a point in time is asleep too.
pub(crate) fn settle(processes: &[u32]) {
    let look = || -> Vec<Thread> {
        let threads = |&pid| numbers(&format!("/proc/{pid}/task")).map(move |tid| (pid, tid));
        let all = processes.iter().flat_map(threads);
        all.filter_map(|(pid, tid)| Thread::look(pid, tid))
            .collect()
    };
    let mut before = look();
    assert!(
        wait_for(LIMIT, || {
            let now = look();
            let rests = now.iter().all(|thread| thread.1) && now == before;
            before = now;
            rests
        }),
        "the processes do not come to rest"
    );
}
