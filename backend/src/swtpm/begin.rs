// SPDX-License-Identifier: GPL-2.0

//! How an swtpm gets into use: started anew, or taken over from a former daemon.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::io::{fcntl_setfd, ioctl_fionread, FdFlags};
use rustix::net::sockopt::{get_socket_domain, get_socket_type};
use rustix::net::{AddressFamily, SocketType};
use xen_tpm_protocol::layout::MAX_PACKET;

use super::inbox::Inbox;
use super::{undo, Capability, Error, Event, Phase, Process, Reply, Request, Source, Swtpm};
use crate::config::Config;
use crate::journal::{Entry, Journal};
use crate::launch::{Launch, Program};
use crate::record::{Fds, Found};
use crate::state::State;
use crate::watch::{Registrar, Watched};
use crate::xenbus::Id;

/// How long swtpm may take from its start to its first answers. It is slow under emulation.
pub(super) const START_LIMIT: Duration = Duration::from_secs(30);

/// How long a reply may take to arrive after its request was read. It takes microseconds.
const SETTLE: Duration = Duration::from_millis(20);

/// What a new [`Swtpm`] is made of.
struct Parts {
    process: Process,
    control: UnixStream,
    data: UnixStream,
    journal: Journal,
}

impl Swtpm {
    /// Starts swtpm on a state, which is there already. [`Event::Up`] comes later.
    pub fn spawn(
        config: &Config,
        state: &State,
        id: Id,
        registrar: &Registrar,
    ) -> Result<Self, Error> {
        let saved = state.is_saved()?;
        let journal = Journal::new().map_err(Error::Spawn)?;
        let (control, control_peer) = UnixStream::pair().map_err(Error::Spawn)?;
        let (data, data_peer) = UnixStream::pair().map_err(Error::Spawn)?;
        let fds = Fds {
            control: control.as_raw_fd(),
            control_peer: control_peer.as_raw_fd(),
            data: data.as_raw_fd(),
            journal: journal.as_fd().as_raw_fd(),
        };
        let vtpm = id.to_string();
        let launch = Launch::new(config, state, Program::Swtpm { vtpm, fds });
        // It keeps copies of the daemon's own ends, so that no channel ends when the daemon does.
        let shared = [
            control.as_fd(),
            control_peer.as_fd(),
            data.as_fd(),
            journal.as_fd(),
        ];
        let process = launch
            .command(config)
            .and_then(|mut command| inheriting(&shared, || Process::spawn(&mut command)))
            .map_err(Error::Spawn)?;
        let parts = Parts {
            process,
            control,
            data,
            journal,
        };
        let mut swtpm = Self::new(state, parts, registrar).map_err(Error::Spawn)?;

        swtpm.data_peer = Some(data_peer);
        swtpm.goes_on = saved;
        swtpm.deadline = Some(Instant::now() + START_LIMIT);
        swtpm.request(Request::GetCapability)?;
        Ok(swtpm)
    }

    /// Takes over an swtpm that a former daemon left. [`Event::Up`] comes later: when a running command
    /// has ended. `None`, with the reason in the log, if it is of no use; it is killed then.
    pub fn take_over(state: &State, found: Found, registrar: &Registrar) -> Option<Self> {
        let (uuid, pid) = (&state.uuid, found.record.pid);
        let reason = match Self::adopt(state, found, registrar) {
            Ok(Ok(swtpm)) => return Some(swtpm),
            Ok(Err(reason)) => reason.to_string(),
            Err(e) => e.to_string(),
        };
        log::warn!("swtpm {pid} of vTPM {uuid} is not taken over: {reason}");
        None
    }

    fn adopt(
        state: &State,
        found: Found,
        registrar: &Registrar,
    ) -> io::Result<Result<Self, &'static str>> {
        let fds = found.record.fds;
        let under_way = found.is_under_way();
        let copy = |fd| found.descriptor(fd);
        let copies = [fds.control, fds.control_peer, fds.data].map(copy);
        let journal = copy(fds.journal);
        let version = found.record.version == state.version.to_string();
        // From here on it is killed if it cannot be used.
        let process = Process::adopt(found);

        if !under_way || !version {
            return Ok(Err("it is not the TPM that its record says"));
        }
        let [control, control_peer, data] = copies;
        let sockets = [control?, control_peer?, data?];
        let journal = Journal::from_fd(journal?)?;
        for socket in &sockets {
            if get_socket_domain(socket)? != AddressFamily::UNIX
                || get_socket_type(socket)? != SocketType::STREAM
            {
                return Ok(Err("its descriptors are not what its record says"));
            }
        }
        let entry = journal.read()?;
        if entry == Entry::Starting {
            return Ok(Err("it had not started yet"));
        }
        let [control, control_peer, data] = sockets.map(UnixStream::from);
        let parts = Parts {
            process,
            control,
            data,
            journal,
        };
        let mut swtpm = Self::new(state, parts, registrar)?;

        swtpm.phase = Phase::Settling(control_peer);
        swtpm.deadline = Some(Instant::now() + SETTLE);
        // Nobody knows which one was set last.
        swtpm.locality = None;
        if let Entry::Command(code) = entry {
            swtpm.interrupted = true;
            swtpm.code = code;
        }
        Ok(Ok(swtpm))
    }

    fn new(state: &State, parts: Parts, registrar: &Registrar) -> io::Result<Self> {
        let watched = |source, socket| registrar.add(source as u8, socket);
        let process: Watched<Process> = registrar.add(Source::Exit as u8, parts.process)?;

        Ok(Self {
            process,
            state: state.clone(),
            control: watched(Source::Control, parts.control)?,
            data: watched(Source::Data, parts.data)?,
            journal: parts.journal,
            data_peer: None,
            capabilities: super::Capabilities::default(),
            established: None,
            goes_on: false,
            interrupted: false,
            save_next: false,
            phase: Phase::Starting(Request::GetCapability),
            deadline: None,
            locality: Some(super::FIRST_LOCALITY),
            replies: Inbox::new(),
            answers: Inbox::new(),
            command: Vec::with_capacity(MAX_PACKET),
            code: 0,
            undo: None,
        })
    }

    /// The next step of the start. The order: capabilities, what has to be said while the TPM is off,
    /// INIT, and TPM_Startup. (`--flags startup-clear` would have the TPM on before the buffer's size
    /// can be set, and INIT would undo the startup: swtpm 0.7.1.) A TPM that goes on where it stopped
    /// has had its TPM_Startup long ago.
    pub(super) fn next_step(
        &mut self,
        done: Request,
        reply: Reply,
    ) -> Result<Option<Event<'static>>, Error> {
        match reply {
            Reply::Refused(code) => return Err(Error::Refused(done.name(), code)),
            Reply::Capabilities(capabilities) => self.capabilities = capabilities,
            Reply::BufferSize(size) => log::debug!("swtpm {}: packets of {size}", self.id()),
            Reply::Established(established) => self.established = Some(established),
            Reply::Done => (),
        }
        let next = match done {
            Request::GetCapability if self.capabilities.has(Capability::SetBufferSize) => {
                Request::SetBufferSize(MAX_PACKET as u32)
            }
            Request::GetCapability | Request::SetBufferSize(_) => {
                self.need(Capability::SetDataFd, Request::SetDataFd)?
            }
            Request::SetDataFd => self.need(Capability::Init, Request::Init)?,
            Request::Init if self.goes_on => return self.look_around(),
            Request::Init => {
                self.send_packet(&self.state.version.startup())?;
                self.phase = Phase::Startup;
                return Ok(None);
            }
            _ => return self.up().map(Some),
        };

        self.request(next)?;
        self.phase = Phase::Starting(next);
        Ok(None)
    }

    /// A request that the start cannot do without.
    fn need(&self, capability: Capability, request: Request) -> Result<Request, Error> {
        match self.capabilities.has(capability) {
            true => Ok(request),
            false => Err(Error::Lacks(request.name())),
        }
    }

    /// What is left to ask once the TPM is started.
    pub(super) fn look_around(&mut self) -> Result<Option<Event<'static>>, Error> {
        if !self.capabilities.has(Capability::GetTpmEstablished) {
            return self.up().map(Some);
        }
        self.request(Request::GetTpmEstablished)?;
        self.phase = Phase::Starting(Request::GetTpmEstablished);
        Ok(None)
    }

    /// The TPM takes commands.
    fn up(&mut self) -> Result<Event<'static>, Error> {
        if !self.interrupted {
            self.note(Entry::Free)?;
        }
        // Used up: should this TPM be killed later, its volatile state will be out of date. Not before
        // the next daemon would take this one over rather than start one.
        self.state.unmark_saved()?;
        self.phase = Phase::Free;
        self.deadline = None;
        Ok(Event::Up)
    }

    /// Waits until swtpm has read what a former daemon asked of it. Two requests that it finds at once it
    /// takes for one (0.7.1).
    pub(super) fn settle(&mut self) -> Result<(), Error> {
        let Phase::Settling(peer) = &self.phase else {
            return Ok(());
        };
        match ioctl_fionread(peer) {
            Ok(0) => {
                // Replies to a daemon that is no more.
                while self.replies.fill(&self.control, "control")? {
                    self.replies.empty();
                }
                self.replies.empty();
                self.deadline = None;
                self.request(Request::GetCapability)?;
                self.phase = Phase::Barrier(1);
            }
            Ok(_) => self.deadline = Some(Instant::now() + SETTLE),
            Err(e) => return Err(Error::Socket("control", e.into())),
        }
        Ok(())
    }

    /// A reply to one of the two barriers has arrived. After the second nothing is under way: swtpm looks
    /// at both channels in each of its turns, at this one first, and each barrier is a turn.
    pub(super) fn on_barrier(&mut self, turn: u8) -> Result<Option<Event<'static>>, Error> {
        let filled = self.replies.filled();
        // A reply to CMD_SET_LOCALITY may have come in between.
        let ours = match filled.len() {
            0..8 => return Ok(None),
            8 => filled,
            12 => &filled[4..],
            _ => return Err(self.replies.garbage("control")),
        };
        let Some((Reply::Capabilities(capabilities), _)) = Request::GetCapability.decode(ours)
        else {
            return Err(self.replies.garbage("control"));
        };
        if !capabilities.has(Capability::Init) {
            return Err(self.replies.garbage("control"));
        }
        self.replies.empty();
        self.capabilities = capabilities;
        if turn == 1 {
            self.request(Request::GetCapability)?;
            self.phase = Phase::Barrier(2);
            return Ok(None);
        }

        while self.answers.fill(&self.data, "data")? {}
        let stale = match self.answers.packet() {
            Ok(true) => self.answers.empty(),
            // A part of one: the rest had been read. Or there was none.
            _ => {
                self.answers.empty();
                &[]
            }
        };
        match undo::undo(self.code, stale) {
            Some(packet) if self.interrupted && self.state.version == super::Version::Tpm2 => {
                self.send_packet(&packet)?;
                self.phase = Phase::StaleUndoing;
                Ok(None)
            }
            _ => self.look_around(),
        }
    }
}

/// Does something while descriptors are inherited by new processes. Nothing else is started meanwhile.
fn inheriting<T>(fds: &[impl AsFd], act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    for fd in fds {
        fcntl_setfd(fd, FdFlags::empty())?;
    }
    let done = act();
    for fd in fds {
        fcntl_setfd(fd, FdFlags::CLOEXEC)?;
    }
    done
}
