// SPDX-License-Identifier: GPL-2.0

//! The manager with workers that are stand-ins: sockets of the test's own, or a script in place of
//! `xen-vtpmd serve`. What xenstore says is the test's to say, too.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::sync::mpsc;
use std::thread;

use rustix::time::{clock_gettime, ClockId};

use super::worker::WORKER_SOCKET;
use super::*;
use crate::config::ConfigFile;
use crate::discovery::Source;
use crate::event_loop::EventLoop;

/// Stands for `xen-vtpmd serve`: says that it was started, listens, and does as it is told.
const WORKER: &str = r#"#!/usr/bin/python3
import fcntl, json, os, socket, sys, time
arguments = sys.argv[1:]
domid, devid = (arguments[arguments.index(f"--{name}") + 1] for name in ("domid", "devid"))
run = os.path.dirname(arguments[arguments.index("--config") + 1])
with open(f"{run}/starts", "a") as file:
    file.write(f"{domid}/{devid}\n")
if os.path.exists(f"{run}/die"):
    sys.exit(1)
me = f"{run}/vtpm/{domid}-{devid}"
os.makedirs(me, exist_ok=True)
lock = open(f"{me}/lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
try:
    os.unlink(f"{me}/worker.sock")
except FileNotFoundError:
    pass
listener = socket.socket(socket.AF_UNIX)
listener.bind(f"{me}/worker.sock")
listener.listen()
while True:
    client, _ = listener.accept()
    for line in client.makefile():
        request = json.loads(line)["request"]
        if request == "status":
            client.sendall(json.dumps({"state": "connected", "commands": os.getpid(), "later": 1}).encode() + b"\n")
        if request == "stop":
            client.sendall(b'{"event": "saved", "uuid": "u"}\n{}\n')
            os.unlink(f"{me}/worker.sock")
            os.unlink(f"{me}/lock")
            os.rmdir(me)
            sys.exit(0)
"#;

struct Fixture {
    dir: tempfile::TempDir,
    source: Source,
    manager: Option<Manager>,
}

fn id(domid: u16) -> Id {
    Id { domid, devid: 0 }
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("worker");
        fs::write(&script, WORKER).unwrap();
        fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
        let (manager, source) = Self::open(dir.path()).unwrap();
        Self {
            dir,
            source,
            manager: Some(manager),
        }
    }

    fn open(dir: &Path) -> Result<(Manager, Source), Error> {
        let file = ConfigFile {
            path: dir.join("xen-vtpmd.toml"),
            may_be_missing: true,
        };
        let (config, text) = file.load()?;
        let config = Config {
            run_dir: dir.join("run"),
            launcher: dir.join("worker"),
            ..config
        };
        let (discovery, source) = discovery::pair().unwrap();
        Ok((Manager::with(config, file, &text, discovery)?, source))
    }

    /// Another manager in place of this one, which is as good as killed: nothing of it is told to anybody.
    fn replace(&mut self) {
        self.manager = None;
        let (manager, source) = Self::open(self.dir.path()).unwrap();
        (self.manager, self.source) = (Some(manager), source);
    }

    fn manager(&mut self) -> &mut Manager {
        self.manager.as_mut().unwrap()
    }

    fn tell(&self, domid: u16, needed: bool) {
        let id = id(domid);
        assert!(self.source.tell(Message::Vtpm { id, needed }));
    }

    /// Lets the manager work until this is so.
    fn until(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !holds(self) {
            assert!(Instant::now() < deadline, "not {what} in 30 s");
            self.turn_for(Duration::from_millis(5));
        }
    }

    /// Lets the manager work for so long.
    fn turn_for(&mut self, time: Duration) {
        let end = Instant::now() + time;
        // So that the wait ends.
        let (source, manager) = (&self.source, self.manager.as_mut().unwrap());
        while Instant::now() < end {
            thread::sleep(Duration::from_millis(1));
            // An answer to what it asks: xenstore has what it had, but for those that have ended.
            for id in source.asked() {
                source.tell(Message::Vtpm { id, needed: false });
            }
            source.tell(Message::Scanned);
            manager.turn().unwrap();
        }
    }

    fn starts(&self) -> Vec<String> {
        let text = fs::read_to_string(self.dir.path().join("run/starts")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn connected(&mut self, domid: u16) -> bool {
        let worker = self.manager().workers.get(&id(domid));
        worker.is_some_and(|worker| worker.connection.is_some())
    }

    /// Asks as the command line does, while the manager works.
    fn ask(&mut self, request: Request) -> Result<String, control::Error> {
        let run_dir = self.dir.path().join("run");
        let (sender, response) = mpsc::channel();
        thread::spawn(move || sender.send(control::ask(&run_dir, request)));
        let mut result = None;
        self.until("answered", |f| {
            if f.manager().stop.is_some() && f.manager().is_stopped() {
                f.manager.take().unwrap().finish_stop();
                result = Some(response.recv().unwrap());
                let (manager, source) = Self::open(f.dir.path()).unwrap();
                (f.manager, f.source) = (Some(manager), source);
                return true;
            }
            result = response.try_recv().ok();
            result.is_some()
        });
        result.unwrap()
    }

    fn report(&mut self) -> Report {
        serde_json::from_str(&self.ask(Request::Status).unwrap()).unwrap()
    }

    /// The process that a stand-in says it is.
    fn pid(&mut self, domid: u16) -> i32 {
        let report = self.report();
        let vtpm = report.vtpms.iter().find(|vtpm| vtpm.domid == domid);
        i32::try_from(vtpm.unwrap().commands).unwrap()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if self.manager.is_some() && !thread::panicking() {
            let _ = self.ask(Request::Stop);
        }
    }
}

fn kill(pid: i32) {
    let pid = Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::Kill).unwrap();
}

#[test]
fn each_vtpm_has_a_worker_and_a_dead_one_a_successor() {
    let mut f = Fixture::new();
    f.tell(1, true);
    f.tell(2, true);
    f.until("started", |f| f.connected(1) && f.connected(2));
    assert_eq!(f.starts().len(), 2);
    // Told again and again: one worker all the same.
    for _ in 0..100 {
        f.tell(1, true);
    }
    f.turn_for(Duration::from_millis(300));
    assert_eq!(f.starts().len(), 2);

    let (first, second) = (f.pid(1), f.pid(2));
    kill(first);
    let killed = Instant::now();
    f.until("followed", |f| f.manager().totals.worker_starts == 3);
    assert!(killed.elapsed() < Duration::from_secs(1));
    f.until("connected", |f| f.connected(1));
    assert_ne!(f.pid(1), first);
    assert_eq!(f.pid(2), second, "the other one is not touched");
    let report = f.report();
    assert_eq!(report.totals.worker_restarts, 1);
    assert_eq!(report.vtpms[0].worker_restarts, 1);
    assert_eq!(report.vtpms[0].state, "connected");
}

#[test]
fn the_next_manager_finds_the_workers() {
    let mut f = Fixture::new();
    f.tell(1, true);
    f.until("started", |f| f.connected(1));
    let pid = f.pid(1);

    f.replace();
    assert!(f.connected(1), "found before xenstore is looked at");
    f.tell(1, true);
    f.turn_for(Duration::from_millis(200));
    assert_eq!((f.starts().len(), f.pid(1)), (1, pid));
    // It is no child of this manager: its end shows by the connection.
    kill(pid);
    let killed = Instant::now();
    f.until("followed", |f| f.manager().totals.worker_starts == 1);
    assert!(killed.elapsed() < Duration::from_secs(1));
    // One that died while there was no manager.
    f.until("connected", |f| f.connected(1));
    let pid = f.pid(1);
    f.manager = None;
    kill(pid);
    thread::sleep(Duration::from_millis(50));
    f.replace();
    f.tell(1, true);
    f.until("followed", |f| f.starts().len() == 3 && f.connected(1));
}

#[test]
fn workers_of_another_version_hand_over() {
    let mut f = Fixture::new();
    f.tell(1, true);
    f.tell(2, true);
    f.until("started", |f| f.connected(1) && f.connected(2));
    let (first, second) = (f.pid(1), f.pid(2));
    f.replace();
    // The program is the same: nothing happens.
    let python = fs::metadata(format!("/proc/{first}/exe")).unwrap();
    f.manager().program = Some((python.dev(), python.ino()));
    f.turn_for(HAND_OVER_PAUSE * 4);
    assert_eq!((f.starts().len(), f.pid(1), f.pid(2)), (2, first, second));

    f.replace();
    f.tell(1, true);
    f.tell(2, true);
    f.manager().program = Some((0, 0));
    f.until("followed", |f| {
        f.starts().len() == 4 && f.connected(1) && f.connected(2)
    });
    let (third, fourth) = (f.pid(1), f.pid(2));
    assert!(third != first && fourth != second);
    assert_eq!(f.manager().totals.worker_restarts, 0, "it was wanted");
    // Those are ours: they are not asked.
    f.turn_for(HAND_OVER_PAUSE * 4);
    assert_eq!(f.starts().len(), 4);
}

#[test]
fn what_is_left_of_a_vtpm_gets_a_worker_that_ends_it() {
    let mut f = Fixture::new();
    f.tell(1, true);
    f.until("started", |f| f.connected(1));
    let pid = f.pid(1);
    f.manager = None;
    kill(pid);
    thread::sleep(Duration::from_millis(50));
    // Its nodes are gone, and nobody tells of it.
    f.replace();
    f.until("followed", |f| f.starts().len() == 2);
}

#[test]
fn a_vtpm_that_is_over_has_no_successor_until_it_is_needed_again() {
    let mut f = Fixture::new();
    f.tell(1, true);
    f.until("started", |f| f.connected(1));
    let hooks = f.dir.path().join("hooks");
    let (script, told) = (hooks.join("tell"), f.dir.path().join("told"));
    fs::create_dir(&hooks).unwrap();
    let text = format!(
        "#!/bin/sh\necho $1 $VTPM_DOMID $VTPM_UUID >{}\n",
        told.display()
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    f.manager().hooks = Some(Hooks::start(hooks).unwrap());
    let worker = &f.manager().workers[&id(1)];
    worker.connection.as_ref().unwrap().send(ASK_STOP).unwrap();
    f.until("over", |f| f.manager().workers.is_empty());
    assert_eq!(f.manager().totals.saves, 1, "its last words are heard");
    f.until("told", |_| {
        fs::read(&told).is_ok_and(|text| text == b"saved 1 u\n")
    });
    f.turn_for(Duration::from_millis(300));
    assert_eq!(f.starts().len(), 1);
    f.tell(1, true);
    f.until("started", |f| f.connected(1));
    assert_eq!(f.manager().totals.worker_restarts, 0);
}

#[test]
fn workers_that_die_at_once_are_not_started_without_end() {
    let mut f = Fixture::new();
    fs::write(f.dir.path().join("run/die"), "").unwrap();
    f.tell(1, true);
    let start = Instant::now();
    f.until("started often enough", |f| f.starts().len() >= 4);
    // 100, 200 and 400 ms between them.
    assert!(start.elapsed() >= Duration::from_millis(700));
    let worker = f.manager().workers.get_mut(&id(1)).unwrap();
    let now = worker.since;
    let pauses: Vec<_> = (0..12).map(|_| worker.next_pause(now)).collect();
    assert_eq!(pauses.last(), Some(&LAST_PAUSE));
    assert_eq!(worker.next_pause(now + YOUNG), Duration::ZERO);
    // It is gone from xenstore: that is the end of it.
    f.tell(1, false);
    f.until("over", |f| f.manager().workers.is_empty());
    fs::remove_file(f.dir.path().join("run/die")).unwrap();
}

#[test]
fn one_manager_at_a_time() {
    let f = Fixture::new();
    match Fixture::open(f.dir.path()) {
        Err(Error::Running(path)) => assert!(path.ends_with("manager.lock")),
        other => panic!("{:?}", other.map(|_| ())),
    }
}

#[test]
fn stop_ends_all_with_a_manager_and_without() {
    let mut f = Fixture::new();
    f.tell(1, true);
    f.tell(2, true);
    f.until("started", |f| f.connected(1) && f.connected(2));
    let response = f.ask(Request::Stop).unwrap();
    assert_eq!(response, r#"{"stopped":true}"#);
    assert!(f.manager().workers.is_empty());

    f.tell(3, true);
    f.until("started", |f| f.connected(3));
    f.manager = None;
    let run_dir = f.dir.path().join("run");
    assert!(stop_without_manager(&run_dir).unwrap().is_empty());
    assert!(Connection::open(&run_dir, id(3)).unwrap().is_none());
    f.replace();
    assert!(f.manager().workers.is_empty());
}

#[test]
fn a_broken_configuration_is_refused_and_the_old_one_kept() {
    let mut f = Fixture::new();
    let (dir, run_dir) = (f.dir.path().to_owned(), f.dir.path().join("run"));
    let accepted = || fs::read_to_string(accepted_config(&run_dir)).unwrap();
    assert_eq!(accepted(), "");

    let good = "state-dir = '/srv/a'\n[limits]\ntasks = 20\n";
    fs::write(dir.join("xen-vtpmd.toml"), good).unwrap();
    f.manager().reload_config();
    assert_eq!(f.manager().config.limits.tasks, 20);
    assert_eq!(f.manager().config.run_dir, run_dir);
    assert_eq!(accepted(), good);

    fs::write(dir.join("xen-vtpmd.toml"), "state-dir = 7\n").unwrap();
    f.manager().reload_config();
    assert_eq!(f.manager().config.limits.tasks, 20);
    assert_eq!(accepted(), good);
    // The command line finds the manager as before.
    f.report();
    fs::remove_file(dir.join("xen-vtpmd.toml")).unwrap();
    f.manager().reload_config();
    assert_eq!(accepted(), "");
}

#[test]
fn lines_of_workers() {
    let (mut a, b) = UnixStream::pair().unwrap();
    let mut connection = Connection {
        stream: b,
        input: Vec::new(),
    };
    connection.stream.set_nonblocking(true).unwrap();
    a.write_all(b"{\"a\":1}\n{\"b\"").unwrap();
    let (lines, end) = connection.receive();
    assert_eq!(lines, [b"{\"a\":1}".to_vec()]);
    end.unwrap();
    a.write_all(b":2}\n").unwrap();
    assert_eq!(connection.receive().0, [b"{\"b\":2}".to_vec()]);
    // One that never ends a line is not listened to for ever.
    let mut received = 0;
    a.set_nonblocking(true).unwrap();
    loop {
        let _ = a.write(&[b'x'; READ]);
        received += 1;
        assert!(received < 1000);
        if connection.receive().1.is_err() {
            break;
        }
    }
    assert!(matches!(Line::parse(b"{}"), Ok(Line::Other)));
    let later = br#"{"event":"danced","uuid":"u"}"#;
    assert!(matches!(Line::parse(later), Ok(Line::Other)));
    assert!(Line::parse(b"x").is_err());
}

mod many;
