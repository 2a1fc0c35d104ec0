// SPDX-License-Identifier: GPL-2.0

//! A vTPM's state in an swtpm that no guest uses, for the administrator's commands: on a copy, in a directory of
//! its own, as the vTPM's user. tpm2-tools and swtpm_ioctl talk to it, as that user too; nothing that they or
//! swtpm leave there is trusted.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{chown, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use tempfile::TempDir;

use crate::files::read_open;
use crate::swtpm::Version;

/// How long each program may take, for timeout(1).
const PROGRAM_TIMEOUT: &str = "60";

/// How long swtpm may take to come up, and to end.
const SWTPM_TIMEOUT: Duration = Duration::from_secs(20);
const CHECK: Duration = Duration::from_millis(10);

/// The largest file that is taken from the directory.
const MAX_FILE: u64 = 1 << 20;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory cannot be made or used.
    #[error("{}: {source}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A program cannot be started.
    #[error("{program} (from {package}): {source}")]
    Start {
        /// Which.
        program: String,
        /// What it comes with.
        package: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A program failed.
    #[error("{program}: {reason}")]
    Failed {
        /// Which.
        program: String,
        /// What it said.
        reason: String,
    },
}

/// How swtpm begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// It waits for swtpm_ioctl.
    Bare,
    /// As a TPM that was switched on, ready for commands.
    Up,
}

/// A place for an swtpm and its state.
#[derive(Debug)]
pub struct Place {
    // Dropped, and with it the directory, after whatever ran there.
    dir: TempDir,
    /// The state's directory, as it was made: its name is swtpm's to change.
    state: File,
    uid: Option<u32>,
}

/// An swtpm that runs there.
#[derive(Debug)]
pub struct Session<'a> {
    place: &'a Place,
    child: Child,
}

fn at(path: &Path) -> impl Fn(io::Error) -> Error + '_ {
    |source| Error::File {
        path: path.to_owned(),
        source,
    }
}

impl Place {
    /// An empty one below `dir`, for programs that run as `uid`, or as the caller.
    pub fn new(dir: &Path, uid: Option<u32>) -> Result<Self, Error> {
        let dir = tempfile::Builder::new()
            .prefix("tmp-")
            .tempdir_in(dir)
            .map_err(at(dir))?;
        let state = dir.path().join("state");
        let make = || {
            fs::create_dir(&state)?;
            if let Some(uid) = uid {
                chown(&state, Some(uid), Some(uid))?;
                chown(dir.path(), Some(uid), Some(uid))?;
            }
            // Before anybody else is here.
            File::open(&state)
        };
        let state = make().map_err(at(&state))?;
        Ok(Self { dir, state, uid })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Puts a file into the state.
    pub fn put(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let path = self.path("state").join(name);
        let write = || {
            let mut options = fs::OpenOptions::new();
            let mut file = options
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)?;
            file.write_all(bytes)?;
            match self.uid {
                Some(uid) => std::os::unix::fs::fchown(&file, Some(uid), Some(uid)),
                None => Ok(()),
            }
        };
        write().map_err(at(&path))
    }

    /// Takes a file of the state.
    pub fn take(&self, name: &str) -> Result<Vec<u8>, Error> {
        let path = self.path("state").join(name);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&self.state, name, flags, Mode::empty());
        let read = opened
            .map_err(io::Error::from)
            .and_then(|fd| read_open(fd.into(), MAX_FILE));
        read.map_err(at(&path))
    }

    /// A program as the vTPM's user, without privileges, and without anything of the caller's.
    fn command(&self, program: &str, time: &str) -> Command {
        let mut command = Command::new("timeout");
        command
            .args(["-k", "5", time])
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", "/")
            .env(
                "TPM2TOOLS_TCTI",
                format!("swtpm:path={}", self.path("tpm").display()),
            )
            .env("TSS2_LOG", "all+none")
            .current_dir(self.dir.path())
            .stdin(Stdio::null());
        if let Some(uid) = self.uid {
            command
                .arg("setpriv")
                .arg(format!("--reuid={uid}"))
                .arg(format!("--regid={uid}"))
                .args(["--clear-groups", "--bounding-set=-all", "--inh-caps=-all"])
                .args(["--no-new-privs", "--"]);
        }
        command.arg(program);
        command
    }

    /// Starts swtpm on the state that is there, with the key on its standard input.
    pub fn start(
        &self,
        version: Version,
        key: Option<OwnedFd>,
        start: Start,
    ) -> Result<Session<'_>, Error> {
        let socket = self.path("tpm");
        let control = self.path("tpm.ctrl");
        // swtpm unlinks them itself only when it ends well.
        let _ = fs::remove_file(&socket);
        let _ = fs::remove_file(&control);
        let mut command = self.command("swtpm", "600");
        command
            .args(["socket", "--tpmstate", "dir=state,mode=0600"])
            .arg("--server")
            .arg(format!("type=unixio,path={}", socket.display()))
            .arg("--ctrl")
            .arg(format!("type=unixio,path={}", control.display()))
            .args(["--log", "level=0"]);
        if version == Version::Tpm2 {
            command.arg("--tpm2");
        }
        if self.uid.is_some() {
            command.args(["--seccomp", "action=kill"]);
        }
        if start == Start::Up {
            command.args(["--flags", "not-need-init,startup-clear"]);
        }
        if let Some(key) = key {
            command
                .args(["--key", "fd=0,mode=aes-256-cbc,format=hex"])
                .stdin(key);
        }
        let child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|source| Error::Start {
                program: "swtpm".into(),
                package: "swtpm",
                source,
            })?;
        let mut session = Session { place: self, child };
        session.wait_for(&control)?;
        if start == Start::Up {
            // It reads the state after it has made its sockets, and ends if that is not what it can read.
            session.ioctl(&["-g"]).map_err(|_| refused("it ended"))?;
        }
        Ok(session)
    }
}

fn refused(how: &str) -> Error {
    Error::Failed {
        program: "swtpm".into(),
        reason: format!(
            "does not take the state ({how}): is it in the clear, or encrypted with another key than key-file's?"
        ),
    }
}

impl Session<'_> {
    fn wait_for(&mut self, path: &Path) -> Result<(), Error> {
        let deadline = Instant::now() + SWTPM_TIMEOUT;
        let failed = |reason: String| Error::Failed {
            program: "swtpm".into(),
            reason,
        };
        while !path.exists() {
            match self.child.try_wait() {
                Ok(None) if Instant::now() < deadline => thread::sleep(CHECK),
                Ok(None) => return Err(failed("does not come up".into())),
                Ok(Some(status)) => return Err(refused(&status.to_string())),
                Err(e) => return Err(failed(e.to_string())),
            }
        }
        Ok(())
    }

    /// Runs one of tpm2-tools. Returns what it prints.
    pub fn tpm2(&self, program: &str, arguments: &[&str]) -> Result<Vec<u8>, Error> {
        self.run(program, "tpm2-tools", arguments)
    }

    /// Runs swtpm_ioctl.
    pub fn ioctl(&self, arguments: &[&str]) -> Result<Vec<u8>, Error> {
        let control = self.place.path("tpm.ctrl");
        let control = control.to_string_lossy();
        let all: Vec<&str> = ["--unix", &control]
            .into_iter()
            .chain(arguments.iter().copied())
            .collect();
        self.run("swtpm_ioctl", "swtpm-tools", &all)
    }

    fn run(
        &self,
        program: &str,
        package: &'static str,
        arguments: &[&str],
    ) -> Result<Vec<u8>, Error> {
        let mut command = self.place.command(program, PROGRAM_TIMEOUT);
        let output = command.args(arguments).output();
        let output = output.map_err(|source| Error::Start {
            program: program.to_owned(),
            package,
            source,
        })?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().rev().find(|line| !line.trim().is_empty());
        let reason = match (output.status.code(), last) {
            (Some(124), _) => format!("takes more than {PROGRAM_TIMEOUT} s"),
            (Some(126 | 127), _) => format!("cannot be run: is {package} installed?"),
            (_, Some(line)) => line.to_owned(),
            (_, None) => output.status.to_string(),
        };
        Err(Error::Failed {
            program: program.to_owned(),
            reason,
        })
    }

    /// Ends swtpm, and waits for that.
    pub fn end(mut self) -> Result<(), Error> {
        self.ioctl(&["-s"])?;
        let deadline = Instant::now() + SWTPM_TIMEOUT;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                return Err(Error::Failed {
                    program: "swtpm".into(),
                    reason: "does not end".into(),
                });
            }
            thread::sleep(CHECK);
        }
        Ok(())
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let pid = i32::try_from(self.child.id()).ok();
            if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
                // timeout(1) passes it on, and has not been waited for.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::Term);
            }
            let _ = self.child.wait();
        }
    }
}
