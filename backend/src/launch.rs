// SPDX-License-Identifier: GPL-2.0

//! The launcher: the subcommand `launch` in a process of its own, which enters the sandbox and becomes swtpm or
//! swtpm_setup. It is told what to do on its standard input; what keeps it from that it says on standard error.

pub(crate) mod filter;
mod sandbox;

use std::convert::Infallible;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::{lchown, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use rustix::process::{setrlimit, setsid, Resource, Rlimit, Signal};
use rustix::thread::{unshare, UnshareFlags};
use serde::{Deserialize, Serialize};

use crate::config::{Config, Uuid};
use crate::record::{Record, RunDir};
use crate::state::State;
use crate::swtpm::{Process, Version};
use crate::sys::landlock;

use sandbox::STATE;

/// The CA that swtpm_localca signs with. The one whom this belongs to is the one who may.
const CA_DIR: &str = "/var/lib/swtpm-localca";

/// The filter of system calls, as setpriv sees it.
const FILTER: &str = "/etc/filter";

/// The largest file that swtpm may write: far more than any state.
const MAX_FILE: u64 = 64 << 20;

/// What swtpm_setup needs room for, however little swtpm is to have: it starts an swtpm, too.
const MAX_PROCESSES: u64 = 16;

/// The open files that either may have.
const MAX_FILES: u64 = 64;

/// What is to be launched.
#[derive(Debug, Serialize, Deserialize)]
pub struct Launch {
    uuid: String,
    version: String,
    /// The directory to run in.
    folder: PathBuf,
    /// What the state is called.
    state: PathBuf,
    run_dir: PathBuf,
    first_uid: Option<u32>,
    memory: u32,
    /// What the vTPM's cgroup has for all of its processes.
    tasks: u32,
    key: Option<RawFd>,
    program: Program,
}

/// As what the process ends up.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Program {
    /// The TPM.
    Swtpm {
        /// Where its record goes.
        run: PathBuf,
        /// The listening control socket.
        control: RawFd,
        /// Whether its locality 4 is to be closed.
        reject_locality_4: bool,
        /// Whether it can make its files durable itself.
        fsync: bool,
    },
    /// What makes a TPM's state.
    Setup {
        /// Whether it signs certificates as well.
        certificates: bool,
    },
}

/// Says what could not be done.
fn failed<E: std::fmt::Display>(what: impl std::fmt::Display) -> impl FnOnce(E) -> String {
    move |e| format!("{what}: {e}")
}

impl Launch {
    /// For a vTPM's state, as the configuration has it. The directory to run in is there.
    pub fn new(
        config: &Config,
        state: &State,
        folder: &Path,
        key: Option<BorrowedFd<'_>>,
        program: Program,
    ) -> Self {
        Self {
            uuid: state.uuid.to_string(),
            version: state.version.to_string(),
            folder: folder.to_owned(),
            state: state.path.clone(),
            run_dir: config.run_dir.clone(),
            first_uid: config.first_uid,
            memory: config.policy(&state.uuid).memory,
            tasks: config.limits.tasks,
            key: key.map(|fd| fd.as_raw_fd()),
            program,
        }
    }

    /// Starts it, with messages going to `messages` and these descriptors inherited.
    pub fn spawn(
        &self,
        config: &Config,
        messages: &File,
        inherited: &[BorrowedFd<'_>],
    ) -> io::Result<Process> {
        let mut command = Command::new(&config.launcher);
        command
            .arg("launch")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(messages.try_clone()?);
        let mut process = Process::spawn(&mut command, inherited)?;
        if let Some(mut stdin) = process.child().and_then(|child| child.stdin.take()) {
            stdin.write_all(&serde_json::to_vec(self)?)?;
        }
        Ok(process)
    }

    /// Reads what to do, as [`spawn`](Self::spawn) wrote it.
    pub fn read(from: impl Read) -> io::Result<Self> {
        Ok(serde_json::from_reader(from)?)
    }

    /// Does it, in the process that is to become the program. Returns the reason if it cannot.
    pub fn run(&self) -> Result<Infallible, String> {
        let uuid: Uuid = self.uuid.parse()?;
        let version: Version = self.version.parse()?;
        let (uid, gid) = self.owner()?;
        // A signal for the worker's terminal is none for a TPM.
        let _ = setsid();

        let arguments = self.arguments(version);
        if let Program::Swtpm { run, .. } = &self.program {
            let user = uid.unwrap_or(rustix::process::getuid().as_raw());
            Record::of_self(&uuid, version, user, &self.state)
                .and_then(|record| record.write(&RunDir::at(run.clone())))
                .map_err(failed(format!("record in {}", run.display())))?;
        }
        self.limit()?;
        let Some(uid) = uid else {
            std::env::set_current_dir(&self.folder).map_err(failed(self.folder.display()))?;
            let mut command = Command::new(&arguments[0]);
            return Err(match self.program {
                Program::Swtpm { .. } => {
                    format!("{}: {}", arguments[0], command.args(&arguments[1..]).exec())
                }
                Program::Setup { .. } => self.finish(command.args(&arguments[1..]))?,
            });
        };
        self.enter_sandbox(uid)?;
        std::env::set_current_dir(STATE).map_err(failed(STATE))?;
        let mut command = self.setpriv(uid, gid);
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin")
            .env("HOME", "/tmp")
            .args(&arguments);
        match self.program {
            Program::Swtpm { .. } => Err(format!("setpriv: {}", command.exec())),
            Program::Setup { .. } => Err(self.finish(&mut command)?),
        }
    }

    /// The user and the group that the directory was given to, `None` without isolation.
    fn owner(&self) -> Result<(Option<u32>, u32), String> {
        if self.first_uid.is_none() {
            return Ok((None, 0));
        }
        let data = fs::symlink_metadata(&self.folder).map_err(failed(self.folder.display()))?;
        match data.uid() {
            0 => Err(format!("{} is root's", self.folder.display())),
            uid => Ok((Some(uid), data.gid())),
        }
    }

    /// Runs swtpm_setup to its end in a pid namespace of its own, which ends with this process and with
    /// swtpm_setup, and takes the swtpm with it that swtpm_setup starts.
    fn finish(&self, command: &mut Command) -> Result<String, String> {
        rustix::process::set_parent_process_death_signal(Some(Signal::Kill))
            .map_err(failed("parent"))?;
        if self.first_uid.is_some() {
            unshare(UnshareFlags::NEWPID).map_err(failed("pid namespace"))?;
        }
        let status: ExitStatus = command.status().map_err(failed("swtpm_setup"))?;
        match status.success() {
            true => std::process::exit(0),
            false => Ok(format!("swtpm_setup: {status}")),
        }
    }

    /// The program and its arguments.
    fn arguments(&self, version: Version) -> Vec<String> {
        let mut arguments = Vec::new();
        let mut add = |more: &[&str]| arguments.extend(more.iter().map(ToString::to_string));

        match &self.program {
            Program::Swtpm {
                control,
                reject_locality_4,
                fsync,
                ..
            } => {
                let state = match fsync {
                    true => "dir=.,mode=0600,fsync",
                    false => "dir=.,mode=0600",
                };
                add(&["swtpm", "socket", "--tpmstate", state]);
                let control = format!("type=unixio,fd={control}");
                add(&["--ctrl", &control, "--log", "level=1,prefix=swtpm: "]);
                if *reject_locality_4 {
                    add(&["--locality", "reject-locality-4"]);
                }
                if self.first_uid.is_some() {
                    add(&["--seccomp", "action=kill"]);
                }
                if let Some(fd) = self.key {
                    add(&["--key", &format!("fd={fd},mode=aes-256-cbc,format=hex")]);
                }
                if version == Version::Tpm2 {
                    add(&["--tpm2"]);
                }
            }
            Program::Setup { certificates } => {
                add(&["swtpm_setup", "--tpmstate", ".", "--createek"]);
                if let Some(fd) = self.key {
                    add(&["--keyfile-fd", &fd.to_string(), "--cipher", "aes-256-cbc"]);
                }
                if *certificates {
                    add(&["--create-ek-cert", "--vmid", &self.uuid]);
                }
                if version == Version::Tpm2 {
                    // sha1 too: event logs and the kernel's own tests use that bank.
                    add(&["--tpm2", "--pcr-banks", "sha1,sha256"]);
                    if *certificates {
                        add(&["--create-platform-cert"]);
                    }
                }
            }
        }
        arguments
    }

    fn limit(&self) -> Result<(), String> {
        let limit = |what, value| {
            let value = Some(value);
            let limit = Rlimit {
                current: value,
                maximum: value,
            };
            setrlimit(what, limit).map_err(failed("limits"))
        };
        limit(Resource::Core, 0)?;
        limit(Resource::Fsize, MAX_FILE)?;
        limit(Resource::Nofile, MAX_FILES)?;
        limit(Resource::As, u64::from(self.memory) << 20)?;
        match (self.first_uid, &self.program) {
            // The rest of the cgroup's is the worker's, which has to go on whatever swtpm does.
            (Some(_), Program::Swtpm { .. }) => limit(
                Resource::Nproc,
                MAX_PROCESSES.min(u64::from(self.tasks) / 2),
            ),
            // swtpm_setup is yet to be forked, by a root that may be an ordinary user's: see setpriv().
            _ => Ok(()),
        }
    }

    fn signs(&self) -> bool {
        matches!(self.program, Program::Setup { certificates: true })
    }

    /// What runs a program as a user, without any privilege and any way to one.
    fn setpriv(&self, uid: u32, gid: u32) -> Command {
        let mut command = Command::new("/usr/bin/setpriv");
        command
            .arg(format!("--reuid={uid}"))
            .arg(format!("--regid={gid}"))
            .args(["--clear-groups", "--bounding-set=-all", "--inh-caps=-all"])
            .args(["--no-new-privs", "--seccomp-filter", FILTER]);
        if let Program::Setup { .. } = self.program {
            command.args(["--pdeathsig", "KILL"]);
        }
        if has_landlock() {
            command.args(LANDLOCK);
            if self.signs() {
                let rights = "read-file,read-dir,write-file,truncate,make-reg,make-dir,remove-file";
                command.arg("--landlock-rule");
                command.arg(format!("path-beneath:{rights}:{CA_DIR}"));
                command.args(["--landlock-rule", "path-beneath:read-file,read-dir:/etc"]);
            }
        }
        command.arg("--");
        if let Program::Setup { .. } = self.program {
            // Of its own user's processes: those of this one's may be many already.
            command.arg("/usr/bin/prlimit");
            command.arg(format!("--nproc={MAX_PROCESSES}"));
        }
        command
    }
}

/// Gives what swtpm_setup makes certificates in to the user and the group of the CA.
pub fn give_to_ca(folder: &Path) -> Result<(), String> {
    let ca = fs::metadata(CA_DIR).map_err(failed(format!(
        "certificates need {CA_DIR}, which comes with swtpm-tools"
    )))?;
    if ca.uid() == 0 {
        return Err(format!(
            "{CA_DIR} is root's: certificates are signed by a user without privileges"
        ));
    }
    // The directory's group may be root's; the user's own is not.
    let gid = primary_group(ca.uid()).ok_or_else(|| {
        format!(
            "the owner of {CA_DIR}, {}, has no entry in /etc/passwd",
            ca.uid()
        )
    })?;
    lchown(folder, Some(ca.uid()), Some(gid)).map_err(failed(folder.display()))
}

/// The group that /etc/passwd has for a user.
fn primary_group(uid: u32) -> Option<u32> {
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':').skip(2);
        let found: u32 = fields.next()?.parse().ok()?;
        let gid: u32 = fields.next()?.parse().ok()?;
        (found == uid && gid != 0).then_some(gid)
    })
}

/// How landlock keeps the program to its files even if it breaks out of its root.
const LANDLOCK: [&str; 12] = [
    "--landlock-access",
    "fs",
    "--landlock-rule",
    "path-beneath:execute,read-file,read-dir:/usr",
    "--landlock-rule",
    "path-beneath:read-file:/etc",
    "--landlock-rule",
    "path-beneath:read-file,read-dir,write-file,truncate,make-reg,remove-file:/state",
    "--landlock-rule",
    "path-beneath:read-file,read-dir,write-file,truncate,make-reg,make-sock,make-dir,remove-file,remove-dir:/tmp",
    "--landlock-rule",
    "path-beneath:read-file,write-file:/dev",
];

/// Whether the kernel has the landlock that `LANDLOCK` asks for: "truncate" came with the third version.
pub fn has_landlock() -> bool {
    landlock::version() >= 3
}
