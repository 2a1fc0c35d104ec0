// SPDX-License-Identifier: GPL-2.0

//! Commands, starts and ends.

use crate::bench::{extend_2, have_swtpm, kill, pcr_2, Bench, Seen, GET_RANDOM};
use xen_vtpmd::swtpm::{Error, Version};

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
    let Some(bench) = Bench::with_tpm(Version::Tpm2) else {
        return;
    };
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

/// TPM 2.0: starts a sequence of SHA-256, which takes one of three places for objects.
fn hash_sequence_start() -> Vec<u8> {
    vec![0x80, 1, 0, 0, 0, 14, 0, 0, 1, 0x86, 0, 0, 0, 0x0b]
}

#[test]
fn answers_that_nobody_takes_leave_nothing_in_the_tpm() {
    let Some(bench) = Bench::with_tpm(Version::Tpm2) else {
        return;
    };
    let mut swtpm = bench.start();

    for _ in 0..10 {
        let answer = swtpm.run(0, &hash_sequence_start());
        assert_eq!(answer[6..10], [0; 4]);
        swtpm.undo().unwrap();
        assert!(!swtpm.is_free());
        assert_eq!(swtpm.next().unwrap(), Seen::Undone);
    }
    // Without the undoing the places are soon taken.
    let codes = [(); 4].map(|()| {
        let answer = swtpm.run(0, &hash_sequence_start());
        u32::from_be_bytes(answer[6..10].try_into().unwrap())
    });
    assert_eq!(codes, [0, 0, 0, 0x902]);
    // And what makes nothing needs no undoing.
    swtpm.run(0, &GET_RANDOM);
    swtpm.undo().unwrap();
    assert!(swtpm.is_free());
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

    // swtpm knows of no locality 5; the command is not sent, and the next one works.
    swtpm.submit(5, &pcr_read(0)).unwrap();
    assert_eq!(swtpm.next().unwrap(), Seen::LocalityRefused(0x3d));
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
    match swtpm.next() {
        Err(Error::Ended(exit)) => assert_eq!(exit.to_string(), "signal: 9 (SIGKILL)"),
        other => panic!("{other:?} instead of its end"),
    }
    drop(swtpm);
    // The lock is gone with it.
    bench.start().end();
}

#[test]
fn a_start_without_state_is_no_tpm() {
    if !have_swtpm() {
        return;
    }
    let bench = Bench::new(None);

    match bench.spawn().unwrap().next() {
        Err(Error::Ended(exit)) => {
            let reason = exit.to_string();
            assert!(reason.contains("No such file"), "{reason}");
        }
        other => panic!("{other:?} instead of its end"),
    }
}

#[test]
fn two_do_not_share_a_state() {
    let Some(bench) = Bench::with_tpm(Version::Tpm2) else {
        return;
    };
    let first = bench.start();

    match bench.spawn().unwrap().next() {
        Err(Error::Ended(exit)) => {
            let (reason, holder) = (exit.to_string(), first.id());
            let expected = format!("is in use by process {holder} on host ");
            assert!(reason.contains(&expected), "{reason}");
        }
        other => panic!("{other:?} instead of its end"),
    }
    // swtpm_setup is refused as well.
    let reason = bench.try_set_up(Version::Tpm2).unwrap_err();
    assert!(reason.contains("is in use by process "), "{reason}");
    first.end();
}

#[test]
fn what_is_dropped_is_killed() {
    let Some(bench) = Bench::with_tpm(Version::Tpm2) else {
        return;
    };

    drop(bench.start());
    assert!(bench.found().is_none());
    bench.start().end();
}

#[test]
fn a_new_tpm_has_seen_no_dynamic_launch() {
    for version in Version::ALL {
        let Some(bench) = Bench::with_tpm(version) else {
            return;
        };
        let swtpm = bench.start();

        assert_eq!(swtpm.established(), Some(false), "TPM {version}");
        swtpm.end();
    }
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
    drop(swtpm);
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
