// SPDX-License-Identifier: GPL-2.0

//! One swtpm process: started, driven and ended without ever waiting for it. It is the only owner of
//! the control channel, where one request at a time is under way.

mod control;
#[cfg(test)]
mod fuzz;
mod inbox;
mod process;
mod undo;
mod version;

use std::io::{self, IoSlice, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use rustix::net::{sendmsg, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::process::Signal;
use xen_tpm_protocol::layout::MAX_PACKET;

pub use control::{Capabilities, Capability, Reply, Request};
use inbox::Inbox;
pub use process::{version_of_state, Process, Setup};
pub use version::Version;

use crate::watch::{Registrar, Watched};

/// How long swtpm may take from its start to its first answers. It is slow under emulation.
const START_LIMIT: Duration = Duration::from_secs(30);

/// How long it may take to end after CMD_SHUTDOWN, which it reads when a running command has ended;
/// then the same again after SIGTERM.
const END_LIMIT: Duration = Duration::from_secs(5);

/// The locality that swtpm starts in.
const FIRST_LOCALITY: u8 = 0;

/// What went wrong with an swtpm. It is of no use afterwards.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be started.
    #[error("starting swtpm: {0}")]
    Spawn(#[source] io::Error),
    /// Reading from or writing to one of its sockets failed.
    #[error("swtpm's {0} socket: {1}")]
    Socket(&'static str, #[source] io::Error),
    /// It closed a socket, as it does when it ends.
    #[error("swtpm closed its {0} socket")]
    Closed(&'static str),
    /// It ended.
    #[error("swtpm ended ({0})")]
    Ended(ExitStatus),
    /// It lacks what the daemon cannot do without.
    #[error("swtpm has no {0}")]
    Lacks(&'static str),
    /// It refused a control request.
    #[error("swtpm refused {0}: {1:#x}")]
    Refused(&'static str, u32),
    /// It said something that nobody asked for, or that makes no sense.
    #[error("swtpm's {0} socket: unexpected {1} bytes: {2:02x?}")]
    Garbage(&'static str, usize, Vec<u8>),
    /// TPM_Startup failed.
    #[error("TPM startup failed: {0:#x}")]
    Startup(u32),
    /// It did not come up in time.
    #[error("swtpm was not up after {} s", START_LIMIT.as_secs())]
    Slow,
}

/// Something happened that the owner wants to know.
#[derive(Debug)]
pub enum Event<'a> {
    /// The TPM takes commands now.
    Up,
    /// The answer to the running command.
    Answer(&'a [u8]),
    /// The running command was not sent: swtpm refused its locality, with this code.
    LocalityRefused(u32),
    /// It is free again after [`Swtpm::undo`].
    Undone,
}

/// Where a [`Swtpm`] got readable: the code that it gives to its [`Registrar`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Source {
    /// The control socket.
    Control = 1,
    /// The data socket.
    Data = 2,
    /// The process's end.
    Exit = 3,
}

impl Source {
    /// The source with this code.
    pub fn from_code(code: u8) -> Option<Self> {
        [Self::Control, Self::Data, Self::Exit]
            .into_iter()
            .find(|source| *source as u8 == code)
    }
}

/// What the process is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// One of the requests of the start is under way.
    Starting(Request),
    /// TPM_Startup is running.
    Startup,
    /// It waits for a command.
    Free,
    /// A command waits in the buffer for its locality to be set.
    Locality(u8),
    /// A command is running.
    Running,
    /// The undoing of a command is running.
    Undoing,
    /// It is being ended; the step after the next deadline is this signal.
    Ending(Signal),
}

/// One swtpm.
#[derive(Debug)]
pub struct Swtpm {
    process: Watched<Process>,
    version: Version,
    control: Watched<UnixStream>,
    data: Watched<UnixStream>,
    /// swtpm's end of `data`, until it has it.
    data_peer: Option<UnixStream>,
    capabilities: Capabilities,
    phase: Phase,
    deadline: Option<Instant>,
    locality: u8,
    replies: Inbox,
    answers: Inbox,
    /// The command that waits in [`Phase::Locality`].
    command: Vec<u8>,
    /// The code of the running command, or of the last one.
    code: u32,
    /// What would undo the last command.
    undo: Option<[u8; 14]>,
}

impl Swtpm {
    /// Starts swtpm on a state folder. [`Event::Up`] comes later. Its own log lines go to stderr with
    /// this prefix, which has no commas in it.
    pub fn spawn(
        version: Version,
        state: &Path,
        log_prefix: &str,
        registrar: &Registrar,
    ) -> Result<Self, Error> {
        let pair = || -> io::Result<_> {
            let (ours, peers) = UnixStream::pair()?;
            ours.set_nonblocking(true)?;
            Ok((ours, peers))
        };
        let (control, control_peer) = pair().map_err(Error::Spawn)?;
        let (data, data_peer) = pair().map_err(Error::Spawn)?;
        let process = process::spawn_swtpm(version, state, &control_peer, log_prefix)
            .and_then(|process| registrar.add(Source::Exit as u8, process))
            .map_err(Error::Spawn)?;
        let watched = |source, socket| registrar.add(source as u8, socket).map_err(Error::Spawn);
        let mut swtpm = Self {
            process,
            version,
            control: watched(Source::Control, control)?,
            data: watched(Source::Data, data)?,
            data_peer: Some(data_peer),
            capabilities: Capabilities::default(),
            phase: Phase::Starting(Request::GetCapability),
            deadline: Some(Instant::now() + START_LIMIT),
            locality: FIRST_LOCALITY,
            replies: Inbox::new(),
            answers: Inbox::new(),
            command: Vec::with_capacity(MAX_PACKET),
            code: 0,
            undo: None,
        };

        swtpm.request(Request::GetCapability)?;
        Ok(swtpm)
    }

    /// Which TPM it is.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The process's id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Whether it can take a command.
    pub fn is_free(&self) -> bool {
        self.phase == Phase::Free
    }

    /// When [`on_deadline`](Self::on_deadline) wants to be called.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Hands over a command. It has to be [free](Self::is_free).
    pub fn submit(&mut self, locality: u8, packet: &[u8]) -> Result<(), Error> {
        debug_assert!(self.is_free());
        self.code = undo::code(packet).unwrap_or(0);
        self.undo = None;
        if locality == self.locality || !self.capabilities.has(Capability::SetLocality) {
            self.send_packet(packet)?;
            self.phase = Phase::Running;
        } else {
            self.command.clear();
            self.command.extend_from_slice(packet);
            self.request(Request::SetLocality(locality))?;
            self.phase = Phase::Locality(locality);
        }
        Ok(())
    }

    /// The answer that was just given is in the guest's page, or was dropped: should the daemon die
    /// from now on, no command is under way.
    pub fn settled(&mut self) {}

    /// Whether a former daemon died while a command was under way. Its answer was dropped: the guest's
    /// page has to be abandoned, since what is in it may have been carried out.
    pub fn was_interrupted(&self) -> bool {
        false
    }

    /// Undoes the command that was just answered, because nobody takes its answer. If there is
    /// something to undo, it is not free until [`Event::Undone`].
    pub fn undo(&mut self) -> Result<(), Error> {
        if let (Phase::Free, Some(packet)) = (self.phase, self.undo.take()) {
            self.send_packet(&packet)?;
            self.phase = Phase::Undoing;
        }
        Ok(())
    }

    /// Goes on after something got readable.
    pub fn on_ready(&mut self, source: Source) -> Result<Option<Event<'_>>, Error> {
        if self.is_ending() && source != Source::Exit {
            self.overhear(source);
            return Ok(None);
        }
        match source {
            Source::Exit => match self.process.exit_status() {
                Ok(Some(status)) => Err(Error::Ended(status)),
                Ok(None) => Ok(None),
                Err(e) => Err(Error::Socket("process", e)),
            },
            Source::Control if self.replies.fill(&mut self.control, "control")? => self.on_reply(),
            Source::Data if self.answers.fill(&mut self.data, "data")? => self.on_data(),
            _ => Ok(None),
        }
    }

    /// Goes on after [`deadline`](Self::deadline) has passed.
    pub fn on_deadline(&mut self) -> Result<(), Error> {
        let Phase::Ending(signal) = self.phase else {
            return Err(Error::Slow);
        };
        self.end_by(signal);
        Ok(())
    }

    /// Ends the process: by CMD_SHUTDOWN where that is possible, then by signals. Its end shows as
    /// [`Error::Ended`]; until then its state folder is in use.
    pub fn shut_down(&mut self) {
        let idle = matches!(
            self.phase,
            Phase::Free | Phase::Running | Phase::Undoing | Phase::Startup
        );

        if matches!(self.phase, Phase::Ending(_)) {
            return;
        }
        if idle
            && self.capabilities.has(Capability::Shutdown)
            && self.request(Request::Shutdown).is_ok()
        {
            self.phase = Phase::Ending(Signal::Term);
            self.deadline = Some(Instant::now() + END_LIMIT);
        } else {
            self.end_by(Signal::Term);
        }
    }

    /// Whether [`shut_down`](Self::shut_down) was called.
    pub fn is_ending(&self) -> bool {
        matches!(self.phase, Phase::Ending(_))
    }

    /// What a process says that is being ended is of no interest, but would be readable for ever.
    fn overhear(&mut self, source: Source) {
        let socket = match source {
            Source::Control => &mut self.control,
            _ => &mut self.data,
        };
        let _ = socket.read(&mut [0; MAX_PACKET]);
    }

    fn end_by(&mut self, signal: Signal) {
        if let Err(e) = self.process.signal(signal) {
            log::warn!("swtpm {}: {signal:?} could not be sent: {e}", self.id());
        }
        self.phase = Phase::Ending(Signal::Kill);
        self.deadline = Some(Instant::now() + END_LIMIT);
    }

    /// A reply's bytes have arrived on the control socket.
    fn on_reply(&mut self) -> Result<Option<Event<'_>>, Error> {
        let request = match self.phase {
            Phase::Starting(request) => request,
            Phase::Locality(locality) => Request::SetLocality(locality),
            _ => return Err(self.replies.garbage("control")),
        };
        let Some((reply, len)) = request.decode(self.replies.filled()) else {
            return Ok(None);
        };
        if len != self.replies.filled().len() {
            return Err(self.replies.garbage("control"));
        }
        self.replies.empty();

        match (request, reply) {
            (Request::SetLocality(_), Reply::Refused(code)) => {
                self.phase = Phase::Free;
                Ok(Some(Event::LocalityRefused(code)))
            }
            (Request::SetLocality(locality), _) => {
                let command = std::mem::take(&mut self.command);
                self.locality = locality;
                self.send_packet(&command)?;
                self.command = command;
                self.phase = Phase::Running;
                Ok(None)
            }
            (_, reply) => self.next_step(request, reply).map(|()| None),
        }
    }

    /// The next step of the start. The order: capabilities, what has to be said while the TPM is off,
    /// INIT, and TPM_Startup. (`--flags startup-clear` would have the TPM on before the buffer's size
    /// can be set, and INIT would undo the startup: swtpm 0.7.1.)
    fn next_step(&mut self, done: Request, reply: Reply) -> Result<(), Error> {
        match reply {
            Reply::Refused(code) => return Err(Error::Refused(done.name(), code)),
            Reply::Capabilities(capabilities) => self.capabilities = capabilities,
            Reply::BufferSize(size) => log::debug!("swtpm {}: packets of {size}", self.id()),
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
            _ => {
                self.send_packet(&self.version.startup())?;
                self.phase = Phase::Startup;
                return Ok(());
            }
        };

        self.request(next)?;
        self.phase = Phase::Starting(next);
        Ok(())
    }

    /// A request that the start cannot do without.
    fn need(&self, capability: Capability, request: Request) -> Result<Request, Error> {
        match self.capabilities.has(capability) {
            true => Ok(request),
            false => Err(Error::Lacks(request.name())),
        }
    }

    /// An answer's bytes have arrived on the data socket.
    fn on_data(&mut self) -> Result<Option<Event<'_>>, Error> {
        if !matches!(self.phase, Phase::Startup | Phase::Running | Phase::Undoing) {
            return Err(self.answers.garbage("data"));
        }
        if !self.answers.packet()? {
            return Ok(None);
        }
        let answer = self.answers.empty();

        match self.phase {
            Phase::Startup => {
                let code = answer.get(6..10).and_then(|code| code.try_into().ok());
                match code.map(u32::from_be_bytes) {
                    Some(0) => (),
                    code => return Err(Error::Startup(code.unwrap_or(u32::MAX))),
                }
                self.phase = Phase::Free;
                self.deadline = None;
                Ok(Some(Event::Up))
            }
            Phase::Undoing => {
                self.phase = Phase::Free;
                Ok(Some(Event::Undone))
            }
            _ => {
                self.phase = Phase::Free;
                if self.version == Version::Tpm2 {
                    self.undo = undo::undo(self.code, answer);
                }
                Ok(Some(Event::Answer(answer)))
            }
        }
    }

    /// Sends a control request. The socket's buffer is empty, since no other is under way.
    fn request(&mut self, request: Request) -> Result<(), Error> {
        let message = request.encode();
        let peer = match request {
            Request::SetDataFd => self.data_peer.take(),
            _ => None,
        };
        let fds = peer.as_ref().map(|peer| [peer.as_fd()]);
        let mut space = [0; rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);

        if let Some(fds) = &fds {
            ancillary.push(SendAncillaryMessage::ScmRights(fds));
        }
        let sent = sendmsg(
            &*self.control,
            &[IoSlice::new(&message)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        );
        match sent {
            Ok(n) if n == message.len() => Ok(()),
            Ok(_) => Err(Error::Socket("control", io::ErrorKind::WriteZero.into())),
            Err(e) => Err(Error::Socket("control", e.into())),
        }
    }

    /// Sends a packet. The socket's buffer is empty, since no other command is under way.
    fn send_packet(&mut self, packet: &[u8]) -> Result<(), Error> {
        match self.data.write(packet) {
            Ok(n) if n == packet.len() => Ok(()),
            Ok(_) => Err(Error::Socket("data", io::ErrorKind::WriteZero.into())),
            Err(e) => Err(Error::Socket("data", e)),
        }
    }
}
