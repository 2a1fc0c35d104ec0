// SPDX-License-Identifier: GPL-2.0

//! One vTPM's trouble is its own: the others have their TPMs at their usual speed meanwhile.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{flock, FlockOperation};
use rustix::io::Errno;
use rustix::mount::{mount, unmount, MountFlags, UnmountFlags};
use rustix::process::Signal;

use crate::guest::{Guest, Outcome};
use crate::host::{signal, wait_for, Host, LIMIT};
use crate::toolstack::uuid;
use crate::tpm::{nv_define, nv_write, GET_RANDOM};

/// So many neighbours there are, and so many commands of each in one look.
const NEIGHBOURS: u16 = 7;
const COMMANDS: u32 = 30;

/// What a command takes longer at most than it does undisturbed: so many times, and this.
const TIMES: u32 = 4;
const NOISE: Duration = Duration::from_millis(50);

/// How long commands take.
#[derive(Clone, Copy, Debug)]
struct Pace {
    median: Duration,
    /// All but as many as one of each neighbour are faster: what holds up all of them once is seen, and what
    /// holds up the machine for a moment is not.
    most: Duration,
}

/// The neighbours: each has a TPM that works, and is as fast as ever.
pub(crate) struct Neighbours<'a> {
    host: &'a Host,
    guests: Vec<Guest>,
    usual: Pace,
}

impl<'a> Neighbours<'a> {
    /// Boots them, and sees how fast they are while nobody disturbs them.
    pub(crate) fn boot(host: &'a Host) -> Self {
        // One state is as good as another.
        let state = |domid: u16| host.state_dir().join(uuid(domid));
        host.cli_ok(&["create-state", &uuid(20)]);
        for domid in 21..20 + NEIGHBOURS {
            fs::create_dir(state(domid)).unwrap();
            let permall = |domid| state(domid).join("tpm2-00.permall");
            fs::copy(permall(20), permall(domid)).unwrap();
        }
        for domid in 20..20 + NEIGHBOURS {
            host.add(domid, &uuid(domid));
        }
        let boot = |domid| {
            host.await_state(domid, "2");
            let mut guest = Guest::new(host, domid);
            guest.connect();
            guest
        };
        let mut guests: Vec<Guest> = (20..20 + NEIGHBOURS).map(boot).collect();
        let usual = pace(&mut guests);
        println!("undisturbed: {usual:?}");
        Self {
            host,
            guests,
            usual,
        }
    }

    /// They are as fast as undisturbed, and reconnect; the command line responds as well.
    pub(crate) fn are_fine(&mut self) {
        let pace = pace(&mut self.guests);
        println!("disturbed: {pace:?}");
        let usual = self.usual;
        assert!(
            pace.median <= usual.median * TIMES + NOISE
                && pace.most <= usual.most * TIMES + NOISE * 2,
            "{pace:?}, and undisturbed {usual:?}"
        );
        let start = Instant::now();
        self.host.cli_ok(&["status"]);
        let took = start.elapsed();
        // Each worker has a second for its part, and is asked at the same time.
        assert!(took < LIMIT / 3, "status took {took:?}");
    }
}

/// All of them work at once, and reconnect once.
fn pace(guests: &mut [Guest]) -> Pace {
    let mut all: Vec<Duration> = thread::scope(|scope| {
        let work = |guest: &mut Guest| -> Vec<Duration> {
            let one = |round| {
                let start = Instant::now();
                guest.submit(&GET_RANDOM);
                let outcome = guest.wait(LIMIT);
                let took = start.elapsed();
                assert!(matches!(outcome, Outcome::Response(_)), "{outcome:?}");
                if round == COMMANDS / 2 {
                    guest.reconnect();
                }
                took
            };
            (0..COMMANDS).map(one).collect()
        };
        let threads: Vec<_> = guests
            .iter_mut()
            .map(|guest| scope.spawn(move || work(guest)))
            .collect();
        let ended = threads.into_iter().map(|thread| thread.join().unwrap());
        ended.flatten().collect()
    });
    all.sort();
    Pace {
        median: all[all.len() / 2],
        most: all[all.len() - usize::from(NEIGHBOURS)],
    }
}

#[test]
fn of_an_swtpm_that_does_not_respond() {
    let Some(host) = Host::new() else { return };
    let mut neighbours = Neighbours::boot(&host);
    let mut guest = host.boot(7, &uuid(7));
    let swtpm = host.swtpm(7);
    signal(swtpm, Signal::Stop);
    guest.submit(&GET_RANDOM);
    neighbours.are_fine();
    // It is ended in the end, and its guest gets its other end.
    host.ask_to_close(7);
    neighbours.are_fine();
    assert!(wait_for(LIMIT, || host.backend_state(7).as_deref() == Some("6")));
}

/// Finding 5: everybody waited for a lock that another host may hold.
#[test]
fn of_a_lock_that_is_held() {
    let Some(host) = Host::bare("") else { return };
    host.wrap("/usr/bin/swtpm_setup", "sleep 1; exec $real \"$@\"");
    host.start();
    let mut neighbours = Neighbours::boot(&host);
    host.add(7, &uuid(7));
    assert!(wait_for(LIMIT, || !host.named("sleep").is_empty()));
    let held = File::options()
        .append(true)
        .create(true)
        .open(host.state_dir().join(".lock"))
        .unwrap();
    flock(&held, FlockOperation::LockExclusive).unwrap();
    let is_made = || host.named("sleep").is_empty() && host.named("swtpm_setup").is_empty();
    wait_for(Duration::from_secs(5), is_made);
    thread::sleep(Duration::from_millis(500));
    neighbours.are_fine();
    drop(held);
    let mut guest = Guest::new(&host, 7);
    guest.connect();
    guest.done(&GET_RANDOM);
}

/// A file system that takes its time to store.
#[test]
fn of_a_disk_that_is_slow() {
    let Some(host) = Host::new() else { return };
    let mut neighbours = Neighbours::boot(&host);
    let mut guest = host.boot(7, &uuid(7));
    guest.done(&nv_define(0x0150_0002, 64));
    let processes = host.of_vtpm(7);
    let _slow = Injected::slow(
        &processes,
        "fsync,fdatasync,syncfs,rename,renameat,renameat2",
        2_000,
    );
    guest.submit(&nv_write(0x0150_0002, &[1; 64]));
    neighbours.are_fine();
    assert!(matches!(guest.wait(LIMIT), Outcome::Response(_)));
}

/// A file system that hangs under a worker, as NFS does without its server.
#[test]
fn of_a_disk_that_hangs() {
    let Some(host) = Host::new() else { return };
    let mut neighbours = Neighbours::boot(&host);
    let mut guest = host.boot(7, &uuid(7));
    guest.done(&nv_define(0x0150_0002, 64));
    // The worker makes it durable, and looks at the directory for that.
    let hanging = Injected::slow(&[host.worker(7)], "openat,getdents64", 600_000);
    guest.submit(&nv_write(0x0150_0002, &[1; 64]));
    neighbours.are_fine();
    assert_eq!(guest.wait(Duration::ZERO), Outcome::Timeout);
    drop(hanging);
    assert!(matches!(guest.wait(LIMIT), Outcome::Response(_)));
}

/// A state directory on a file system that hangs: FUSE that nobody serves. The start of another vTPM looks at it
/// neither.
#[test]
fn of_a_state_directory_that_hangs() {
    let Some(host) = Host::new() else { return };
    let mut neighbours = Neighbours::boot(&host);
    host.cli_ok(&["create-state", &uuid(7)]);
    let Some(hanging) = Hanging::over(&host.state_dir().join(uuid(7))) else {
        return eprintln!("SKIPPED: this user may not open /dev/fuse");
    };
    host.add(7, &uuid(7));
    let is_there = || !host.processes("serve", Some(7)).is_empty();
    assert!(wait_for(LIMIT, is_there));
    neighbours.are_fine();
    // One that has a state, and one that has none.
    for n in [8, 9] {
        host.boot(n, &uuid(n)).done(&GET_RANDOM);
        assert!(host.destroy(n));
    }
    host.boot(8, &uuid(8)).done(&GET_RANDOM);
    drop(hanging);
    neighbours.are_fine();
}

/// A file system without a server, until it is dropped: then it has none for good, and fails.
struct Hanging(Option<File>, PathBuf);

impl Hanging {
    /// None where only the real root may.
    fn over(directory: &Path) -> Option<Self> {
        let device = File::options().read(true).write(true).open("/dev/fuse");
        let device = match device {
            Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => return None,
            device => device.unwrap(),
        };
        let fd = std::os::fd::AsRawFd::as_raw_fd(&device);
        let options = format!("fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other");
        mount("hanging", directory, "fuse", MountFlags::empty(), options).unwrap();
        Some(Self(Some(device), directory.to_owned()))
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        self.0 = None;
        let _ = unmount(&self.1, UnmountFlags::DETACH);
    }
}

/// Findings 8 and 26: a quota that is used up, or an error of xenstored's that passes.
#[test]
fn of_xenstored_that_refuses() {
    let Some(host) = Host::new() else { return };
    let mut neighbours = Neighbours::boot(&host);
    let mut guest = host.boot(7, &uuid(7));
    for (call, error) in [
        ("xs_write", Errno::NOSPC),
        ("xs_read", Errno::IO),
        ("xs_read", Errno::NOMEM),
    ] {
        for kind in ["run", "serve"] {
            host.faults.fail(kind, call, 1, error);
        }
        guest.show("4");
        guest.reconnect();
        guest.done(&GET_RANDOM);
    }
    neighbours.are_fine();
}

/// strace that tampers with system calls of some processes, until it is dropped.
pub(crate) struct Injected(Child);

impl Injected {
    /// Each of these calls takes this many milliseconds more.
    pub(crate) fn slow(processes: &[u32], calls: &str, ms: u32) -> Self {
        Self::new(processes, &format!("{calls}:delay_enter={}", ms * 1_000))
    }

    /// What happens with which calls, as strace(1) has it for `inject=`.
    pub(crate) fn new(processes: &[u32], what: &str) -> Self {
        let mut strace = Command::new("strace");
        strace.args(["-f", "-q", "-o", "/dev/null", "-e"]);
        strace.arg(format!("inject={what}"));
        Self(attach(strace, processes))
    }
}

/// Starts strace on these processes, and waits until it has all of them.
pub(crate) fn attach(mut strace: Command, processes: &[u32]) -> Child {
    for pid in processes {
        strace.arg("-p").arg(pid.to_string());
    }
    let child = strace.spawn().unwrap();
    let is_traced = |pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        !status.contains("TracerPid:\t0\n")
    };
    assert!(wait_for(LIMIT, || processes.iter().all(is_traced)));
    child
}

impl Drop for Injected {
    fn drop(&mut self) {
        // strace lets go of its processes when it is asked to end.
        signal(self.0.id(), Signal::Term);
        let _ = self.0.wait();
    }
}
