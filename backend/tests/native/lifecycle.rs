// SPDX-License-Identifier: GPL-2.0

//! A vTPM from its creation to its end, in the orders that xl has.

use std::time::{Duration, Instant};

use crate::host::{wait_for, Host, LIMIT};
use crate::hypervisor::Reason;
use crate::toolstack::{backend, uuid, LIBXL};
use crate::tpm::{code, create_primary, GET_RANDOM};

#[test]
fn a_guest_has_a_tpm_and_gives_it_up() {
    let Some(host) = Host::new() else { return };
    let mut guest = host.boot(7, &uuid(7));

    assert_eq!(code(&guest.run(&GET_RANDOM)), 0);
    guest.reconnect();
    assert_eq!(code(&guest.run(&GET_RANDOM)), 0);
    host.detach(7);
    host.attach(7, &uuid(7));
    guest.connect();
    guest.done(&GET_RANDOM);
    host.shut_down(guest, Reason::Poweroff);
}

/// Finding 19: a swtpm_setup that hangs kept its uuid for ever.
#[test]
fn a_setup_that_hangs_goes_with_its_vtpm() {
    let Some(host) = Host::bare("") else { return };
    host.wrap("/usr/bin/swtpm_setup", "exec sleep 1000");
    host.start();
    host.add(7, &uuid(7));
    assert!(wait_for(LIMIT, || !host.named("sleep").is_empty()));
    host.wrap("/usr/bin/swtpm_setup", "exec $real \"$@\"");
    assert!(host.destroy(7), "not closed while swtpm_setup hangs");
    let mut guest = host.boot(8, &uuid(7));
    guest.done(&GET_RANDOM);
}

/// Finding 18: what the toolstack wrote could be overwritten between a read and a write.
#[test]
fn a_vtpm_that_is_to_close_closes_whenever_that_is() {
    let Some(host) = Host::new() else { return };
    for round in 0..8 {
        let mut guest = host.create(7, &uuid(7));
        for kind in ["run", "serve"] {
            for call in ["xs_write", "xs_transaction_end"] {
                host.faults.delay(kind, call, Duration::from_millis(60));
            }
        }
        guest.offer();
        std::thread::sleep(Duration::from_millis(15 * round));
        host.ask_to_close(7);
        let start = Instant::now();
        let closed = host.is_closed(7);
        for kind in ["run", "serve"] {
            for call in ["xs_write", "xs_transaction_end"] {
                host.faults.delay(kind, call, Duration::ZERO);
            }
        }
        assert!(closed, "round {round}");
        assert!(start.elapsed() < Duration::from_secs(4), "round {round}");
        drop(guest);
        assert!(host.destroy(7));
        let gone = || host.backend_state(7).is_none();
        assert!(wait_for(LIBXL, gone));
    }
}

/// The same: nothing of a vTPM comes back after the toolstack removed its nodes.
#[test]
fn no_node_comes_back_after_its_removal() {
    let Some(host) = Host::new() else { return };
    let begin = Instant::now();
    host.add(7, &uuid(7));
    host.await_state(7, "2");
    let start = begin.elapsed();
    for domid in 8..16 {
        host.add(domid, &uuid(domid));
        std::thread::sleep(start * u32::from(domid - 8) / 8);
        host.store
            .remove(&format!("/local/domain/0/backend/vtpm/{domid}"));
    }
    std::thread::sleep(Duration::from_secs(2) + start);
    for domid in 8..16 {
        assert!(
            host.store.list(&backend(domid)).is_empty(),
            "domain {domid}: {:?}",
            host.store.list(&backend(domid))
        );
    }
}

/// Finding 21: a grant that cannot be mapped was tried again at each event.
#[test]
fn an_offer_that_failed_is_not_tried_again() {
    let Some(host) = Host::new() else { return };
    let mut guest = host.boot(7, &uuid(7));
    guest.show("6");
    guest.await_backend("2");
    // The next offer is of a grant that is not there.
    host.store.write(&guest.node("ring-ref"), "999");
    let maps = || {
        let log = host.hypervisor.grant_log();
        log.iter()
            .filter(|line| line.starts_with("map 7 999"))
            .count()
    };
    guest.show("3");
    assert!(wait_for(LIMIT, || maps() > 0));
    for _ in 0..20 {
        guest.show("3");
        std::thread::sleep(Duration::from_millis(25));
    }
    assert!(maps() <= 2, "{} attempts", maps());
    assert!(host.error(7).contains("999"), "{:?}", host.error(7));

    // And what comes after it works; the reason goes with the vTPM (finding 26).
    guest.reconnect();
    guest.done(&GET_RANDOM);
    host.detach(7);
    assert_eq!(
        host.store.list("/local/domain/0/error/backend/vtpm/7"),
        [""; 0]
    );
}

#[test]
fn a_cancelled_command_ends() {
    let Some(host) = Host::new() else { return };
    let mut guest = host.boot(7, &uuid(7));
    for _ in 0..3 {
        guest.submit(&create_primary());
        std::thread::sleep(Duration::from_millis(20));
        guest.cancel();
        let outcome = guest.wait(LIMIT);
        assert_ne!(outcome, crate::guest::Outcome::Timeout);
    }
    guest.done(&GET_RANDOM);
}
