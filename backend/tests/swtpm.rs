// SPDX-License-Identifier: GPL-2.0

//! The daemon's swtpm client against the real swtpm, without Xen. Skipped, with a message, where
//! swtpm is not installed.

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use xen_vtpmd::swtpm::{version_of_state, Error, Event, Setup, Source, Swtpm, Version};
use xen_vtpmd::watch::Watcher;

/// Nothing here takes as long.
const LIMIT: Duration = Duration::from_secs(60);

const GET_RANDOM: [u8; 12] = [0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x7b, 0, 8];

/// What an [`Event`] was, without its borrow.
#[derive(Debug, PartialEq)]
enum Seen {
    Up,
    Answer(Vec<u8>),
    LocalityRefused(u32),
    Undone,
}

fn have_swtpm() -> bool {
    let found = ["swtpm", "swtpm_setup"].iter().all(|program| {
        let run = Command::new(program).arg("--version").output();
        run.is_ok()
    });
    if !found {
        eprintln!("SKIPPED: swtpm and swtpm_setup are not installed");
    }
    found
}

/// The state of a new TPM.
fn set_up(version: Version, state: &Path) {
    let mut setup = Setup::spawn(version, state).unwrap();
    let status = setup.process().wait().unwrap();
    setup.finish(status).unwrap();
    assert_eq!(version_of_state(state).unwrap(), Some(version));
}

/// An swtpm and what is needed to wait for it.
struct Running {
    swtpm: Swtpm,
    watcher: Watcher,
}

impl Deref for Running {
    type Target = Swtpm;

    fn deref(&self) -> &Swtpm {
        &self.swtpm
    }
}

impl DerefMut for Running {
    fn deref_mut(&mut self) -> &mut Swtpm {
        &mut self.swtpm
    }
}

/// Starts one, whose [`Seen::Up`] is still to come.
fn spawn(version: Version, state: &Path) -> Result<Running, Error> {
    let watcher = Watcher::new().unwrap();
    let swtpm = Swtpm::spawn(version, state, "test: ", &watcher.registrar(1))?;
    Ok(Running { swtpm, watcher })
}

/// Waits for the next thing that happens, as the daemon's loop would.
fn next(running: &mut Running) -> Result<Seen, Error> {
    let limit = Instant::now() + LIMIT;
    loop {
        assert!(Instant::now() < limit, "nothing happened in {LIMIT:?}");
        for (_, code) in running.watcher.wait(1000).unwrap() {
            match running.on_ready(Source::from_code(code).unwrap())? {
                Some(Event::Up) => return Ok(Seen::Up),
                Some(Event::Answer(answer)) => return Ok(Seen::Answer(answer.to_vec())),
                Some(Event::LocalityRefused(code)) => return Ok(Seen::LocalityRefused(code)),
                Some(Event::Undone) => return Ok(Seen::Undone),
                None => (),
            }
        }
        if running
            .deadline()
            .is_some_and(|limit| limit <= Instant::now())
        {
            running.on_deadline()?;
        }
    }
}

fn start(version: Version, state: &Path) -> Running {
    let mut swtpm = spawn(version, state).unwrap();
    assert!(!swtpm.is_free());
    assert_eq!(next(&mut swtpm).unwrap(), Seen::Up);
    assert!(swtpm.is_free());
    swtpm
}

/// A new TPM that takes commands, and the folder of its state; `None` where there is no swtpm.
fn started(version: Version) -> Option<(TempDir, Running)> {
    if !have_swtpm() {
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    set_up(version, &state);
    let swtpm = start(version, &state);
    Some((folder, swtpm))
}

fn run(swtpm: &mut Running, locality: u8, command: &[u8]) -> Vec<u8> {
    swtpm.submit(locality, command).unwrap();
    assert!(!swtpm.is_free());
    match next(swtpm).unwrap() {
        Seen::Answer(answer) => answer,
        seen => panic!("{seen:?} instead of an answer"),
    }
}

fn end(mut swtpm: Running) {
    swtpm.shut_down();
    match next(&mut swtpm) {
        Err(Error::Ended(status)) => assert!(status.success(), "{status}"),
        other => panic!("{other:?} instead of its end"),
    }
}

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
    if !have_swtpm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("with, comma");
    set_up(Version::Tpm2, &state);

    let mut swtpm = start(Version::Tpm2, &state);
    for locality in [0, 0, 3, 4, 1] {
        let answer = run(&mut swtpm, locality, &GET_RANDOM);
        assert_eq!(answer[..10], [0x80, 1, 0, 0, 0, 20, 0, 0, 0, 0]);
    }
    end(swtpm);

    // And once more on the same state.
    let mut swtpm = start(Version::Tpm2, &state);
    assert_eq!(run(&mut swtpm, 0, &GET_RANDOM).len(), 20);
    end(swtpm);
}

/// TPM 2.0: starts a sequence of SHA-256, which takes one of three places for objects.
fn hash_sequence_start() -> Vec<u8> {
    vec![0x80, 1, 0, 0, 0, 14, 0, 0, 1, 0x86, 0, 0, 0, 0x0b]
}

#[test]
fn answers_that_nobody_takes_leave_nothing_in_the_tpm() {
    let Some((_folder, mut swtpm)) = started(Version::Tpm2) else {
        return;
    };

    for _ in 0..10 {
        let answer = run(&mut swtpm, 0, &hash_sequence_start());
        assert_eq!(answer[6..10], [0; 4]);
        swtpm.undo().unwrap();
        assert!(!swtpm.is_free());
        assert_eq!(next(&mut swtpm).unwrap(), Seen::Undone);
    }
    // Without the undoing the places are soon taken.
    let codes = [(); 4].map(|()| {
        let answer = run(&mut swtpm, 0, &hash_sequence_start());
        u32::from_be_bytes(answer[6..10].try_into().unwrap())
    });
    assert_eq!(codes, [0, 0, 0, 0x902]);
    // And what makes nothing needs no undoing.
    run(&mut swtpm, 0, &GET_RANDOM);
    swtpm.undo().unwrap();
    assert!(swtpm.is_free());
    end(swtpm);
}

#[test]
fn tpm_1_2_and_its_localities() {
    let Some((_folder, mut swtpm)) = started(Version::Tpm12) else {
        return;
    };

    assert_eq!(run(&mut swtpm, 0, &pcr_read(0)).len(), 30);
    // PCR 20 is for locality 2 and up, 10 for all.
    let codes = [0, 2, 0, 3].map(|locality| {
        let answer = run(&mut swtpm, locality, &extend(20));
        u32::from_be_bytes(answer[6..10].try_into().unwrap())
    });
    assert_eq!(codes[0], 0x3d, "TPM_BAD_LOCALITY");
    assert_eq!(codes[1], 0);
    assert_eq!(codes[2], 0x3d, "TPM_BAD_LOCALITY");
    assert_eq!(run(&mut swtpm, 0, &extend(10)).len(), 30);

    // swtpm knows of no locality 5; the command is not sent, and the next one works.
    swtpm.submit(5, &pcr_read(0)).unwrap();
    assert_eq!(next(&mut swtpm).unwrap(), Seen::LocalityRefused(0x3d));
    assert_eq!(run(&mut swtpm, 0, &pcr_read(0)).len(), 30);
    end(swtpm);
}

#[test]
fn a_dead_swtpm_is_an_error_and_no_answer() {
    let Some((_folder, mut swtpm)) = started(Version::Tpm2) else {
        return;
    };
    let killed = Command::new("kill")
        .args(["-9", &swtpm.id().to_string()])
        .status();

    assert!(killed.unwrap().success());
    assert!(matches!(
        next(&mut swtpm),
        Err(Error::Ended(_) | Error::Closed(_) | Error::Socket(..))
    ));
}

#[test]
fn a_start_without_state_is_no_tpm() {
    if !have_swtpm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("none");

    assert!(matches!(spawn(Version::Tpm2, &state), Err(Error::Spawn(_))));
}

#[test]
fn two_do_not_share_a_state() {
    if !have_swtpm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    set_up(Version::Tpm2, &state);
    let first = start(Version::Tpm2, &state);
    let mut second = spawn(Version::Tpm2, &state).unwrap();

    match next(&mut second) {
        Err(Error::Refused("CMD_INIT", _) | Error::Closed(_) | Error::Ended(_)) => (),
        other => panic!("{other:?} instead of a refusal"),
    }
    end(first);
}
