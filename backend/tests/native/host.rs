// SPDX-License-Identifier: GPL-2.0

//! A host: the real xenstored, the hypervisor's stand-ins, and the release binary of xen-vtpmd, in
//! a mount namespace and directories of its own. All of it ends with the value.

use std::cell::RefCell;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::mount::{mount, mount_change, MountFlags, MountPropagationFlags};
use rustix::process::{kill_process, Pid, Signal};
use rustix::thread::{unshare, UnshareFlags};
use serde_json::Value;
use tempfile::TempDir;

use crate::faults::Faults;
use crate::hypervisor::Hypervisor;
use crate::processes::all_processes;
use crate::standins;
use crate::uids::Uids;
use crate::xenstore::Xenstore;

const XENSTORED: &str = "/usr/lib/xen-4.20/bin/xenstored";

/// Where programs are that others took the place of.
const REAL: &str = "/usr/lib/real";

/// Nothing here takes as long, on a busy machine either.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// A host, as the tests see it.
pub(crate) struct Host {
    manager: RefCell<Option<Child>>,
    pub(crate) xenstored: Child,
    pub(crate) hypervisor: Hypervisor,
    pub(crate) faults: Faults,
    pub(crate) store: Xenstore,
    uids: Uids,
    environment: Vec<(String, String)>,
    /// Removed after everything above has ended.
    directory: TempDir,
}

/// What a program writes, which has to succeed.
pub(crate) fn stdout_of(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    output.stdout
}

/// Waits until it is so. False after the timeout.
pub(crate) fn wait_for(timeout: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + timeout;
    while !is_so() {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

/// Sends a signal; whoever is gone gets none.
pub(crate) fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let _ = kill_process(pid, signal);
}

/// Whether the process is there and has not ended.
pub(crate) fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").map_or("Z", |(_, rest)| &rest[..1]);
    !matches!(state, "Z" | "X")
}

/// Whether these tests can run: says why not, and panics where they must.
fn can_run() -> bool {
    let missing = if !rustix::process::geteuid().is_root() {
        "root"
    } else if !Path::new(XENSTORED).exists() {
        XENSTORED
    } else if Command::new("swtpm").arg("--version").output().is_err() {
        "swtpm"
    } else if Command::new("gcc").arg("--version").output().is_err() {
        "gcc"
    } else {
        return true;
    };
    assert!(
        std::env::var_os("XEN_VTPMD_MUST").is_none(),
        "{missing} is needed and not here"
    );
    eprintln!("SKIPPED: {missing} is needed and not here");
    false
}

/// The program under test: another one if `XEN_VTPMD` says so, such as an old release.
pub(crate) fn binary() -> PathBuf {
    let other = std::env::var_os("XEN_VTPMD").map(PathBuf::from);
    other.unwrap_or_else(|| env!("CARGO_BIN_EXE_xen-vtpmd").into())
}

fn start_xenstored(directory: &Path, environment: &[(String, String)]) -> (Child, Xenstore) {
    let path = |name: &str| directory.join(name).display().to_string();
    let libraries = standins::directory().display().to_string();
    let child = Command::new(XENSTORED)
        .args(["--no-fork", "--pid-file", &path("xenstored.pid")])
        .envs(environment.iter().cloned())
        .env("LD_PRELOAD", format!("{libraries}/xenstored.so"))
        .stdin(Stdio::null())
        .stderr(File::create(path("xenstored.log")).unwrap())
        .spawn()
        .unwrap();
    let mut store = None;
    assert!(wait_for(LIMIT, || {
        store = Xenstore::connect(directory).ok();
        store.is_some()
    }));
    (child, store.unwrap())
}

impl Host {
    /// With a manager that has the default configuration; `None` where these tests cannot run.
    pub(crate) fn new() -> Option<Self> {
        let host = Self::bare("")?;
        host.start();
        Some(host)
    }

    /// Without a manager yet, and with lines for its configuration.
    pub(crate) fn bare(config: &str) -> Option<Self> {
        if !can_run() {
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        // Of this test's thread, and of the processes that it starts.
        unshare(UnshareFlags::NEWNS).unwrap();
        // In a chroot / is no mount; tools/env/run has made all mounts private before it goes there.
        let _ = mount_change(
            "/",
            MountPropagationFlags::REC | MountPropagationFlags::PRIVATE,
        );
        mount("tmpfs", "/run", "tmpfs", MountFlags::empty(), "mode=755").unwrap();

        let libraries = standins::directory().display().to_string();
        let environment: Vec<(String, String)> = [
            ("XEN_STANDIN_DIR", path("")),
            ("XENSTORED_RUNDIR", path("")),
            ("LD_LIBRARY_PATH", libraries.clone()),
            ("LD_PRELOAD", format!("{libraries}/faults.so")),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        let hypervisor = Hypervisor::new(directory.path());
        let faults = Faults::new(directory.path());
        fs::write(path("xsd_port"), "1\n").unwrap();
        File::create(path("xsd_kva"))
            .unwrap()
            .set_len(4096)
            .unwrap();
        hypervisor.grant(0, 1);
        std::mem::forget(hypervisor.port(0, 1));
        let (xenstored, store) = start_xenstored(directory.path(), &environment);
        let host = Self {
            manager: RefCell::new(None),
            xenstored,
            hypervisor,
            faults,
            store,
            uids: Uids::take(),
            environment,
            directory,
        };
        host.configure(config);
        Some(host)
    }

    /// Another xenstored in place of this one, which is killed: no node is left.
    pub(crate) fn replace_xenstored(&mut self) {
        self.xenstored.kill().unwrap();
        self.xenstored.wait().unwrap();
        // Its ports are free a moment later, and the next one needs them.
        assert!(wait_for(LIMIT, || self
            .hypervisor
            .restricted_to(0, 1)
            .is_none()));
        let socket = self.path("socket");
        let _ = fs::remove_file(socket);
        (self.xenstored, self.store) = start_xenstored(self.directory.path(), &self.environment);
    }

    /// Writes the configuration that the next manager reads.
    pub(crate) fn configure(&self, lines: &str) {
        let (state, uid) = (self.state_dir(), self.uids.first);
        let text = format!("state-dir = {state:?}\nfirst-uid = {uid}\n{lines}");
        fs::write(self.path("config.toml"), text).unwrap();
    }

    /// A file or directory of this host's.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.path("state")
    }

    /// The manager's environment: what leads it to the stand-ins.
    pub(crate) fn environment(&self) -> impl Iterator<Item = (String, String)> + '_ {
        self.environment.iter().cloned()
    }

    /// Another connection to xenstored.
    pub(crate) fn connect(&self) -> Xenstore {
        Xenstore::connect(self.directory.path()).unwrap()
    }

    /// A run of xen-vtpmd that is not started yet.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command
            .arg("--config")
            .arg(self.path("config.toml"))
            .args(arguments)
            .envs(self.environment())
            .stdin(Stdio::null());
        command
    }

    /// Starts a manager.
    pub(crate) fn start(&self) {
        let log = File::options()
            .append(true)
            .create(true)
            .open(self.path("log"));
        let child = self.command(&["run"]).stderr(log.unwrap()).spawn().unwrap();
        *self.manager.borrow_mut() = Some(child);
    }

    /// The manager's process.
    pub(crate) fn manager(&self) -> u32 {
        self.manager.borrow().as_ref().expect("a manager").id()
    }

    /// Ends the manager by this signal, and waits for its end.
    pub(crate) fn end_manager(&self, with: Signal) -> ExitStatus {
        signal(self.manager(), with);
        self.manager_ended(LIMIT).expect("the manager's end")
    }

    /// How the manager ended, if it does within the timeout.
    pub(crate) fn manager_ended(&self, timeout: Duration) -> Option<ExitStatus> {
        let mut manager = self.manager.borrow_mut();
        let mut status = None;
        wait_for(timeout, || {
            status = manager.as_mut().unwrap().try_wait().unwrap();
            status.is_some()
        });
        if status.is_some() {
            *manager = None;
        }
        status
    }

    /// Starts the next manager where one has ended, as systemd does.
    pub(crate) fn keep_manager(&self) {
        self.keep_manager_within(Duration::from_millis(300));
    }

    /// The same, where it would have ended by now.
    pub(crate) fn keep_manager_within(&self, timeout: Duration) {
        if self.manager_ended(timeout).is_some() {
            self.start();
        }
    }

    /// Another program in the place of this one below /usr, for what starts from now on, in a sandbox
    /// too. The program itself is in the directory `REAL` then.
    pub(crate) fn replace(&self, program: &str, by: &Path) {
        let (directory, name) = program.rsplit_once('/').unwrap();
        let real = format!("{REAL}/{name}");

        if !self.path("upper").exists() {
            for layer in ["upper", "work"] {
                fs::create_dir(self.path(layer)).unwrap();
            }
            let (upper, work) = (self.path("upper"), self.path("work"));
            let (upper, work) = (upper.display(), work.display());
            let options = format!("lowerdir=/usr,upperdir={upper},workdir={work}");
            mount("overlay", "/usr", "overlay", MountFlags::empty(), options).unwrap();
        }
        fs::create_dir_all(REAL).unwrap();
        if !Path::new(&real).exists() {
            fs::copy(program, &real).unwrap();
        }
        let new = format!("{directory}/new-{name}");
        fs::copy(by, &new).unwrap();
        fs::set_permissions(&new, Permissions::from_mode(0o755)).unwrap();
        fs::rename(&new, program).unwrap();
    }

    /// A shell script in the place of a program, which it finds as `$real`.
    pub(crate) fn wrap(&self, program: &str, script: &str) {
        let name = program.rsplit('/').next().unwrap();
        let wrapper = self.path(name);
        let text = format!("#!/bin/sh\nreal={REAL}/{name}\n{script}\n");
        fs::write(&wrapper, text).unwrap();
        self.replace(program, &wrapper);
    }

    /// A small file system in the place of a directory.
    pub(crate) fn mount_small(&self, directory: &Path, bytes: u64) {
        fs::create_dir_all(directory).unwrap();
        let options = format!("mode=755,size={bytes}");
        mount("tmpfs", directory, "tmpfs", MountFlags::empty(), options).unwrap();
    }

    /// The processes of this host that have this name.
    pub(crate) fn named(&self, name: &str) -> Vec<u32> {
        all_processes()
            .filter(|pid| {
                let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                comm.trim_end() == name && is_alive(*pid) && self.is_ours(*pid)
            })
            .collect()
    }

    /// Runs a command of the command line, for as long as anything may take.
    pub(crate) fn cli(&self, arguments: &[&str]) -> Output {
        let command = self.command(arguments);
        Command::new("timeout")
            .args(["--signal=KILL", &LIMIT.as_secs().to_string()])
            .arg(command.get_program())
            .args(command.get_args())
            .envs(self.environment())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Runs it, and gives what it says if it succeeds.
    pub(crate) fn cli_ok(&self, arguments: &[&str]) -> String {
        let output = self.cli(arguments);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(
            output.status.success(),
            "{arguments:?}: {} {:?}",
            text(&output.stderr),
            output.status.signal()
        );
        text(&output.stdout)
    }

    /// What `status` says of a vTPM; nothing if it does not know it, or does not answer.
    pub(crate) fn status(&self, domid: u16) -> Option<Value> {
        let output = self.cli(&["status", "--json"]);
        let report: Value = serde_json::from_slice(&output.stdout).ok()?;
        let vtpms = report["vtpms"].as_array()?;
        vtpms.iter().find(|vtpm| vtpm["domid"] == domid).cloned()
    }

    /// What all processes of the daemon have logged.
    pub(crate) fn log(&self) -> String {
        let log = fs::read(self.path("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// The processes of this host that run xen-vtpmd with this subcommand: "run", "serve" or "io";
    /// of one domain's vTPM, where the command line says whose it is.
    pub(crate) fn processes(&self, kind: &str, domid: Option<u16>) -> Vec<u32> {
        let wanted = domid.map(|domid| domid.to_string());
        all_processes()
            .filter(|pid| self.is_ours(*pid))
            .filter(|pid| {
                let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let arguments: Vec<_> = line.split(|byte| *byte == 0).collect();
                let has = |argument: &str| arguments.contains(&argument.as_bytes());
                let of_it = |domid: &str| {
                    arguments
                        .windows(2)
                        .any(|pair| pair == [b"--domid", domid.as_bytes()])
                };
                has(kind) && wanted.as_deref().is_none_or(of_it) && is_alive(*pid)
            })
            .collect()
    }

    /// The worker of a domain's vTPM, once there is one.
    pub(crate) fn worker(&self, domid: u16) -> u32 {
        self.only("serve", domid)
    }

    /// The broker of a domain's vTPM, once its guest is connected.
    pub(crate) fn broker(&self, domid: u16) -> u32 {
        self.only("broker", domid)
    }

    /// The I/O process of a domain's vTPM, once there is one.
    pub(crate) fn io(&self, domid: u16) -> u32 {
        self.only("io", domid)
    }

    /// Every process of a domain's vTPM: of an old release, the daemon is one of them.
    pub(crate) fn of_vtpm(&self, domid: u16) -> Vec<u32> {
        let mut all = vec![self.swtpm(domid)];
        all.extend(self.processes("serve", Some(domid)));
        all.extend(self.processes("io", Some(domid)));
        if all.len() == 1 {
            all.push(self.manager());
        }
        all
    }

    fn only(&self, kind: &str, domid: u16) -> u32 {
        let mut found = Vec::new();
        wait_for(Duration::from_secs(5), || {
            found = self.processes(kind, Some(domid));
            found.len() == 1
        });
        assert_eq!(
            found.len(),
            1,
            "processes `{kind}` of domain {domid}: {found:?}\n{}",
            self.log()
        );
        found[0]
    }

    /// The swtpm of a domain's vTPM: by the process that the record names, or else the status.
    pub(crate) fn swtpm(&self, domid: u16) -> u32 {
        let mut found = None;
        wait_for(Duration::from_secs(5), || {
            let record = fs::read(format!("/run/xen-vtpmd/vtpm/{domid}-0/record.json"));
            let record = record
                .ok()
                .and_then(|text| serde_json::from_slice::<Value>(&text).ok());
            let status = || self.status(domid);
            let pid = record.or_else(status).and_then(|vtpm| vtpm["pid"].as_u64());
            found = pid
                .and_then(|pid| u32::try_from(pid).ok())
                .filter(|pid| is_alive(*pid));
            found.is_some()
        });
        found.unwrap_or_else(|| panic!("no swtpm of domain {domid}\n{}", self.log()))
    }

    /// Whether it was started here, or runs as one of this host's vTPMs.
    pub(crate) fn is_ours(&self, pid: u32) -> bool {
        let mine = format!("XEN_STANDIN_DIR={}", self.directory.path().display());
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let started = environment
            .split(|byte| *byte == 0)
            .any(|variable| variable.starts_with(mine.as_bytes()));
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let uid = status.lines().find_map(|line| line.strip_prefix("Uid:"));
        let uid = uid.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok());
        started || uid.is_some_and(|uid: u32| self.uids.range().contains(&uid))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let from = log.len().saturating_sub(6_000);
            eprintln!("the daemon's log:\n{}", log.get(from..).unwrap_or(&log));
            let log = fs::read_to_string(self.path("xenstored.log")).unwrap_or_default();
            eprintln!("xenstored: {:?}\n{log}", self.xenstored.try_wait());
        }
        if let Some(manager) = self.manager.get_mut() {
            let _ = manager.kill();
            let _ = manager.wait();
        }
        // A worker may start a process while the list is made.
        for _ in 0..3 {
            let own = std::process::id();
            for pid in all_processes().filter(|pid| *pid != own && self.is_ours(*pid)) {
                signal(pid, Signal::Kill);
            }
        }
        let _ = self.xenstored.kill();
        let _ = self.xenstored.wait();
    }
}
