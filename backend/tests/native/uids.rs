// SPDX-License-Identifier: GPL-2.0

//! The users of a host's vTPMs: no two hosts that are there at the same time share one, since each
//! ends at its end what runs as its own.

use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::sync::Mutex;

/// So many a host has.
const UIDS: u32 = 2_000;

/// The places of the hosts that are there, and the last that was taken.
static TAKEN: Mutex<(BTreeSet<u32>, u32)> = Mutex::new((BTreeSet::new(), 0));

/// The users of one host.
pub(crate) struct Uids {
    place: u32,
    pub(crate) first: u32,
}

impl Uids {
    /// Those of the next place that is free. Where this root is an ordinary user's, with a namespace
    /// of some 65,536 ids, there are few.
    pub(crate) fn take() -> Self {
        let map = fs::read_to_string("/proc/self/uid_map").unwrap();
        let count = |line: &str| line.split_ascii_whitespace().nth(2)?.parse::<u64>().ok();
        let all: u64 = map.lines().filter_map(count).sum();
        let (base, places) = match all > 1 << 31 {
            // Another run may be there at the same time.
            true => (1_800_000_000 + std::process::id() % 256 * 64 * UIDS, 64),
            false => (20_000, 20),
        };
        let mut taken = TAKEN.lock().unwrap();
        let last = taken.1;
        let mut next = (1..=places).map(|n| (last + n) % places);
        let place = next.find(|place| !taken.0.contains(place));
        let place = place.expect("a place for one more host");
        taken.0.insert(place);
        taken.1 = place;
        let first = base + place * UIDS;
        Self { place, first }
    }

    pub(crate) fn range(&self) -> Range<u32> {
        self.first..self.first + UIDS
    }
}

impl Drop for Uids {
    fn drop(&mut self) {
        TAKEN.lock().unwrap().0.remove(&self.place);
    }
}

/// An ordinary user's hosts had the users of the twentieth after them, and ended its swtpms.
#[test]
fn no_two_hosts_share_a_user() {
    let mut there: Vec<Uids> = Vec::new();
    for n in 0..100 {
        let new = Uids::take();
        assert!(there.iter().all(|other| other.first != new.first));
        // One that stays, and one after the other beside it.
        there.truncate(1 + n % 3);
        there.push(new);
    }
}
