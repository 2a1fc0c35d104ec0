// SPDX-License-Identifier: GPL-2.0

//! What the administrator wants done when something happens to a vTPM: the programs in
//! /etc/xen-vtpmd/hooks.d, one after another, in a thread of their own that nobody waits for.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{sync_channel, SyncSender, TrySendError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{kill_process_group, Pid, Signal};

use crate::events::Event;
use crate::xenbus::Id;

/// Where the programs are, unless a test says otherwise.
pub const HOOKS_DIR: &str = "/etc/xen-vtpmd/hooks.d";

/// How long one program may take.
const TIMEOUT: Duration = Duration::from_secs(10);
const CHECK: Duration = Duration::from_millis(20);

/// How many events may wait; more are left out.
const QUEUE: usize = 64;

/// Something to tell the programs.
#[derive(Clone, Debug)]
struct Call {
    id: Id,
    event: Event,
}

/// The way to the thread.
#[derive(Debug)]
pub struct Hooks(SyncSender<Call>);

impl Hooks {
    /// Starts the thread.
    pub fn start(dir: PathBuf) -> io::Result<Self> {
        Self::with_timeout(dir, TIMEOUT)
    }

    fn with_timeout(dir: PathBuf, timeout: Duration) -> io::Result<Self> {
        let (sender, calls) = sync_channel::<Call>(QUEUE);
        let work = move || {
            for call in calls {
                for program in programs(&dir) {
                    if let Err(e) = run(&program, &call, timeout) {
                        log::warn!(vtpm:% = call.id; "hook {}: {e}", program.display());
                    }
                }
            }
        };
        thread::Builder::new().name("hooks".into()).spawn(work)?;
        Ok(Self(sender))
    }

    /// Has the programs told. Never waits.
    pub fn tell(&self, id: Id, event: &Event) {
        let call = Call {
            id,
            event: event.clone(),
        };
        if let Err(TrySendError::Full(call)) = self.0.try_send(call) {
            let name = call.event.name();
            log::warn!(vtpm:% = id; "hooks are slow: none is run for {name:?}");
        }
    }
}

/// The programs, by name. One that others could have written is none.
fn programs(dir: &Path) -> Vec<PathBuf> {
    let trusted = |path: &Path| -> io::Result<bool> {
        let data = fs::metadata(path)?;
        let own = rustix::process::geteuid().as_raw();
        let safe = (data.uid() == 0 || data.uid() == own) && data.permissions().mode() & 0o022 == 0;
        if !safe {
            log::warn!(
                "{} can be written by others than root: it is not run",
                path.display()
            );
        }
        Ok(safe)
    };
    let list = || -> io::Result<Vec<PathBuf>> {
        if !trusted(dir)? {
            return Ok(Vec::new());
        }
        let mut programs = Vec::new();
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            // As run-parts(8): no backup and no package manager's leftovers.
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            let data = fs::metadata(&path)?;
            let runs = data.is_file() && data.permissions().mode() & 0o100 != 0;
            if runs && name.chars().all(plain) && trusted(&path)? {
                programs.push(path);
            }
        }
        programs.sort();
        Ok(programs)
    };

    match list() {
        Ok(programs) => programs,
        Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(e) => {
            log::warn!("{}: {e}", dir.display());
            Vec::new()
        }
    }
}

/// Runs one program with nothing of ours but what it is to know, and not for ever.
fn run(program: &Path, call: &Call, timeout: Duration) -> Result<(), String> {
    let Call { id, event } = call;
    let mut child = Command::new(program)
        .arg(event.name())
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("VTPM_EVENT", event.name())
        .env("VTPM_DOMID", id.domid.to_string())
        .env("VTPM_DEVID", id.devid.to_string())
        .env("VTPM_UUID", event.uuid())
        .env("VTPM_REASON", event.reason())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // A group of its own, to end whatever it has started with it.
        .process_group(0)
        .spawn()
        .map_err(|e| e.to_string())?;
    let deadline = Instant::now() + timeout;

    loop {
        match child.try_wait().map_err(|e| e.to_string())? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(status.to_string()),
            None if Instant::now() < deadline => thread::sleep(CHECK),
            None => break,
        }
    }
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // The child has not been waited for: the number is still its group's.
        let _ = kill_process_group(pid, Signal::Kill);
    }
    let _ = child.wait();
    Err(format!("killed after {} s", timeout.as_secs_f32()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: Id = Id { domid: 7, devid: 1 };

    fn hook(dir: &Path, name: &str, mode: u32, script: &str) {
        let path = dir.join(name);
        // By another process: what another test's thread forks would have the file open for writing for a moment,
        // and it could not be executed.
        let written = Command::new("sh")
            .args([
                "-c",
                "printf '#!/bin/sh\n%s\n' \"$1\" >\"$2\" && chmod $3 \"$2\"",
                "sh",
            ])
            .args([script, path.to_str().unwrap(), &format!("{mode:o}")])
            .status();
        assert!(written.unwrap().success());
    }

    fn event() -> Event {
        Event::Lost {
            uuid: "u".into(),
            reason: "swtpm ended".into(),
        }
    }

    fn wait_for(path: &Path) -> String {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match fs::read_to_string(path) {
                Ok(text) if text.ends_with('\n') => return text,
                _ if Instant::now() > deadline => panic!("no {}", path.display()),
                _ => thread::sleep(CHECK),
            }
        }
    }

    #[test]
    fn programs_run_in_order_with_a_clean_environment() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let (say, path) = (
            |what: &str| format!("{what} >>{}", out.display()),
            dir.path(),
        );
        fs::create_dir(path.join("hooks")).unwrap();
        let hooks = path.join("hooks");
        hook(&hooks, "20-last", 0o755, &say("env | grep -v ^_ | sort"));
        hook(&hooks, "10-first", 0o755, &say("echo first $1"));
        hook(&hooks, "not-executable", 0o644, &say("echo wrong"));
        hook(&hooks, "backup.old", 0o755, &say("echo wrong"));
        hook(&hooks, "others", 0o777, &say("echo wrong"));
        hook(&hooks, "30-end", 0o755, &say("echo end"));

        let sender = Hooks::start(hooks).unwrap();
        sender.tell(ID, &event());
        while !fs::read_to_string(&out).is_ok_and(|text| text.ends_with("end\n")) {
            thread::sleep(CHECK);
        }
        let wanted = "first lost\nPATH=/usr/sbin:/usr/bin:/sbin:/bin\nPWD=/\nVTPM_DEVID=1\n\
                      VTPM_DOMID=7\nVTPM_EVENT=lost\nVTPM_REASON=swtpm ended\nVTPM_UUID=u\nend\n";
        assert_eq!(fs::read_to_string(&out).unwrap(), wanted);
    }

    #[test]
    fn a_program_that_hangs_is_ended_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("pid");
        let script = format!("sleep 1000 & echo $! >{}; wait", out.display());
        fs::create_dir(dir.path().join("hooks")).unwrap();
        hook(&dir.path().join("hooks"), "hang", 0o755, &script);
        let hooks = Hooks::with_timeout(dir.path().join("hooks"), Duration::from_millis(300));
        let hooks = hooks.unwrap();

        let start = Instant::now();
        for _ in 0..QUEUE + 10 {
            hooks.tell(ID, &event());
        }
        assert!(start.elapsed() < Duration::from_millis(200), "nobody waits");
        let pid: u32 = wait_for(&out).trim().parse().unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        let runs = || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.contains("(sleep)") && !stat.contains(") Z")
        };
        while runs() {
            assert!(Instant::now() < deadline, "sleep {pid} is left");
            thread::sleep(CHECK);
        }
    }

    #[test]
    fn no_directory_is_no_hook() {
        assert!(programs(Path::new("/nowhere")).is_empty());
        let dir = tempfile::tempdir().unwrap();
        hook(dir.path(), "a", 0o755, "");
        fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
        assert!(programs(dir.path()).is_empty());
    }
}
