// SPDX-License-Identifier: GPL-2.0

//! Each call into Xen's libraries fails once, at each place where it is made.

use std::time::Duration;

use rustix::io::Errno;

use crate::faults;
use crate::guest::{Guest, Outcome};
use crate::host::{wait_for, Host, LIMIT};
use crate::toolstack::uuid;
use crate::tpm::{extend, GET_RANDOM};

/// A vTPM's life: it starts, has a command, another connection, and ends.
fn live(host: &Host, domid: u16, what: &str) {
    host.add(domid, &uuid(domid % 4));
    let mut guest = Guest::new(host, domid);
    let step = |guest: &mut Guest| {
        // The guest's driver connects anew when its backend closes; libxl waits for InitWait.
        let works = wait_for(LIMIT, || {
            host.keep_manager_within(Duration::ZERO);
            if host.backend_state(domid).as_deref() == Some("4") {
                guest.submit(&GET_RANDOM);
                return matches!(guest.wait(Duration::from_secs(5)), Outcome::Response(_));
            }
            follow(host, guest);
            false
        });
        assert!(
            works,
            "{what}: the backend shows {:?}; {}",
            host.backend_state(domid),
            host.error(domid)
        );
    };
    step(&mut guest);
    guest.show("6");
    step(&mut guest);
    drop(guest);
    assert!(host.destroy(domid), "{what}: not closed");
}

/// What the driver does next with a backend that is not connected.
fn follow(host: &Host, guest: &mut Guest) {
    match host.backend_state(guest.domid).as_deref() {
        Some("2") => {
            guest.offer();
            let moves = || host.backend_state(guest.domid).as_deref() != Some("2");
            wait_for(Duration::from_secs(5), moves);
        }
        Some("5" | "6") => guest.show("6"),
        _ => (),
    }
}

/// Runs a life for each `stride`th place, beginning with `first`.
fn fail_at_each_place(first: usize, stride: usize) {
    let Some(host) = Host::new() else { return };
    let mut other = host.boot(7, &uuid(7));
    other.done(&extend(16));
    let extended = other.pcr(16);
    // The first life makes the state, the second one shows which calls there are.
    for domid in 0..4 {
        live(&host, 100 + domid, "without a fault");
    }
    let before: Vec<u32> = faults::all()
        .map(|(kind, call)| host.faults.count(kind, call))
        .collect();
    live(&host, 104, "without a fault");
    let places: Vec<_> = faults::all()
        .zip(before)
        .flat_map(|((kind, call), before)| {
            let n = host.faults.count(kind, call) - before;
            (1..=n).map(move |nth| (kind, call, nth))
        })
        .collect();
    println!("{} places", places.len());
    assert!(places.len() > 20, "{places:?}");
    let (mut tried, mut failed) = (0, 0);
    for (domid, (kind, call, nth)) in (110..).zip(places.into_iter().skip(first).step_by(stride)) {
        host.faults.fail(kind, call, nth, Errno::IO);
        live(&host, domid, &format!("{call} of `{kind}`, time {nth}"));
        tried += 1;
        failed += u32::from(host.faults.has_failed(kind, call));
        host.faults.clear();
        host.keep_manager_within(Duration::ZERO);
        assert_eq!(
            other.pcr(16),
            extended,
            "after {call} of `{kind}`, time {nth}"
        );
    }
    // A life is not always of the same calls: the less so, the busier the host is.
    assert!(failed * 2 >= tried, "{failed} of {tried} failed");
}

#[test]
fn some_calls_fail() {
    fail_at_each_place(3, 17);
}

#[test]
#[ignore = "takes minutes: make test-deep"]
fn all_calls_fail() {
    fail_at_each_place(0, 1);
}
