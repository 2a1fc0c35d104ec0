// SPDX-License-Identifier: GPL-2.0

//! Two hosts, a connection between them in place of ssh, and `xl migrate` 4.20 as the test walks through it:
//! migrate_domain() and migrate_receive() of tools/xl/xl_migrate.c. The destination's devices are attached when
//! the stream has been read (domcreate_stream_done() of libxl_create.c), the source's guest being suspended since
//! libxl_domain_suspend(). Up to "GO" a failure resumes the source (`failed_resume`); after it only the
//! destination's word does, and the source is left suspended (`failed_badly`) where that does not come.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Output};
use std::sync::mpsc::{channel, Sender};
use std::thread::JoinHandle;

use rustix::process::Signal;
use serde_json::Value;

use crate::guest::Guest;
use crate::host::{binary, is_alive, signal, wait_for, Host, LIMIT};
use crate::hypervisor::Domain;
use crate::toolstack::{uuid, LIBXL};
use crate::tpm::{create_primary, extend};

/// What the other host is asked to do.
type Call = Box<dyn FnOnce(&mut Host) + Send>;

/// The guest's domains here and there.
pub(crate) const HERE: u16 = 7;
pub(crate) const THERE: u16 = 21;

/// Room for a TPM or two.
const SMALL: u64 = 600 << 10;

/// A host in a thread of its own, since a mount namespace is a thread's.
pub(crate) struct Elsewhere {
    calls: Option<Sender<Call>>,
    thread: Option<JoinHandle<()>>,
}

impl Elsewhere {
    /// Like `Host::bare` and `start`.
    pub(crate) fn new(config: &str) -> Option<Self> {
        let config = config.to_owned();
        let (calls, to_do) = channel::<Call>();
        let (is_up, up) = channel();
        let thread = std::thread::spawn(move || {
            let Some(mut host) = Host::bare(&config) else {
                return;
            };
            host.start();
            is_up.send(()).unwrap();
            for call in to_do {
                call(&mut host);
            }
        });
        let this = Self {
            calls: Some(calls),
            thread: Some(thread),
        };
        up.recv().ok().map(|()| this)
    }

    /// Does something there.
    pub(crate) fn on<T: Send + 'static>(
        &self,
        what: impl FnOnce(&mut Host) -> T + Send + 'static,
    ) -> T {
        self.try_on(what).expect("it panicked on the other host")
    }

    /// The same where a test has failed, maybe there.
    fn try_on<T: Send + 'static>(
        &self,
        what: impl FnOnce(&mut Host) -> T + Send + 'static,
    ) -> Option<T> {
        let (done, result) = channel();
        let call: Call = Box::new(move |host| {
            let _ = done.send(what(host));
        });
        self.calls.as_ref()?.send(call).ok()?;
        result.recv().ok()
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        drop(self.calls.take());
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || ended.is_none_or(|ended| ended.is_ok()));
    }
}

/// Two hosts and a guest on the first one.
pub(crate) struct Two {
    pub(crate) guest: Option<Guest>,
    /// The same at the destination.
    pub(crate) arrived: Option<Guest>,
    pub(crate) migrate: Option<Child>,
    /// What `pcr` 16 of the guest is.
    pub(crate) pcr: Vec<u8>,
    pub(crate) other: Elsewhere,
    pub(crate) host: Host,
}

fn script(path: PathBuf, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
}

impl Two {
    pub(crate) fn new() -> Option<Self> {
        Self::with("", "")
    }

    /// With lines for their configurations.
    pub(crate) fn with(here: &str, there: &str) -> Option<Self> {
        Self::between(Elsewhere::new(there)?, Host::bare(here)?)
    }

    /// The state directory here, or there, is on a file system with little room.
    pub(crate) fn with_small(here: bool) -> Option<Self> {
        let (other, host) = (Elsewhere::new("")?, Host::bare("")?);
        match here {
            true => host.mount_small(&host.state_dir(), SMALL),
            false => other.on(|host| host.mount_small(&host.state_dir(), SMALL)),
        }
        Self::between(other, host)
    }

    /// No room is left.
    pub(crate) fn fill(&self, here: bool) {
        // As much as there is room for.
        let fill = |host: &Host| drop(fs::write(host.state_dir().join("filler"), vec![1; 1 << 20]));
        match here {
            true => fill(&self.host),
            false => self.other.on(move |host| fill(host)),
        }
    }

    pub(crate) fn unfill(&self, here: bool) {
        let unfill = |host: &Host| fs::remove_file(host.state_dir().join("filler")).unwrap();
        match here {
            true => unfill(&self.host),
            false => self.other.on(move |host| unfill(host)),
        }
    }

    pub(crate) fn between(other: Elsewhere, host: Host) -> Option<Self> {
        host.start();
        let far = other.on(|host| {
            let variables = host
                .environment()
                .map(|(name, value)| format!("{name}={value}"));
            let variables: Vec<_> = variables.collect();
            let config = host.path("config.toml").display().to_string();
            (host.named("xenstored")[0], variables.join(" "), config)
        });
        let (pid, environment, config) = far;
        let binary = binary().display().to_string();
        // It ends with the receiver, and the receiver hears an end when the first cat does.
        let ssh = format!(
            "[ \"$2 $3\" = 'xen-vtpmd migrate-receive' ] || exit 1\n\
             fifo=$(dirname $0)/fifo.$$; mkfifo $fifo; exec 3<&0 0</dev/null\n\
             cat <&3 >$fifo &\n\
             nsenter -t {pid} -m -r env {environment} {binary} --config {config} \
             migrate-receive <$fifo 3<&- | cat 3<&-\nkill $!"
        );
        script(host.path("bin/ssh"), &ssh);
        let directory = host.path("").display().to_string();
        let xl = format!(
            "echo \"$@\" >{directory}/xl.called\n\
             echo $$ >{directory}/xl.new && mv {directory}/xl.new {directory}/xl.pid\n\
             read -r code <{directory}/xl.end\nexit $code"
        );
        script(host.path("bin/xl"), &xl);
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, host.path("xl.end"), fifo, mode, 0).unwrap();

        let mut guest = host.boot(HERE, &uuid(7));
        host.hypervisor.set_domain(HERE, Domain::Running);
        host.store
            .write(&format!("/local/domain/{HERE}/name"), "guest");
        guest.done(&extend(16));
        guest.done(&create_primary());
        let pcr = guest.pcr(16);
        Some(Self {
            guest: Some(guest),
            arrived: None,
            migrate: None,
            pcr,
            other,
            host,
        })
    }

    /// `xen-vtpmd migrate`, until xl is called; or its end where that does not come.
    pub(crate) fn start(&mut self) -> Result<(), Output> {
        let path = std::env::var("PATH").unwrap();
        let bin = self.host.path("bin").display().to_string();
        let _ = fs::remove_file(self.host.path("xl.pid"));
        let said = |name: &str| File::create(self.host.path(name)).unwrap();
        let mut child = self
            .host
            .command(&["migrate", "guest", "other"])
            .env("PATH", format!("{bin}:{path}"))
            .stdout(said("migrate.out"))
            .stderr(said("migrate.err"))
            .spawn()
            .unwrap();
        let mut ended = None;
        assert!(wait_for(LIMIT, || {
            ended = child.try_wait().unwrap();
            ended.is_some() || self.xl().is_some()
        }));
        match ended {
            Some(status) => Err(self.output(status)),
            None => {
                self.migrate = Some(child);
                Ok(())
            }
        }
    }

    fn output(&self, status: ExitStatus) -> Output {
        let said = |name: &str| fs::read(self.host.path(name)).unwrap();
        Output {
            status,
            stdout: said("migrate.out"),
            stderr: said("migrate.err"),
        }
    }

    /// xl's process.
    pub(crate) fn xl(&self) -> Option<u32> {
        let pid = fs::read_to_string(self.host.path("xl.pid")).ok()?;
        pid.trim().parse().ok()
    }

    /// The guest is suspended, and the last of its memory goes over.
    pub(crate) fn suspend(&self) {
        self.host.suspend(HERE);
    }

    /// The destination's devices; whether xl goes on, which is when the backend shows InitWait.
    pub(crate) fn attach(&self) -> bool {
        self.attach_as(uuid(7), Domain::Restored)
    }

    pub(crate) fn attach_as(&self, uuid: String, as_what: Domain) -> bool {
        self.other.on(move |host| {
            match as_what {
                Domain::Restored => host.add_restored(THERE, &uuid),
                _ => host.add(THERE, &uuid),
            }
            let mut shown = None;
            wait_for(LIBXL, || {
                shown = host.backend_state(THERE);
                shown.as_deref() == Some("2") || shown.is_none()
            });
            shown.as_deref() == Some("2")
        })
    }

    /// The destination's xl takes its domain away.
    pub(crate) fn destroy_there(&self) {
        self.other.on(|host| host.destroy(THERE));
    }

    /// The destination's xl unpauses the guest, which connects.
    pub(crate) fn run_there(&mut self) -> Guest {
        self.other.on(|host| {
            host.hypervisor.set_domain(THERE, Domain::Running);
            let mut guest = Guest::new(host, THERE);
            guest.connect();
            guest
        })
    }

    /// The source's xl takes its domain away.
    pub(crate) fn destroy_here(&mut self) {
        self.guest = None;
        self.host.destroy(HERE);
    }

    /// The source's xl resumes the guest.
    pub(crate) fn resume_here(&self) {
        self.host.resume(HERE);
    }

    /// xl ends so; what `xen-vtpmd migrate` makes of it.
    pub(crate) fn end(&mut self, code: u8) -> Output {
        if self.xl().is_some_and(is_alive) {
            fs::write(self.host.path("xl.end"), format!("{code}\n")).unwrap();
        }
        self.ended()
    }

    /// The end of `xen-vtpmd migrate`.
    pub(crate) fn ended(&mut self) -> Output {
        let mut child = self.migrate.take().expect("a migration");
        let mut status = None;
        assert!(wait_for(LIMIT, || {
            status = child.try_wait().unwrap();
            status.is_some()
        }));
        self.output(status.unwrap())
    }

    /// The process that receives.
    pub(crate) fn receiver(&self) -> Option<u32> {
        self.other
            .on(|host| host.processes("migrate-receive", None).last().copied())
    }

    /// Whether `xen-vtpmd migrate` has ended, without having been waited for.
    pub(crate) fn is_migrate_dead(&mut self) -> bool {
        let child = self.migrate.as_mut();
        let dead = child.is_none_or(|child| child.try_wait().unwrap().is_some());
        if dead {
            self.migrate = None;
        }
        dead
    }

    /// What UUID.migration says here, or there; nothing if it is not there.
    pub(crate) fn mark_here(&self) -> String {
        mark(&self.host)
    }

    pub(crate) fn mark_there(&self) -> String {
        self.other.on(|host| mark(host))
    }

    /// What `list` says of the vTPM here, or there.
    pub(crate) fn listed_here(&self) -> Option<Value> {
        listed(&self.host)
    }

    pub(crate) fn listed_there(&self) -> Option<Value> {
        self.other.on(|host| listed(host))
    }
}

fn mark(host: &Host) -> String {
    let path = host.state_dir().join(format!("{}.migration", uuid(7)));
    let mark = fs::read(path).ok();
    let mark = mark.and_then(|text| serde_json::from_slice::<Value>(&text).ok());
    mark.map_or_else(String::new, |mark| {
        mark["role"].as_str().unwrap().to_owned()
    })
}

fn listed(host: &Host) -> Option<Value> {
    let list: Value = serde_json::from_str(&host.cli_ok(&["list", "--json"])).unwrap();
    let entries = list.as_array().unwrap();
    entries
        .iter()
        .find(|entry| entry["uuid"] == uuid(7))
        .cloned()
}

impl Drop for Two {
    fn drop(&mut self) {
        if let Some(mut child) = self.migrate.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if let Some(pid) = self.xl() {
            signal(pid, Signal::Kill);
        }
        if std::thread::panicking() {
            let said = |name: &str| fs::read_to_string(self.host.path(name)).unwrap_or_default();
            eprintln!("migrate: {}{}", said("migrate.out"), said("migrate.err"));
            let log = self.other.try_on(|host| host.log()).unwrap_or_default();
            let from = log.len().saturating_sub(4_000);
            eprintln!("the other host's log:\n{}", log.get(from..).unwrap_or(&log));
        }
    }
}
