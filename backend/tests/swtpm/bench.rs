// SPDX-License-Identifier: GPL-2.0

//! What the tests against the real swtpm have in common: a state folder, an swtpm in it, and the wait for
//! what it does.

use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use xen_vtpmd::config::{Config, Policy, Uuid};
use xen_vtpmd::record::Found;
use xen_vtpmd::state::State;
use xen_vtpmd::swtpm::{Error, Event, Setup, Source, Swtpm, Version};
use xen_vtpmd::watch::Watcher;
use xen_vtpmd::xenbus::Id;

/// Nothing here takes as long.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// The vTPM that everything is about.
pub(crate) const ID: Id = Id { domid: 7, devid: 0 };

/// TPM 2.0: eight random bytes.
pub(crate) const GET_RANDOM: [u8; 12] = [0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x7b, 0, 8];

/// What an [`Event`] was, without its borrow.
#[derive(Debug, PartialEq)]
pub(crate) enum Seen {
    Up,
    Answer(Vec<u8>),
    LocalityRefused(u32),
    Undone,
}

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
        let state = self.config.state(&self.uuid, Some(version)).unwrap();
        let mut setup = Setup::spawn(&self.config, &state).unwrap();
        let exit = setup.process().wait(LIMIT).unwrap();
        setup.finish(&exit.unwrap()).map_err(|e| e.to_string())
    }

    /// Starts an swtpm, whose [`Seen::Up`] is still to come.
    pub(crate) fn spawn(&self) -> Result<Running, Error> {
        let watcher = Watcher::new().unwrap();
        let swtpm = Swtpm::spawn(&self.config, &self.state(), ID, &watcher.registrar(1))?;
        Ok(Running { swtpm, watcher })
    }

    /// Starts an swtpm, and waits until it takes commands.
    pub(crate) fn start(&self) -> Running {
        let mut swtpm = self.spawn().unwrap();
        assert!(!swtpm.is_free());
        assert_eq!(swtpm.next().unwrap(), Seen::Up);
        assert!(swtpm.is_free());
        swtpm
    }

    /// The process that the record names.
    pub(crate) fn found(&self) -> Option<Found> {
        Found::find(&self.config, &self.uuid).unwrap()
    }

    /// Takes over the process that the record names; its [`Seen::Up`] is still to come.
    pub(crate) fn take_over(&self) -> Option<Running> {
        let watcher = Watcher::new().unwrap();
        let registrar = watcher.registrar(1);
        let swtpm = Swtpm::take_over(&self.state(), self.found()?, &registrar)?;
        Some(Running { swtpm, watcher })
    }
}

/// An swtpm and what is needed to wait for it.
pub(crate) struct Running {
    pub(crate) swtpm: Swtpm,
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

impl Running {
    /// Waits for the next thing that happens, as the daemon's loop would.
    pub(crate) fn next(&mut self) -> Result<Seen, Error> {
        let seen = self.wait(LIMIT)?;
        Ok(seen.unwrap_or_else(|| panic!("nothing happened in {LIMIT:?}")))
    }

    /// The same, for so long only.
    pub(crate) fn next_within(&mut self, limit: Duration) -> Option<Seen> {
        self.wait(limit).unwrap()
    }

    fn wait(&mut self, limit: Duration) -> Result<Option<Seen>, Error> {
        let limit = Instant::now() + limit;
        while Instant::now() < limit {
            for (_, code) in self.watcher.wait(20).unwrap() {
                let seen = match self.swtpm.on_ready(Source::from_code(code).unwrap())? {
                    Some(Event::Up) => Seen::Up,
                    Some(Event::Answer(answer)) => Seen::Answer(answer.to_vec()),
                    Some(Event::LocalityRefused(code)) => Seen::LocalityRefused(code),
                    Some(Event::Undone) => Seen::Undone,
                    None => continue,
                };
                return Ok(Some(seen));
            }
            if self.deadline().is_some_and(|limit| limit <= Instant::now()) {
                self.on_deadline()?;
            }
        }
        Ok(None)
    }

    /// Has a command carried out.
    pub(crate) fn run(&mut self, locality: u8, command: &[u8]) -> Vec<u8> {
        self.submit(locality, command).unwrap();
        assert!(!self.is_free());
        match self.next().unwrap() {
            Seen::Answer(answer) => {
                self.settled().unwrap();
                answer
            }
            seen => panic!("{seen:?} instead of an answer"),
        }
    }

    /// Has a command carried out that cannot fail.
    pub(crate) fn done(&mut self, command: &[u8]) -> Vec<u8> {
        let answer = self.run(0, command);
        assert_eq!(code(&answer), 0, "{command:02x?}: {answer:02x?}");
        answer
    }

    /// Switches it off.
    pub(crate) fn end(mut self) {
        self.shut_down();
        self.ended();
    }

    /// Saves it.
    pub(crate) fn end_saved(mut self) {
        self.save();
        self.ended();
    }

    /// Waits for its end, which is a good one.
    fn ended(&mut self) {
        match self.next() {
            Err(Error::Ended(exit)) => {
                // Of one that was taken over there is no status.
                let unknown = exit.to_string().starts_with("exit status unknown");
                assert!(exit.success() || unknown, "{exit}");
            }
            other => panic!("{other:?} instead of its end"),
        }
    }

    /// Is gone, as a daemon is that was killed.
    pub(crate) fn forget(self) {
        // Its descriptors stay open in this process, which does no harm.
        std::mem::forget(self);
    }

    /// Kills the process, and waits for its end.
    pub(crate) fn kill(&mut self) {
        kill(self.id());
        match self.next() {
            Err(Error::Ended(_)) => (),
            other => panic!("{other:?} instead of its end"),
        }
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

/// Waits until something is so.
pub(crate) fn wait_for(is_so: impl Fn() -> bool) {
    let limit = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < limit, "not so in {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
