// SPDX-License-Identifier: GPL-2.0

//! The launcher: the subcommand `launch` in a process of its own, which takes the state's lock, gives up all it
//! can, and becomes swtpm or swtpm_setup. What keeps it from that it says on its standard output.

use std::convert::Infallible;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{lchown, symlink, DirBuilderExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::Mode;
use rustix::io::{fcntl_setfd, Errno, FdFlags};
use rustix::mount::{
    mount, mount_bind, mount_change, mount_remount, MountFlags, MountPropagationFlags,
};
use rustix::process::{chroot, setrlimit, setsid, umask, Resource, Rlimit};
use rustix::thread::{unshare, UnshareFlags};
use serde::{Deserialize, Serialize};

use crate::config::{Config, Policy, Uuid};
use crate::record::{Fds, Record};
use crate::state::{Lock, State};
use crate::swtpm::Version;

/// The CA that swtpm_localca signs with. The one whom this belongs to is the one who may.
const CA_DIR: &str = "/var/lib/swtpm-localca";

/// The state folder, as swtpm sees it.
const STATE: &str = "/state";

/// The largest file that swtpm may write: far more than any state, and than most logs that its standard
/// error may be.
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
    state_dir: PathBuf,
    run_dir: PathBuf,
    first_uid: Option<u32>,
    memory: u32,
    key_file: Option<PathBuf>,
    program: Program,
}

/// As what the process ends up.
#[derive(Debug, Serialize, Deserialize)]
pub enum Program {
    /// The TPM.
    Swtpm {
        /// Whose it is.
        vtpm: String,
        /// The descriptors that it inherits.
        fds: Fds,
    },
    /// What makes a TPM's state.
    Setup {
        /// Whether it signs certificates as well.
        certificates: bool,
    },
}

/// Who the process becomes, and how much it sees.
enum Room {
    /// It stays as it is, in this folder.
    Open(PathBuf),
    /// Another user, who sees what there is to see, in this folder.
    User(PathBuf, u32, u32),
    /// Another user, who sees nothing but programs and this folder.
    Closed(PathBuf, u32),
}

/// Says what could not be done.
fn failed<E: std::fmt::Display>(what: impl std::fmt::Display) -> impl FnOnce(E) -> String {
    move |e| format!("{what}: {e}")
}

impl Launch {
    /// For a vTPM's state, as the configuration has it.
    pub fn new(config: &Config, state: &State, program: Program) -> Self {
        let policy = config.policy(&state.uuid);
        Self {
            uuid: state.uuid.to_string(),
            version: state.version.to_string(),
            state_dir: config.state_dir.clone(),
            run_dir: config.run_dir.clone(),
            first_uid: config.first_uid,
            memory: policy.memory,
            key_file: policy.key_file.clone(),
            program,
        }
    }

    /// The command that does it. What it inherits is the caller's business.
    pub fn command(&self, config: &Config) -> io::Result<Command> {
        let mut command = Command::new(&config.launcher);

        command
            .arg("launch")
            .arg(serde_json::to_string(self)?)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        Ok(command)
    }

    /// Does it, in the process that is to become the program. Returns the reason if it cannot.
    pub fn run(&self) -> Result<Infallible, String> {
        let uuid: Uuid = self.uuid.parse()?;
        let version: Version = self.version.parse()?;
        let config = Config {
            state_dir: self.state_dir.clone(),
            run_dir: self.run_dir.clone(),
            first_uid: self.first_uid,
            policy: Policy::default(),
            ..Config::default()
        };
        let state = config
            .state(&uuid, Some(version))
            .map_err(|e| e.to_string())?;
        // Inherited by what this process becomes, to be held as long as that lives.
        let lock = state.lock().map_err(|e| e.to_string())?;
        keep(&lock)?;
        // A signal for the daemon's terminal is none for a TPM; and a group of its own, by which the daemon ends
        // what it leaves behind.
        let _ = setsid();

        let key = self.key()?;
        let room = self.room(&state, &lock)?;
        let arguments = self.arguments(version, key.as_ref());
        if let Program::Swtpm { vtpm, fds } = &self.program {
            let uid = match room {
                Room::User(_, uid, _) | Room::Closed(_, uid) => uid,
                Room::Open(_) => rustix::process::getuid().as_raw(),
            };
            Record::of_self(vtpm.clone(), self.version.clone(), uid, *fds)
                .and_then(|record| record.write(&self.run_dir, &uuid))
                .map_err(failed(format!("record in {}", self.run_dir.display())))?;
        }
        Err(self.become_program(&room, &arguments)?)
    }

    /// Where the program runs, and as whom. Its folder is made, or given to it.
    fn room(&self, state: &State, _lock: &Lock) -> Result<Room, String> {
        let folder = match self.program {
            Program::Swtpm { .. } => state.prepare_volatile().map(|()| state.path.clone()),
            Program::Setup { .. } => state.make_unfinished(),
        };
        let folder = folder.map_err(|e| e.to_string())?;

        match (self.first_uid, &self.program) {
            (None, _) => Ok(Room::Open(folder)),
            (Some(_), Program::Setup { certificates: true }) => {
                let ca = fs::metadata(CA_DIR).map_err(failed(format!(
                    "certificates need {CA_DIR}, which comes with swtpm-tools"
                )))?;
                lchown(&folder, Some(ca.uid()), Some(ca.gid()))
                    .map_err(failed(folder.display()))?;
                Ok(Room::User(folder, ca.uid(), ca.gid()))
            }
            (Some(first), _) => {
                let uid = state.own(&folder, first).map_err(|e| e.to_string())?;
                Ok(Room::Closed(folder, uid))
            }
        }
    }

    /// The key that the state is encrypted with, opened and looked at.
    fn key(&self) -> Result<Option<File>, String> {
        let Some(path) = &self.key_file else {
            return Ok(None);
        };
        let name = format!("key-file {}", path.display());
        let mut file = File::open(path).map_err(failed(&name))?;
        let mode = file.metadata().map_err(failed(&name))?.mode();
        let mut text = String::new();

        if mode & 0o007 != 0 {
            return Err(format!(
                "{name} is open to everybody: chmod 600 is expected"
            ));
        }
        let read = file.by_ref().take(256).read_to_string(&mut text);
        let hex = text.trim_end();
        if read.is_err() || hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(format!(
                "{name}: 64 hex digits are expected, as `openssl rand -hex 32` makes them"
            ));
        }
        file.rewind().map_err(failed(&name))?;
        keep(&file)?;
        Ok(Some(file))
    }

    /// The program and its arguments.
    fn arguments(&self, version: Version, key: Option<&File>) -> Vec<String> {
        let mut arguments = Vec::new();
        let mut add = |more: &[&str]| arguments.extend(more.iter().map(ToString::to_string));

        match &self.program {
            Program::Swtpm { vtpm, fds } => {
                add(&["swtpm", "socket", "--tpmstate", "dir=.,mode=0600"]);
                let control = format!("type=unixio,clientfd={}", fds.control_peer);
                let log = format!("level=1,prefix=vtpm {vtpm}: swtpm: ");
                add(&["--ctrl", &control, "--log", &log]);
                if self.first_uid.is_some() {
                    add(&["--seccomp", "action=kill"]);
                }
                if let Some(key) = key {
                    let fd = key.as_raw_fd();
                    add(&["--key", &format!("fd={fd},mode=aes-256-cbc,format=hex")]);
                }
                if version == Version::Tpm2 {
                    add(&["--tpm2"]);
                }
            }
            Program::Setup { certificates } => {
                add(&["swtpm_setup", "--tpmstate", ".", "--createek"]);
                if let Some(key) = key {
                    let fd = key.as_raw_fd().to_string();
                    add(&["--keyfile-fd", &fd, "--cipher", "aes-256-cbc"]);
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

    /// Limits, then the room, then the program. Returns only if that fails.
    fn become_program(&self, room: &Room, arguments: &[String]) -> Result<String, String> {
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

        let (mut command, folder) = match room {
            Room::Open(folder) => (Command::new(&arguments[0]), folder.as_path()),
            Room::User(folder, uid, gid) => {
                unshare(UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS)
                    .map_err(failed("new namespaces"))?;
                (setpriv(*uid, *gid, &[]), folder.as_path())
            }
            Room::Closed(folder, uid) => {
                limit(Resource::Nproc, MAX_PROCESSES)?;
                // Before the view changes: the probe is nobody's business in there.
                let landlock = landlock();
                self.close_the_room(folder, *uid)?;
                (setpriv(*uid, *uid, &landlock), Path::new(STATE))
            }
        };
        let program = match room {
            Room::Open(_) => &arguments[1..],
            _ => {
                command
                    .env_clear()
                    .env("PATH", "/usr/sbin:/usr/bin")
                    .env("HOME", "/tmp");
                arguments
            }
        };
        std::env::set_current_dir(folder).map_err(failed(folder.display()))?;
        let e = command.args(program).stdout(Stdio::null()).exec();
        Ok(format!("{}: {e}", command.get_program().to_string_lossy()))
    }

    /// A view of the machine with programs, two devices and one state folder, and no network.
    fn close_the_room(&self, folder: &Path, uid: u32) -> Result<(), String> {
        let root = self.run_dir.join("root");
        let inside = |path: &str| root.join(path.trim_start_matches('/'));
        let bind = |from: &Path, to: &str, flags| {
            let to = inside(to);
            mount_bind(from, &to)
                .and_then(|()| mount_remount(&to, MountFlags::BIND | flags, ""))
                .map_err(failed(format!("showing {}", from.display())))
        };
        let make = |path: &Path| {
            let mut builder = DirBuilder::new();
            let made = builder.recursive(true).mode(0o755).create(path);
            made.map_err(failed(path.display()))
        };
        let safe = MountFlags::NOSUID | MountFlags::NODEV;

        // Whatever the caller's is: another user has to pass through what is made here.
        umask(Mode::WGRP | Mode::WOTH);
        unshare(
            UnshareFlags::NEWNS
                | UnshareFlags::NEWNET
                | UnshareFlags::NEWIPC
                | UnshareFlags::NEWUTS,
        )
        .map_err(failed("new namespaces"))?;
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        match mount_change("/", private) {
            // In a chroot, whose maker decides about that.
            Ok(()) | Err(Errno::INVAL) => (),
            Err(e) => return Err(failed("private mounts")(e)),
        }
        make(&root)?;
        mount("xen-vtpmd", &root, "tmpfs", safe, "mode=0755,size=1m")
            .map_err(failed("a new root"))?;
        for path in ["usr", "state", "dev", "etc", "tmp"] {
            make(&inside(path))?;
        }
        // As everywhere: /bin and the others are within /usr.
        for link in ["bin", "sbin", "lib", "lib64"] {
            symlink(format!("usr/{link}"), inside(link)).map_err(failed(link))?;
        }
        bind(Path::new("/usr"), "usr", safe | MountFlags::RDONLY)?;
        bind(folder, STATE, safe | MountFlags::NOEXEC)?;
        for device in ["dev/null", "dev/urandom"] {
            File::create(inside(device)).map_err(failed(device))?;
            let from = Path::new("/").join(device);
            mount_bind(&from, inside(device)).map_err(failed(from.display()))?;
        }
        // swtpm_setup wants to know its user's name and its settings, of which it needs none, and talks
        // to its swtpm by a socket.
        let user = format!("vtpm:x:{uid}:{uid}::/tmp:/bin/false\n");
        fs::write(inside("etc/passwd"), user).map_err(failed("passwd"))?;
        File::create(inside("etc/swtpm_setup.conf")).map_err(failed("swtpm_setup.conf"))?;
        let scratch = MountFlags::NOEXEC | safe;
        mount(
            "xen-vtpmd",
            inside("tmp"),
            "tmpfs",
            scratch,
            "mode=1777,size=1m",
        )
        .map_err(failed("/tmp"))?;
        mount_remount(&root, MountFlags::RDONLY | safe, "").map_err(failed("a new root"))?;
        umask(Mode::RWXG | Mode::RWXO);

        chroot(&root).map_err(failed("chroot"))
    }
}

/// Lets a descriptor live on in the program.
fn keep(fd: impl AsFd) -> Result<(), String> {
    fcntl_setfd(fd, FdFlags::empty()).map_err(failed("descriptor"))
}

/// What runs a program as a user, without any privilege and any way to one.
fn setpriv(uid: u32, gid: u32, landlock: &[&str]) -> Command {
    let mut command = Command::new("/usr/bin/setpriv");

    command
        .arg(format!("--reuid={uid}"))
        .arg(format!("--regid={gid}"))
        .args(["--clear-groups", "--bounding-set=-all", "--inh-caps=-all"])
        .arg("--no-new-privs")
        .args(landlock)
        .arg("--");
    command
}

/// The options for setpriv that have landlock keep the program to its files even if it breaks out of its
/// root; none where the kernel has no landlock, or setpriv cannot use it.
fn landlock() -> Vec<&'static str> {
    const ACCESS: [&str; 2] = ["--landlock-access", "fs"];
    const PROGRAMS: [&str; 2] = [
        "--landlock-rule",
        "path-beneath:execute,read-file,read-dir:/usr",
    ];
    const OWN: [&str; 8] = [
        "--landlock-rule",
        "path-beneath:read-file:/etc",
        "--landlock-rule",
        "path-beneath:read-file,read-dir,write-file,truncate,make-reg,remove-file:/state",
        "--landlock-rule",
        "path-beneath:read-file,read-dir,write-file,truncate,make-reg,make-sock,make-dir,remove-file,remove-dir:/tmp",
        "--landlock-rule",
        "path-beneath:read-file,write-file:/dev",
    ];
    let ask = Command::new("/usr/bin/setpriv")
        .args(ACCESS)
        .args(PROGRAMS)
        .args(["--landlock-rule", "path-beneath:truncate:/tmp"])
        .arg("/usr/bin/true")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();

    match ask {
        Ok(status) if status.success() => [&ACCESS[..], &PROGRAMS, &OWN].concat(),
        _ => Vec::new(),
    }
}
