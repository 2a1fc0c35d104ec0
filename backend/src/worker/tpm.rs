// SPDX-License-Identifier: GPL-2.0

//! The TPM of one vTPM: how its state is made, and how its swtpm starts, is adopted from a former worker, is
//! saved, and ends.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::inotify;
use rustix::process::Signal;
use rustix::thread::set_thread_res_uid;

use crate::config::{Config, PlatformHierarchy, Uuid};
use crate::files;
use crate::key::{self, Key};
use crate::launch::{Launch, Program};
use crate::measure::{self, Boot, Measured, Objection};
use crate::probe::Probe;
use crate::record::{Record, RunDir};
use crate::state::{self, Guest, Lock, State};
use crate::swtpm::{self, client, Client, GiveUp, Process, Version};
use crate::sys::shared::{Entry, Shared};
use crate::sys::user_and_group;

use super::messages::Messages;

mod setup;

pub use setup::Setup;

/// How long swtpm has for each step of its start. The toolstack does not wait for it, and a host that starts many
/// guests at once is slow.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// How long the kernel has to end a process after SIGKILL.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the TPM has for TPM2_Shutdown, with what is under way before it, and how long swtpm has to end after
/// CMD_SHUTDOWN and after SIGTERM. libxl waits ten seconds for all of it.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(4);
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// Why there is no TPM.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// swtpm did not do it.
    #[error(transparent)]
    Swtpm(#[from] swtpm::Error),
    /// swtpm ended.
    #[error("swtpm ended ({0})")]
    Ended(String),
    /// swtpm_setup failed.
    #[error("making the state of a new TPM: {0}")]
    Setup(String),
    /// The state is not what it should be.
    #[error(transparent)]
    State(#[from] state::Error),
    /// The key is not what it should be.
    #[error(transparent)]
    Key(#[from] key::Error),
    /// The volatile state was not stored.
    #[error("storing the volatile state in {0}, where {1}: {2}")]
    Store(String, String, #[source] swtpm::Error),
    /// A process, or what it needs, could not be made.
    #[error("{0}: {1}")]
    Io(&'static str, #[source] io::Error),
    /// The guest was not measured.
    #[error(transparent)]
    Measure(#[from] measure::Error),
    /// The directory of the certificate authority is not what it should be.
    #[error("certificates: {0}")]
    Certificates(String),
}

fn io_error(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |e| Error::Io(what, e)
}

/// What all starts of a vTPM's processes need.
#[derive(Debug)]
pub struct Place<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// The vTPM's run directory.
    pub run: &'a RunDir,
    /// What ends waits for swtpm.
    pub give_up: GiveUp,
}

/// The right to a state, and what it is.
#[derive(Debug)]
pub struct Held {
    /// Where it is and what it is.
    pub state: State,
    /// `None` if only the adopted swtpm has it.
    lock: Option<Lock>,
}

impl Held {
    /// Takes a state that nobody has.
    pub fn take(
        config: &Config,
        uuid: &Uuid,
        asked: Option<Version>,
    ) -> Result<Self, state::Error> {
        // What is wrong with it is looked at by whom has the lock: it may be in the making.
        let lock = State::lock_of(config, uuid)?;
        Self::with(config, uuid, asked, lock)
    }

    /// The same, for whom has the lock.
    pub fn with(
        config: &Config,
        uuid: &Uuid,
        asked: Option<Version>,
        lock: Lock,
    ) -> Result<Self, state::Error> {
        Ok(Self {
            state: config.state(uuid, asked)?,
            lock: Some(lock),
        })
    }

    fn lock(&self) -> Option<BorrowedFd<'_>> {
        self.lock.as_ref().map(AsFd::as_fd)
    }

    fn key(&self, config: &Config) -> Result<Option<OwnedFd>, Error> {
        let key_file = config.policy(&self.state.uuid).key_file.as_deref();
        let State {
            uuid, path, exists, ..
        } = &self.state;
        let key = key::of_state(key_file, uuid, path, *exists)?;
        let fd = key.as_ref().map(Key::to_fd).transpose();
        fd.map_err(io_error("key"))
    }
}

/// What a process said last, and how it ended.
fn reason(messages: &mut Messages, exit: &str) -> String {
    messages.take();
    match messages.last() {
        Some(last) => format!("{last}; {exit}"),
        None => exit.to_owned(),
    }
}

/// A TPM that takes commands. Dropping it leaves the process alone, for the next worker.
#[derive(Debug)]
pub struct Tpm {
    process: Process,
    client: Client,
    held: Held,
    /// Readable when files of the state have changed.
    changes: OwnedFd,
    uid: Option<u32>,
    /// Whether it went on with the volatile state of a guest that was saved.
    pub resumed: bool,
    /// What of the guest that it started for is not as the administrator wants it.
    pub objection: Option<Objection>,
}

impl Tpm {
    /// Starts swtpm on a state that exists. `boot` is what the guest boots.
    pub fn start(
        place: &Place<'_>,
        held: Held,
        guest: Guest<'_>,
        boot: Boot,
        shared: &Shared,
        messages: &mut Messages,
    ) -> Result<Self, Error> {
        let (config, state) = (place.config, &held.state);
        let policy = config.policy(&state.uuid);
        let key = held.key(config)?;
        let uid = match config.first_uid {
            Some(first) => Some(state.own(&state.path, first)?),
            None => None,
        };
        let resumed = state.prepare_volatile(guest)?;
        shared.note(Entry::Starting);

        let path = place.run.swtpm_socket();
        let listener = listen(&path).map_err(io_error("swtpm's control socket"))?;
        let program = Program::Swtpm {
            run: place.run.as_path().to_owned(),
            control: std::os::fd::AsRawFd::as_raw_fd(&listener),
            reject_locality_4: policy.localities & (1 << 4) == 0,
            fsync: Probe::get(&config.run_dir).fsync,
        };
        let key = key.as_ref().map(AsFd::as_fd);
        let launch = Launch::new(config, state, &state.path, key, program);
        let inherited: Vec<_> = [Some(listener.as_fd()), held.lock(), key]
            .into_iter()
            .flatten()
            .collect();
        let mut process = launch
            .spawn(config, messages.file(), &inherited)
            .map_err(io_error("starting swtpm"))?;
        drop(listener);

        let version = state.version;
        let up = || -> Result<(Client, Measured), Error> {
            let give_up = &place.give_up;
            let mut client = Client::connect(&path, version, START_TIMEOUT, give_up.clone())?;
            client.start(resumed)?;
            if !resumed && policy.platform_hierarchy == PlatformHierarchy::Closed {
                client.close_platform()?;
            }
            client.set_timeout(client::TIMEOUT);
            let measured = match resumed {
                // The guest has booted once, and its PCRs and its log go on.
                true => Measured::default(),
                false => {
                    let run_dir = &config.run_dir;
                    let measured =
                        measure::measure(&mut client, version, boot, policy, run_dir, give_up)?;
                    measure::keep_log(&state.path, measured.log.as_deref())?;
                    measured
                }
            };
            Ok((client, measured))
        };
        let (client, measured) = match up() {
            Ok(up) => up,
            Err(e) => {
                let ended = process.wait(Duration::from_millis(200));
                let _ = process.kill(KILL_TIMEOUT);
                Record::remove(place.run);
                return Err(match ended {
                    Ok(Some(exit)) => Error::Ended(reason(messages, &exit.to_string())),
                    _ => e,
                });
            }
        };
        let tpm = Self {
            process,
            client,
            changes: watch_changes(&held.state.path, uid)?,
            held,
            uid,
            resumed,
            objection: measured.objection,
        };
        tpm.reserve();
        // Counted before it is up: of a second start, nothing is measured.
        shared.starts.add(1);
        shared.note(Entry::Free);
        shared.restores.add(u64::from(resumed));
        // Used up: should this TPM be killed later, its volatile state is out of date.
        tpm.held.state.unmark_saved()?;
        Ok(tpm)
    }

    /// Goes on with the swtpm that a former worker left; `None` if there is none that is up.
    pub fn adopt(place: &Place<'_>, uuid: &Uuid, shared: &Shared) -> Result<Option<Self>, Error> {
        let record = Record::read(place.run).map_err(io_error("record"))?;
        let Some(record) = record.filter(|record| record.uuid == uuid.to_string()) else {
            return Ok(None);
        };
        let Some(pidfd) = record.process().map_err(io_error("record"))? else {
            Record::remove(place.run);
            return Ok(None);
        };
        let mut process = Process::adopt(record.pid.unsigned_abs(), pidfd);
        let version: Version = record.tpm.parse().map_err(|e: String| {
            Error::Io("record", io::Error::new(io::ErrorKind::InvalidData, e))
        })?;
        if shared.entry() == Entry::Starting {
            log::info!("ends swtpm {}, which was not up", process.id());
            let _ = process.kill(KILL_TIMEOUT);
            Record::remove(place.run);
            return Ok(None);
        }
        let socket = place.run.swtpm_socket();
        let client = Client::connect(&socket, version, client::TIMEOUT, place.give_up.clone())?;
        let uid = place.config.first_uid.map(|_| record.uid);
        let tpm = Self {
            process,
            client,
            changes: watch_changes(&record.state, uid)?,
            held: Held {
                state: State {
                    uuid: uuid.clone(),
                    path: record.state,
                    version,
                    exists: true,
                },
                lock: None,
            },
            uid,
            resumed: false,
            objection: None,
        };
        // What a former worker was told of and could not make durable any more.
        tpm.held.state.sync()?;
        tpm.reserve();
        Ok(Some(tpm))
    }

    /// Gives swtpm a new data channel. What is under way ends first, and its response is lost with the old one.
    pub fn reconnect(
        &mut self,
        run: &RunDir,
        timeout: Duration,
        give_up: GiveUp,
    ) -> Result<(), Error> {
        // swtpm takes one client at a time: the old connection goes before the new one is made.
        let version = self.version();
        self.client.close();
        self.client = Client::connect(&run.swtpm_socket(), version, timeout, give_up)?;
        self.client.set_timeout(client::TIMEOUT);
        Ok(())
    }

    /// Keeps room for the next write of the state: without it, a full file system would be the end of this TPM.
    fn reserve(&self) {
        if let Err(e) = self.held.state.reserve(self.uid) {
            log::warn!("no room is kept for the next write of the state: {e}");
        }
    }

    /// Makes durable what has changed until now.
    pub fn sync(&self) -> Result<(), Error> {
        // Emptied before: what changes later is told again.
        let mut bytes = [0; 4096];
        while let Ok(n) = rustix::io::read(&self.changes, &mut bytes) {
            if n < bytes.len() / 2 {
                break;
            }
        }
        self.held.state.sync()?;
        self.reserve();
        Ok(())
    }

    /// Stores the volatile state. What makes it durable, and the next start of this guest take it up, is
    /// [`State::mark_saved`].
    pub fn save(&mut self) -> Result<(), Error> {
        // The toolstack takes the vTPM away: that is no reason to stop now.
        self.client.set_give_up(GiveUp::never());
        self.client.store_volatile().map_err(|e| {
            let path = &self.held.state.path;
            Error::Store(path.display().to_string(), state::free_space(path), e)
        })?;
        Ok(())
    }

    /// Ends the process after [`save`](Self::save): nothing of it is written any more.
    pub fn end_saved(mut self, run: &RunDir) {
        if let Err(e) = self.process.kill(KILL_TIMEOUT) {
            log::warn!("swtpm {}: {e}", self.process.id());
        }
        Record::remove(run);
    }

    /// Ends it in good order: the TPM is told, then the process. `entry` says what was under way.
    pub fn end(mut self, entry: Entry, run: &RunDir) -> Result<(), Error> {
        let id = self.process.id();
        let told = match entry {
            Entry::Command(_) | Entry::Left => {
                self.reconnect(run, SHUTDOWN_TIMEOUT, GiveUp::never())
            }
            Entry::Starting | Entry::Free => Ok(()),
        };
        self.client.set_timeout(SHUTDOWN_TIMEOUT);
        self.client.set_give_up(GiveUp::never());
        if let Err(e) = told.and_then(|()| Ok(self.client.shut_down_tpm()?)) {
            log::warn!("swtpm {id}: {e}: its TPM is switched off as by a loss of power");
        }
        self.client.set_timeout(END_TIMEOUT);
        if let Err(e) = self.client.shut_down() {
            log::debug!("swtpm {id}: {e}");
            let _ = self.process.signal(Signal::Term);
        }
        let process = &mut self.process;
        let ended = process.wait(END_TIMEOUT).and_then(|exit| match exit {
            Some(_) => Ok(exit),
            None => process
                .signal(Signal::Term)
                .and_then(|()| process.wait(END_TIMEOUT)),
        });
        let ended = match ended.map_err(io_error("swtpm"))? {
            None => process.kill(KILL_TIMEOUT).map_err(io_error("swtpm"))?,
            ended => ended,
        };
        if ended.is_none() {
            return Err(Error::Ended(format!("not even by SIGKILL: process {id}")));
        }
        Record::remove(run);
        Ok(self.held.state.sync()?)
    }

    /// How it ended, if it has.
    pub fn ended(&mut self, messages: &mut Messages, run: &RunDir) -> Option<Error> {
        let exit = self.process.exit().transpose()?;
        Record::remove(run);
        let exit = exit.map_or_else(|e| e.to_string(), |exit| exit.to_string());
        Some(Error::Ended(reason(messages, &exit)))
    }

    /// Ends the process of a TPM that is of no use any more.
    pub fn kill(mut self, run: &RunDir) {
        if let Err(e) = self.process.kill(KILL_TIMEOUT) {
            log::warn!("swtpm {}: {e}", self.process.id());
        }
        Record::remove(run);
    }

    /// To talk to swtpm, while no guest's command is under way.
    pub fn client(&mut self) -> &mut Client {
        &mut self.client
    }

    /// The data channel.
    pub fn data(&self) -> BorrowedFd<'_> {
        self.client.data()
    }

    /// Readable when files of the state have changed.
    pub fn changes(&self) -> BorrowedFd<'_> {
        self.changes.as_fd()
    }

    /// Which TPM it is.
    pub fn version(&self) -> Version {
        self.held.state.version
    }

    /// The state directory.
    pub fn state_path(&self) -> &Path {
        &self.held.state.path
    }

    /// The state.
    pub fn state(&self) -> &State {
        &self.held.state
    }

    /// swtpm's process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The user that swtpm runs as, where that is not the worker's.
    pub fn uid(&self) -> Option<u32> {
        self.uid
    }
}

impl AsFd for Tpm {
    /// Readable when swtpm has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }
}

/// Readable when files in this directory have changed. It counts as the vTPM's own user's, since of
/// each user's there are few (fs.inotify.max_user_instances, 128), and all workers are root.
fn watch_changes(path: &Path, uid: Option<u32>) -> Result<OwnedFd, Error> {
    let failed = |e: rustix::io::Errno| Error::Io("inotify", e.into());
    let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
    let fd = match uid.and_then(user_and_group) {
        Some((user, _)) => {
            let root = rustix::process::getuid();
            set_thread_res_uid(root, user, root).map_err(failed)?;
            let fd = inotify::init(flags);
            set_thread_res_uid(root, root, root).map_err(failed)?;
            fd
        }
        None => inotify::init(flags),
    };
    let fd = fd.map_err(failed)?;
    // swtpm writes another file and renames it.
    let what = inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::ONLYDIR;
    inotify::add_watch(&fd, path, what).map_err(failed)?;
    Ok(fd)
}

/// Listens where swtpm is to: the worker's own, so that a later worker finds it.
fn listen(path: &PathBuf) -> io::Result<UnixListener> {
    files::remove(path)?;
    UnixListener::bind(path)
}
