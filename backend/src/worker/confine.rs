// SPDX-License-Identifier: GPL-2.0

//! How a worker gives up, before it lets the guest in, what it needed to start: from then on it reaches its own
//! run directory and its own TPM's state, and starts no program. What else is to be done the broker does.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::rc::Rc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use libseccomp::error::SeccompError;
use libseccomp::{ScmpAction, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use rustix::thread::{capabilities, set_capabilities, CapabilityFlags, CapabilitySets};

use super::{Failure, Outcome, Power, Worker};
use crate::broker::Client;
use crate::config::Sandbox;
use crate::launch::filter::DENIED;
use crate::launch::has_landlock;
use crate::measure::log_path;
use crate::sys::drop_bounding_set;
use crate::sys::landlock::{access, Ruleset};
use crate::xen::Store;
use crate::xenbus::Paths;

/// What a worker needs to look after a state that is its swtpm's user's, and to end that swtpm.
const CAPABILITIES: CapabilityFlags = CapabilityFlags::CHOWN
    .union(CapabilityFlags::DAC_OVERRIDE)
    .union(CapabilityFlags::KILL);

/// Of [`DENIED`], what it needs: swtpm is ended by its pidfd.
const NEEDED: &str = "pidfd_send_signal";

/// What else a confined worker does not do: start programs, and signal what it has no pidfd of.
const DENIED_TOO: [&str; 6] = [
    "execve",
    "execveat",
    "kill",
    "tkill",
    "rt_sigqueueinfo",
    "rt_tgsigqueueinfo",
];

/// How long a thread that has been joined may take to be gone altogether.
const ALONE_LIMIT: Duration = Duration::from_secs(1);

/// What the kernel lacks for the sandbox.
pub(super) fn lacks() -> Vec<String> {
    let has_seccomp = Path::new("/proc/sys/kernel/seccomp").exists();
    [("landlock", has_landlock()), ("seccomp", has_seccomp)]
        .into_iter()
        .filter(|(_, is)| !is)
        .map(|(name, _)| name.to_owned())
        .collect()
}

impl Worker {
    /// Confines the worker, if it is not yet. After a failure on the way this worker is of no use.
    pub(super) fn confine(&mut self) -> Result<Option<Outcome>, Failure> {
        if self.broker.is_some() {
            return Ok(None);
        }
        let Power::On(tpm) = &self.power else {
            return Ok(None);
        };
        let lacks = lacks();
        if self.config.sandbox == Sandbox::Required && !lacks.is_empty() {
            let lacks = lacks.join(", ");
            let text = format!("sandbox = \"required\", and there is no {lacks} here");
            return Err(Failure::Connection(text));
        }
        // Landlock and capabilities are a thread's own: that of libxenstore ends with its handle, and the next
        // one begins with the first watch.
        let store = Store::open()?;
        let lock = self.lock.as_fd();
        let broker = Client::start(&self.config, self.id, tpm.state(), tpm.uid(), lock)
            .map_err(|e| Failure::Connection(format!("starting the broker: {e}")))?;
        self.store = Rc::new(store);
        let confined = self
            .restrict()
            .and_then(|()| watch(&self.store, &self.paths).map_err(|e| e.to_string()))
            .and_then(|()| self.filter());
        self.broker = Some(broker);
        let give_up = self.give_up();
        if let Some(tpm) = self.tpm() {
            tpm.client().set_give_up(give_up);
        }
        match confined {
            Ok(()) => Ok(None),
            Err(e) => {
                log::error!("the worker's sandbox: {e}");
                Ok(Some(self.hand_over()))
            }
        }
    }

    fn restrict(&self) -> Result<(), String> {
        let failed = |what: &'static str| move |e: io::Error| format!("{what}: {e}");
        let deadline = Instant::now() + ALONE_LIMIT;
        let threads = || fs::read_dir("/proc/self/task").map(Iterator::count);
        while threads().map_err(failed("/proc/self/task"))? > 1 {
            if Instant::now() > deadline {
                return Err("another thread would keep its rights".into());
            }
            sleep(Duration::from_millis(1));
        }
        rustix::thread::set_no_new_privs(true).map_err(|e| format!("no new privileges: {e}"))?;
        if self.config.first_uid.is_some() {
            drop_bounding_set().map_err(failed("bounding set"))?;
            let own = capabilities(None).map_err(|e| format!("capabilities: {e}"))?;
            let kept = own.permitted & CAPABILITIES;
            let sets = CapabilitySets {
                effective: kept,
                permitted: kept,
                inheritable: CapabilityFlags::empty(),
            };
            set_capabilities(None, sets).map_err(|e| format!("capabilities: {e}"))?;
        }
        let (true, Power::On(tpm)) = (has_landlock(), &self.power) else {
            return Ok(());
        };
        use access::{MAKE_FILE, READ_DIR, READ_FILE, REMOVE_DIR, REMOVE_FILE, WRITE_FILE};
        let rules = Ruleset::new().map_err(failed("landlock"))?;
        let allow = |path: &Path, allowed| {
            let done = rules.allow(path, allowed);
            done.map_err(|e| format!("landlock for {}: {e}", path.display()))
        };
        let look_after = READ_FILE | READ_DIR | WRITE_FILE | MAKE_FILE | REMOVE_FILE;
        let run_dir = self.run_dir.as_path();
        allow(tpm.state_path(), look_after)?;
        allow(&log_path(tpm.state_path()), READ_FILE)?;
        allow(run_dir, look_after)?;
        // For the end: the directory itself. Another's is not empty.
        allow(run_dir.parent().unwrap_or(run_dir), REMOVE_DIR)?;
        // What processes have used. What belongs to a process itself is what ptrace(2) may see, and landlock
        // lets none be seen but its own.
        allow(Path::new("/proc"), READ_FILE | READ_DIR)?;
        for device in ["/dev/xen/xenbus", "/proc/xen/xenbus"] {
            allow(Path::new(device), READ_FILE | WRITE_FILE)?;
        }
        rules.restrict().map_err(failed("landlock"))
    }

    /// Loads the filter of system calls, for all threads.
    fn filter(&self) -> Result<(), String> {
        let loaded = filter().and_then(|filter| filter.load());
        match loaded {
            Err(e) if lacks().iter().all(|lack| lack != "seccomp") => {
                Err(format!("filter of system calls: {e}"))
            }
            _ => Ok(()),
        }
    }
}

fn watch(store: &Store, paths: &Paths) -> Result<(), crate::xen::Error> {
    store.watch(&paths.backend_folder(), "backend")?;
    store.watch(&paths.frontend("state"), "frontend")
}

fn filter() -> Result<ScmpFilterContext, SeccompError> {
    let mut filter = ScmpFilterContext::new_filter(ScmpAction::Allow)?;
    let denied = ScmpAction::Errno(libc::EPERM);
    let names = DENIED.iter().filter(|name| **name != NEEDED);
    for name in names.chain(&DENIED_TOO) {
        // One that the architecture does not have is one that nobody can call.
        if let Ok(call) = ScmpSyscall::from_name(name) {
            filter.add_rule(denied, call)?;
        }
    }
    // Signals to its own threads, and sockets with a path.
    let own = u64::from(std::process::id());
    for (name, allowed) in [("tgkill", own), ("socket", libc::AF_UNIX as u64)] {
        let other = ScmpArgCompare::new(0, ScmpCompareOp::NotEqual, allowed);
        filter.add_rule_conditional(denied, ScmpSyscall::from_name(name)?, &[other])?;
    }
    filter.set_ctl_tsync(true)?;
    Ok(filter)
}
