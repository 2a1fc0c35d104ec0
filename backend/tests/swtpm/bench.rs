// SPDX-License-Identifier: GPL-2.0

//! What the tests against the real swtpm have in common: a state folder, an swtpm in it, and the wait for
//! what it does.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use xen_vtpmd::config::{Config, Policy, Uuid};
use xen_vtpmd::measure::Boot;
use xen_vtpmd::record::{Record, RunDir};
use xen_vtpmd::state::{self, Guest, State};
use xen_vtpmd::swtpm::{GiveUp, Version};
use xen_vtpmd::sys::shared::{Entry, Shared};
use xen_vtpmd::worker;
use xen_vtpmd::worker::messages::Messages;
use xen_vtpmd::worker::tpm::{Error, Held, Place, Tpm};
use xen_vtpmd::xenbus::Id;

/// The vTPM that everything is about.
pub(crate) const ID: Id = Id { domid: 7, devid: 0 };

/// TPM 2.0: eight random bytes.
pub(crate) const GET_RANDOM: [u8; 12] = [0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x7b, 0, 8];

/// Says why a test cannot run here. Where all that it needs has to be there, it fails.
fn skipped(why: &str) {
    assert!(std::env::var_os("XEN_VTPMD_MUST").is_none(), "{why}");
    eprintln!("SKIPPED: {why}");
}

/// Whether swtpm is there; says so if not.
pub(crate) fn have_swtpm() -> bool {
    let found = ["swtpm", "swtpm_setup"].iter().all(|program| {
        let run = Command::new(program).arg("--version").output();
        run.is_ok()
    });
    if !found {
        skipped("swtpm and swtpm_setup are not installed");
    }
    found
}

/// Whether this is root, who can isolate; says so if not.
pub(crate) fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        skipped("not root");
    }
    root
}

/// A machine with one vTPM.
pub(crate) struct Bench {
    pub(crate) config: Config,
    pub(crate) uuid: Uuid,
    pub(crate) folder: TempDir,
}

impl Bench {
    /// Without a state yet; `first_uid` as in [`Config`].
    pub(crate) fn new(first_uid: Option<u32>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = Config {
            state_dir: folder.path().join("with, comma"),
            run_dir: folder.path().join("run"),
            first_uid,
            launcher: PathBuf::from(env!("CARGO_BIN_EXE_xen-vtpmd")),
            ..Config::default()
        };
        Self {
            config,
            uuid: "0f8fad5b-d9cb-469f-a165-70867728950e".parse().unwrap(),
            folder,
        }
    }

    /// With a new TPM that is not isolated; `None` where there is no swtpm.
    pub(crate) fn with_tpm(version: Version) -> Option<Self> {
        if !have_swtpm() {
            return None;
        }
        let bench = Self::new(None);
        bench.set_up(version);
        Some(bench)
    }

    /// What the administrator decided for the vTPM.
    pub(crate) fn policy(&mut self) -> &mut Policy {
        &mut self.config.policy
    }

    /// Its state.
    pub(crate) fn state(&self) -> State {
        self.config.state(&self.uuid, None).unwrap()
    }

    /// Makes its state.
    pub(crate) fn set_up(&self, version: Version) {
        self.try_set_up(version).unwrap();
        let state = self.state();
        assert!(state.exists && state.version == version);
    }

    /// Makes its state, unless that fails.
    pub(crate) fn try_set_up(&self, version: Version) -> Result<(), String> {
        unlocked(
            || {
                worker::create_state(&self.config, &self.uuid, Some(version))
                    .map_err(|e| e.to_string())
            },
            |reason| reason.contains("is locked"),
        )
    }

    /// Starts an swtpm, and waits until it takes commands.
    pub(crate) fn start(&self) -> Running {
        self.try_start().unwrap()
    }

    /// The same, unless that fails.
    pub(crate) fn try_start(&self) -> Result<Running, Error> {
        let held = unlocked(
            || Held::take(&self.config, &self.uuid, None),
            |e| matches!(e, state::Error::Locked { .. }),
        )?;
        let run = RunDir::make(&self.config.run_dir, ID).unwrap();
        let shared = Shared::open(&run.io_file()).unwrap();
        let mut messages = Messages::new(run.messages().unwrap());
        let place = self.place(&run);
        let tpm = Tpm::start(
            &place,
            held,
            Guest::default(),
            Boot::default(),
            &shared,
            &mut messages,
        )?;
        assert_eq!(shared.entry(), Entry::Free);
        Ok(Running { tpm, run })
    }

    fn place<'a>(&'a self, run: &'a RunDir) -> Place<'a> {
        Place {
            config: &self.config,
            run,
            give_up: GiveUp::never(),
        }
    }

    /// Goes on with the process that the record names, as the next worker does.
    pub(crate) fn adopt(&self) -> Option<Running> {
        let run = RunDir::make(&self.config.run_dir, ID).unwrap();
        let shared = Shared::open(&run.io_file()).unwrap();
        let tpm = Tpm::adopt(&self.place(&run), &self.uuid, &shared).unwrap()?;
        Some(Running { tpm, run })
    }

    /// The record.
    pub(crate) fn record(&self) -> Option<Record> {
        let run = RunDir::make(&self.config.run_dir, ID).unwrap();
        Record::read(&run).unwrap()
    }
}

/// An swtpm. Dropping it leaves it alone, as the end of a worker does.
pub(crate) struct Running {
    pub(crate) tpm: Tpm,
    run: RunDir,
}

impl Running {
    /// The process's id.
    pub(crate) fn id(&self) -> u32 {
        self.tpm.pid()
    }

    /// Has a command carried out, unless the process ends.
    pub(crate) fn try_run(&mut self, command: &[u8]) -> Option<Vec<u8>> {
        let response = self.tpm.client().command("a test's command", command);
        response.ok().map(|response| response.packet().to_vec())
    }

    /// Has a command carried out.
    pub(crate) fn run(&mut self, locality: u8, command: &[u8]) -> Vec<u8> {
        assert!(self.tpm.client().set_locality(locality).unwrap());
        self.try_run(command).unwrap()
    }

    /// Has a command carried out that cannot fail.
    pub(crate) fn done(&mut self, command: &[u8]) -> Vec<u8> {
        let answer = self.run(0, command);
        assert_eq!(code(&answer), 0, "{command:02x?}: {answer:02x?}");
        answer
    }

    /// Switches it off.
    pub(crate) fn end(self) {
        self.tpm.end(Entry::Free, &self.run).unwrap();
    }

    /// Saves it.
    pub(crate) fn end_saved(mut self) {
        self.tpm.save().unwrap();
        self.tpm.state().mark_saved(None).unwrap();
        self.tpm.end_saved(&self.run);
    }

    /// Kills it.
    pub(crate) fn kill(self) {
        self.tpm.kill(&self.run);
    }
}

/// Kills a process.
pub(crate) fn kill(pid: u32) {
    let killed = Command::new("kill").args(["-9", &pid.to_string()]).status();
    assert!(killed.unwrap().success());
}

/// An answer's code.
pub(crate) fn code(answer: &[u8]) -> u32 {
    u32::from_be_bytes(answer[6..10].try_into().unwrap())
}

/// TPM 2.0: extends a PCR of the SHA-256 bank by 32 ones, with an empty password.
pub(crate) fn extend_2(pcr: u8) -> Vec<u8> {
    let mut command = vec![0x80, 2, 0, 0, 0, 65, 0, 0, 1, 0x82, 0, 0, 0, pcr];
    command.extend_from_slice(&[0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0]);
    command.extend_from_slice(&[0, 0, 0, 1, 0, 0x0b]);
    command.extend_from_slice(&[1; 32]);
    command
}

/// TPM 2.0: the value of a PCR of the SHA-256 bank.
pub(crate) fn pcr_2(swtpm: &mut Running, pcr: u8) -> Vec<u8> {
    let mut command = vec![0x80, 1, 0, 0, 0, 20, 0, 0, 1, 0x7e];
    command.extend_from_slice(&[0, 0, 0, 1, 0, 0x0b, 3, 0, 0, 0]);
    command[17 + usize::from(pcr / 8)] = 1 << (pcr % 8);
    let answer = swtpm.done(&command);
    answer[answer.len() - 32..].to_vec()
}

/// Tries again for a while where a state is locked: a process that another test's thread starts has copies of all
/// descriptors for a moment, so that a lock is held a little longer.
fn unlocked<T, E>(
    try_once: impl Fn() -> Result<T, E>,
    is_locked: impl Fn(&E) -> bool,
) -> Result<T, E> {
    for _ in 0..500 {
        match try_once() {
            Err(e) if is_locked(&e) => std::thread::sleep(Duration::from_millis(10)),
            done => return done,
        }
    }
    try_once()
}
