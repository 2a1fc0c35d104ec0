// SPDX-License-Identifier: GPL-2.0

//! `xen-vtpmd migrate`: has the destination wait, runs `xl migrate`, sends the TPM when Xen says that the guest is
//! suspended, and does with it what xl has done with the guest.

use std::fs;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Args;
use zeroize::Zeroize;

use super::link::{Link, MAX_BYTES};
use super::mark::{Mark, Role};
use super::programs::Versions;
use super::resolve::{marked, put, remove_state, unmark};
use super::source::{self, Guest, Vtpm};
use super::{Error, FromDestination, FromSource, FORMAT};
use crate::config::Config;
use crate::files::read_plain;
use crate::state::Lock;
use crate::worker::ask;
use crate::xen::{Domain, Domains};

/// How often Xen is asked whether the guest is suspended: that costs downtime.
const LOOK: Duration = Duration::from_millis(5);

/// How often the destination is told that somebody is there.
const ALIVE: Duration = Duration::from_secs(10);

/// How long ssh and the destination may take to say hello. Somebody may have to type a password.
const HELLO: Duration = Duration::from_secs(120);

/// How long the destination may take to store a state, whose worker waits for eight seconds, and to answer anything.
const STORED: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(30);

/// How long a guest that runs at the destination may take to take its TPM, where xl does not say whether it runs.
const TAKE: Duration = Duration::from_secs(10);

/// How long the source's TPM may take to end.
const END: Duration = Duration::from_secs(20);

/// What is asked for.
#[derive(Clone, Debug, Args)]
#[group(skip)]
pub struct Migrate {
    /// The guest's name or domain id
    pub guest: String,
    /// The other host, as for ssh
    pub host: String,
    /// How to get there, as for xl migrate -s
    #[arg(long, value_name = "COMMAND", default_value = "ssh")]
    pub ssh: String,
    /// Further options of xl migrate
    #[arg(last = true, value_name = "OPTIONS")]
    pub xl_options: Vec<String>,
}

/// A migration under way.
struct Migration<'a> {
    config: &'a Config,
    how: &'a Migrate,
    guest: Guest,
    id: String,
    link: Link,
    ssh: Child,
    wants_key: Vec<String>,
    /// The TPMs are at the destination.
    is_sent: bool,
    /// The connection does not work any more.
    broken: bool,
}

impl Drop for Migration<'_> {
    fn drop(&mut self) {
        let _ = self.ssh.kill();
        let _ = self.ssh.wait();
    }
}

/// Migrates a guest with its vTPMs.
pub fn run(config: &Config, how: &Migrate) -> Result<(), Error> {
    if how.host.starts_with('-') {
        return Err(Error::Guest(format!("{:?} is no host", how.host)));
    }
    // xl, which gets them too, decides: its end is what is waited for.
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))?;
    }
    let guest = source::find(config, &how.guest)?;
    let domains = Domains::open()?;
    let mut migration = Migration::prepare(config, how, guest)?;
    println!("{}: {} waits for its TPM", how.guest, how.host);

    let started = Instant::now();
    let mut xl = Command::new("xl");
    xl.arg("migrate");
    if how.ssh != "ssh" {
        xl.args(["-s", &how.ssh]);
    }
    xl.args(&how.xl_options).args([&how.guest, &how.host]);
    let xl = xl.stdin(Stdio::null()).spawn();
    let ended = xl
        .map_err(Error::from)
        .and_then(|mut xl| migration.follow(&domains, &mut xl));
    println!("xl migrate: {:.1} s", started.elapsed().as_secs_f64());
    migration.decide(&domains, ended)
}

impl<'a> Migration<'a> {
    /// Connects, and has the destination wait.
    fn prepare(config: &'a Config, how: &'a Migrate, guest: Guest) -> Result<Self, Error> {
        let (own, theirs) = UnixStream::pair()?;
        own.set_write_timeout(Some(ANSWER))?;
        let script = format!("exec {} \"$@\"", how.ssh);
        // A Ctrl-C is for xl: it needs an answer from the destination then.
        let ssh = Command::new("env")
            .args([
                "--ignore-signal=INT",
                "--ignore-signal=HUP",
                "sh",
                "-c",
                &script,
            ])
            .args(["ssh", &how.host, "xen-vtpmd", "migrate-receive"])
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs.try_clone()?)))
            .stdout(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
            .spawn()?;
        let link = Link::new(own.try_clone()?.into(), own.into());
        let mut this = Self {
            config,
            how,
            guest,
            id: fs::read_to_string("/proc/sys/kernel/random/uuid")?
                .trim()
                .to_owned(),
            link,
            ssh,
            wants_key: Vec::new(),
            is_sent: false,
            broken: false,
        };
        let vtpms = this.guest.vtpms.iter().map(|vtpm| vtpm.offer.clone());
        let hello = FromSource::Hello {
            format: FORMAT,
            migration: this.id.clone(),
            host: source::hostname(),
            programs: Versions::here(),
            vtpms: vtpms.collect(),
        };
        this.link.send(&hello)?;
        match this.link.receive(HELLO)? {
            FromDestination::Ready { wants_key } => this.wants_key = wants_key,
            other => return Err(this.refused(other)),
        }
        Ok(this)
    }

    fn refused(&self, response: FromDestination) -> Error {
        let reason = match response {
            FromDestination::Refused { reason } | FromDestination::No { reason } => reason,
            other => format!("it says {other:?}"),
        };
        Error::Refused {
            host: self.how.host.clone(),
            reason,
        }
    }

    /// Asks something that is answered by yes or no.
    fn ask(&mut self, message: &FromSource) -> Result<(), Error> {
        let answer = self
            .link
            .send(message)
            .and_then(|()| self.link.receive(ANSWER));
        match answer {
            Ok(FromDestination::Yes) => Ok(()),
            Ok(other) => Err(self.refused(other)),
            Err(e) => {
                self.broken = true;
                Err(e.into())
            }
        }
    }

    /// Waits for xl's end, and sends the TPMs meanwhile.
    fn follow(&mut self, domains: &Domains, xl: &mut Child) -> Result<ExitStatus, Error> {
        let mut alive = Instant::now();
        let mut tried = false;
        loop {
            if let Some(status) = xl.try_wait()? {
                return Ok(status);
            }
            // What fails here is told to the destination, whose worker refuses then; and xl, for that, resumes
            // the guest.
            if !tried && domains.state(self.guest.domid)? == Domain::Suspended {
                tried = true;
                let begun = Instant::now();
                match self.send() {
                    Ok((packed, stored)) => {
                        self.is_sent = true;
                        let all = begun.elapsed().as_secs_f64();
                        let sent = all - packed - stored;
                        println!(
                            "the TPM is there: {all:.3} s of downtime, \
                             {packed:.3} packed, {sent:.3} sent, {stored:.3} stored"
                        );
                    }
                    Err(e @ Error::Link(_)) => {
                        eprintln!("xen-vtpmd: {e}");
                        // What is still on its way must not be taken for a later answer. Without a receiver the
                        // destination refuses.
                        self.broken = true;
                        let _ = self.ssh.kill();
                    }
                    Err(e) => {
                        eprintln!("xen-vtpmd: {e}");
                        let reason = e.to_string();
                        let _ = self.ask(&FromSource::Abort { reason });
                    }
                }
            }
            if alive.elapsed() > ALIVE && !self.broken {
                alive = Instant::now();
                self.broken = self.link.send(&FromSource::Alive).is_err();
            }
            sleep(LOOK);
        }
    }

    /// Sends the TPMs of the guest, which is suspended. Returns how long (s) it took to pack them here, and to store
    /// them there.
    fn send(&mut self) -> Result<(f64, f64), Error> {
        let (mut packed, mut stored) = (0.0, 0.0);
        for vtpm in &self.guest.vtpms {
            let begun = Instant::now();
            let path = ask::depart(&vtpm.run, &self.id, &self.how.host)?;
            packed += begun.elapsed().as_secs_f64();
            let bytes = read_plain(&path, MAX_BYTES);
            let _ = fs::remove_file(&path);
            let bytes = bytes.map_err(|source| Error::File { path, source })?;
            let key = match self.wants_key.contains(&vtpm.offer.uuid) {
                true => vtpm.key(self.config)?,
                false => None,
            };
            let mut state = FromSource::State {
                uuid: vtpm.offer.uuid.clone(),
                len: bytes.len() as u64,
                key,
            };
            let sent = self.link.send(&state);
            if let FromSource::State { key: Some(key), .. } = &mut state {
                key.zeroize();
            }
            sent.and_then(|()| self.link.send_bytes(&bytes))?;
            match self.link.receive(STORED)? {
                FromDestination::Stored { seconds } => stored += seconds,
                other => return Err(self.refused(other)),
            }
        }
        Ok((packed, stored))
    }

    /// Does with the TPM what xl has done with the guest.
    fn decide(&mut self, domains: &Domains, xl: Result<ExitStatus, Error>) -> Result<(), Error> {
        let said = match xl {
            // The destination's xl has unpaused the guest, for which its worker had to have the TPM.
            Ok(status) if status.success() => return self.moved(),
            Ok(status) => format!("xl migrate ended with {status}"),
            Err(e) => format!("xl migrate: {e}"),
        };
        match domains.state(self.guest.domid)? {
            // xl resumes it only if it will not run at the destination.
            Domain::Alive => {
                self.stays()?;
                Err(Error::Guest(format!(
                    "{said}: the guest runs here, with its TPM"
                )))
            }
            _ => {
                let limit = Instant::now() + TAKE;
                while !self.broken && Instant::now() < limit {
                    if self.ask(&FromSource::Taken).is_ok() {
                        eprintln!("xen-vtpmd: {said}, but the guest runs at the destination");
                        return self.moved();
                    }
                    sleep(Duration::from_millis(200));
                }
                let host = &self.how.host;
                let mut text = format!(
                    "{said}, and whether the guest runs on {host} is not known. See there (`xl list`)."
                );
                for vtpm in &self.guest.vtpms {
                    let uuid = &vtpm.uuid;
                    text += &format!(
                        " If it does: `xen-vtpmd discard {uuid}` here, `xen-vtpmd take {uuid}` there. If not: \
                         `xen-vtpmd take {uuid}` here, `xen-vtpmd discard {uuid}` there."
                    );
                }
                Err(Error::Doubt(text))
            }
        }
    }

    /// The guest runs at the destination.
    fn moved(&mut self) -> Result<(), Error> {
        if !self.is_sent && self.ask(&FromSource::Taken).is_err() {
            let text =
                "xl says that the guest is migrated, and its TPM was not sent. It is kept here";
            return Err(Error::Doubt(text.to_owned()));
        }
        let moved = Mark::new(&self.id, &self.how.host, Role::Moved);
        for vtpm in &self.guest.vtpms {
            put(&vtpm.path, &moved)?;
        }
        if let Err(e) = self.ask(&FromSource::Commit) {
            eprintln!("xen-vtpmd: {e}: the guest takes its TPM at the destination itself");
        }
        for Vtpm { uuid, path, .. } in &self.guest.vtpms {
            let lock = Lock::wait(self.config, uuid, END);
            let _lock = lock.map_err(|e| {
                let then = format!("when its domain is gone: `xen-vtpmd discard {uuid}`");
                Error::Doubt(format!(
                    "the guest has moved, and its TPM here stays: {e}; {then}"
                ))
            })?;
            remove_state(path, uuid)?;
        }
        println!("{} runs on {}", self.how.guest, self.how.host);
        Ok(())
    }

    /// The guest runs here.
    fn stays(&mut self) -> Result<(), Error> {
        if let Err(e) = self.ask(&FromSource::Discard) {
            eprintln!("xen-vtpmd: {e}: `xen-vtpmd list` there shows what is left");
        }
        for vtpm in &self.guest.vtpms {
            match marked(self.config, &vtpm.uuid)? {
                (path, Some(mark)) if mark.migration == self.id => unmark(&path)?,
                _ => (),
            }
        }
        Ok(())
    }
}
