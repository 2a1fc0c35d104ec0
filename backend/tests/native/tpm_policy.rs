// SPDX-License-Identifier: GPL-2.0

//! What of its TPM is the guest's to use, and in what order a TPM ends.

use std::time::Duration;

use crate::guest::{Guest, Outcome};
use crate::host::Host;
use crate::hypervisor::Reason;
use crate::toolstack::uuid;
use crate::tpm::{code, command, extend, nv_define_secret, nv_write, GET_RANDOM, PLATFORM};

/// TPM_PT_STARTUP_CLEAR, whose bit 31 is "orderly": whether there was a TPM2_Shutdown before.
const STARTUP_CLEAR: u32 = 0x201;

/// Cases C1 and C2: no TPM2_Shutdown before an end makes lockouts, and sets the clock back.
#[test]
fn every_end_is_orderly() {
    let Some(host) = Host::new() else { return };
    let mut clock = 0;
    let mut next_domid = 7;
    for end in ["poweroff", "crash", "destroy", "detach", "stop"] {
        let domid = next_domid;
        next_domid += 1;
        let mut guest = host.boot(domid, &uuid(7));
        if clock > 0 {
            let orderly = guest.property(STARTUP_CLEAR) >> 31;
            assert_eq!(orderly, 1, "before {end}");
            assert!(guest.clock().0 >= clock, "before {end}");
        }
        // What a TPM loses that is not shut down: the time since it last stored its clock.
        std::thread::sleep(Duration::from_millis(700));
        clock = guest.clock().0;
        match end {
            "poweroff" => host.shut_down(guest, Reason::Poweroff),
            "crash" => host.shut_down(guest, Reason::Crash),
            "destroy" => {
                drop(guest);
                assert!(host.destroy(domid));
            }
            "detach" => host.detach(domid),
            _ => {
                host.cli_ok(&["stop"]);
                host.keep_manager();
                drop(guest);
                assert!(host.destroy(domid));
            }
        }
    }
    let mut guest = host.boot(next_domid, &uuid(7));
    assert_eq!(guest.property(STARTUP_CLEAR) >> 31, 1, "after stop");
    assert!(guest.clock().0 >= clock, "after stop");
}

/// A TPM that is locked is unlocked while its guest runs, and the guest keeps all of it.
#[test]
fn a_lockout_is_cleared_in_use() {
    let Some(host) = Host::new() else { return };
    let mut guest = host.boot(7, &uuid(7));
    guest.done(&extend(16));
    let extended = guest.pcr(16);
    guest.done(&nv_define_secret(0x0150_0003));
    let guess = nv_write(0x0150_0003, &[1; 8]);
    let locked = |guest: &mut Guest| code(&guest.run(&guess)) == 0x921;
    assert!((0..40).any(|_| locked(&mut guest)), "it does not lock");
    assert!(locked(&mut guest));
    host.cli_ok(&["clear-lockout", &uuid(7)]);
    // TPM_RC_AUTH_FAIL, of session 1: it is a guess again.
    assert_eq!(code(&guest.run(&guess)), 0x98e);
    assert_eq!(guest.pcr(16), extended);
    assert_eq!(guest.property(0x20e), 1, "TPM_PT_LOCKOUT_COUNTER");
}

/// Case C5: the platform hierarchy had no authorization.
#[test]
fn the_platform_hierarchy_is_closed() {
    let Some(host) = Host::new() else { return };
    let mut guest = host.boot(7, &uuid(7));
    let clear = command(0x126, &[PLATFORM], &[]);
    let change_auth = command(0x129, &[PLATFORM], &[0, 1, b'x']);
    for attempt in [clear, change_auth] {
        assert_ne!(code(&guest.run(&attempt)), 0, "{attempt:02x?}");
    }
    // TPM2_DictionaryAttackLockReset by the lockout authority would tell if attempts counted.
    guest.done(&GET_RANDOM);
}

/// Finding 10 and case C10: localities 3 and 4 are not the guest's.
#[test]
fn localities_3_and_4_are_closed() {
    let Some(host) = Host::new() else { return };
    let mut guest = host.boot(7, &uuid(7));
    for locality in [0, 1, 2] {
        guest.locality = locality;
        guest.done(&extend(16));
    }
    for locality in [3, 4, 5, 255] {
        guest.locality = locality;
        match guest.try_run(&extend(16)) {
            Outcome::Response(response) => assert_ne!(code(&response), 0, "locality {locality}"),
            Outcome::Abandoned => (),
            Outcome::Timeout => panic!("no end of a command from locality {locality}"),
        }
    }
    guest.locality = 0;
    guest.done(&GET_RANDOM);
}
