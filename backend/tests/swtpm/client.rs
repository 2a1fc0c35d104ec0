// SPDX-License-Identifier: GPL-2.0

//! Commands, starts and ends.

use std::fs;

use xen_vtpmd::config::PlatformHierarchy;
use xen_vtpmd::swtpm::Version;

use crate::bench::{code, extend_2, have_swtpm, kill, pcr_2, Bench, GET_RANDOM};

/// TPM 1.2: reads a PCR.
fn pcr_read(pcr: u8) -> [u8; 14] {
    [0, 0xc1, 0, 0, 0, 14, 0, 0, 0, 0x15, 0, 0, 0, pcr]
}

/// TPM 1.2: extends a PCR by twenty ones.
fn extend(pcr: u8) -> Vec<u8> {
    let mut command = vec![0, 0xc1, 0, 0, 0, 34, 0, 0, 0, 0x14, 0, 0, 0, pcr];
    command.extend_from_slice(&[1; 20]);
    command
}

#[test]
fn tpm_2() {
    let Some(mut bench) = Bench::with_tpm(Version::Tpm2) else {
        return;
    };
    bench.policy().localities = 0b1_1111;
    let mut swtpm = bench.start();
    for locality in [0, 0, 3, 4, 1] {
        let answer = swtpm.run(locality, &GET_RANDOM);
        assert_eq!(answer[..10], [0x80, 1, 0, 0, 0, 20, 0, 0, 0, 0]);
    }
    swtpm.end();

    // And once more on the same state.
    let mut swtpm = bench.start();
    assert_eq!(swtpm.run(0, &GET_RANDOM).len(), 20);
    swtpm.end();
}

#[test]
fn tpm_1_2_and_its_localities() {
    let Some(bench) = Bench::with_tpm(Version::Tpm12) else {
        return;
    };
    let mut swtpm = bench.start();

    assert_eq!(swtpm.run(0, &pcr_read(0)).len(), 30);
    // PCR 20 is for locality 2 and up, 10 for all.
    let codes = [0, 2, 0, 3].map(|locality| {
        let answer = swtpm.run(locality, &extend(20));
        u32::from_be_bytes(answer[6..10].try_into().unwrap())
    });
    assert_eq!(codes[0], 0x3d, "TPM_BAD_LOCALITY");
    assert_eq!(codes[1], 0);
    assert_eq!(codes[2], 0x3d, "TPM_BAD_LOCALITY");
    assert_eq!(swtpm.run(0, &extend(10)).len(), 30);

    // swtpm knows of no locality 5, and 4 is rejected where the guest may not have it.
    for locality in [5, 4] {
        assert!(!swtpm.tpm.client().set_locality(locality).unwrap());
    }
    assert_eq!(swtpm.run(0, &pcr_read(0)).len(), 30);
    swtpm.end();
}

#[test]
fn a_dead_swtpm_is_an_error_and_no_answer() {
    let Some(bench) = Bench::with_tpm(Version::Tpm2) else {
        return;
    };
    let mut swtpm = bench.start();

    kill(swtpm.id());
    assert_eq!(swtpm.try_run(&GET_RANDOM), None);
    swtpm.kill();
    // The lock is gone with it.
    bench.start().end();
}

#[test]
fn a_start_without_state_is_no_tpm() {
    if !have_swtpm() {
        return;
    }
    let bench = Bench::new(None);

    let reason = bench.try_start().err().unwrap().to_string();
    assert!(reason.contains("No such file"), "{reason}");
}

#[test]
fn two_do_not_share_a_state() {
    let Some(bench) = Bench::with_tpm(Version::Tpm2) else {
        return;
    };
    let first = bench.start();

    let reason = bench.try_start().err().unwrap().to_string();
    assert!(reason.contains("is in use by another process"), "{reason}");
    // swtpm_setup is refused as well.
    let reason = bench.try_set_up(Version::Tpm2).unwrap_err();
    assert!(reason.contains("is in use by another process"), "{reason}");
    first.end();
}

/// TPM 2.0: TPM2_Clear by the platform, with an empty password.
fn clear() -> Vec<u8> {
    let mut command = vec![0x80, 2, 0, 0, 0, 27, 0, 0, 1, 0x26, 0x40, 0, 0, 0x0c];
    command.extend_from_slice(&[0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0]);
    command
}

/// TPM 1.2: TSC_PhysicalPresence, present.
const PRESENCE: [u8; 12] = [0, 0xc1, 0, 0, 0, 12, 0x40, 0, 0, 0x0a, 0, 8];

#[test]
fn the_platform_is_closed_to_the_guest_unless_it_is_to_be_open() {
    for (version, command) in [
        (Version::Tpm2, clear()),
        (Version::Tpm12, PRESENCE.to_vec()),
    ] {
        let Some(mut bench) = Bench::with_tpm(version) else {
            return;
        };
        // Each start closes it again, and a start that goes on finds it closed.
        for end in [true, false, true] {
            let mut swtpm = bench.start();
            assert_ne!(code(&swtpm.run(0, &command)), 0, "TPM {version}");
            match end {
                true => swtpm.end(),
                false => swtpm.end_saved(),
            }
        }
        if version == Version::Tpm2 {
            bench.policy().platform_hierarchy = PlatformHierarchy::Open;
            let mut swtpm = bench.start();
            swtpm.done(&command);
            swtpm.end();
        }
    }
}

/// TPM 2.0: a property, by TPM2_GetCapability.
fn property(swtpm: &mut crate::bench::Running, property: u32) -> u32 {
    let mut command = vec![0x80, 1, 0, 0, 0, 22, 0, 0, 1, 0x7a, 0, 0, 0, 6];
    command.extend_from_slice(&property.to_be_bytes());
    command.extend_from_slice(&[0, 0, 0, 1]);
    let answer = swtpm.done(&command);
    u32::from_be_bytes(answer[answer.len() - 4..].try_into().unwrap())
}

#[test]
fn each_end_is_orderly() {
    let Some(bench) = Bench::with_tpm(Version::Tpm2) else {
        return;
    };
    // TPM_PT_STARTUP_CLEAR, bit 31: the last end was orderly.
    let orderly = |bench: &Bench| {
        let mut swtpm = bench.start();
        let is = property(&mut swtpm, 0x201) >> 31 == 1;
        (is, swtpm)
    };
    let (_, swtpm) = orderly(&bench);
    swtpm.end();
    let (is, swtpm) = orderly(&bench);
    assert!(is, "after an end");
    swtpm.kill();
    let (is, swtpm) = orderly(&bench);
    assert!(!is, "or this test would not see it");
    swtpm.end();
    assert!(orderly(&bench).0);
}

#[test]
fn state_that_is_short_is_refused_and_left_alone() {
    let Some(bench) = Bench::with_tpm(Version::Tpm2) else {
        return;
    };
    bench.start().end();
    let file = bench.state().path.join("tpm2-00.permall");
    let whole = fs::read(&file).unwrap();
    for len in [0, 5, whole.len() - 1] {
        fs::write(&file, &whole[..len]).unwrap();
        let reason = bench.try_start().err().unwrap().to_string();
        assert!(reason.contains("tpm2-00.permall has "), "{reason}");
        bench.try_set_up(Version::Tpm2).unwrap_err();
        assert_eq!(fs::read(&file).unwrap(), whole[..len]);
    }
    fs::write(&file, &whole).unwrap();
    bench.start().end();
}

#[test]
fn a_state_that_was_saved_goes_on_once() {
    let Some(bench) = Bench::with_tpm(Version::Tpm2) else {
        return;
    };
    let mut swtpm = bench.start();
    let reset = pcr_2(&mut swtpm, 16);
    swtpm.done(&extend_2(16));
    let extended = pcr_2(&mut swtpm, 16);
    assert_ne!(reset, extended);
    swtpm.end_saved();

    assert!(bench.state().is_saved().unwrap());
    let mut swtpm = bench.start();
    assert!(!bench.state().is_saved().unwrap(), "used up");
    assert_eq!(pcr_2(&mut swtpm, 16), extended);
    // What is in its file now is what a TPM that was killed must not start with.
    swtpm.kill();
    let mut swtpm = bench.start();
    assert_eq!(pcr_2(&mut swtpm, 16), reset);
    swtpm.end();
}

#[test]
fn a_volatile_state_without_its_mark_is_not_taken_up() {
    let Some(bench) = Bench::with_tpm(Version::Tpm2) else {
        return;
    };
    let mut swtpm = bench.start();
    let reset = pcr_2(&mut swtpm, 16);
    swtpm.done(&extend_2(16));
    swtpm.end_saved();
    let volatile = bench.state().path.join("tpm2-00.volatilestate");

    assert!(volatile.exists());
    bench.state().unmark_saved().unwrap();
    let mut swtpm = bench.start();
    assert_eq!(pcr_2(&mut swtpm, 16), reset);
    assert!(!volatile.exists());
    swtpm.end();
}

#[test]
fn a_tpm_1_2_that_was_saved_goes_on() {
    let Some(bench) = Bench::with_tpm(Version::Tpm12) else {
        return;
    };
    let mut swtpm = bench.start();
    swtpm.done(&extend(10));
    let extended = swtpm.done(&pcr_read(10));
    swtpm.end_saved();

    let mut swtpm = bench.start();
    assert_eq!(swtpm.done(&pcr_read(10)), extended);
    swtpm.end();
    let mut swtpm = bench.start();
    assert_ne!(swtpm.done(&pcr_read(10)), extended);
    swtpm.end();
}
