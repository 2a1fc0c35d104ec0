// SPDX-License-Identifier: GPL-2.0

//! One swtpm process: started, driven and ended without ever waiting for it. It is the only owner of
//! the control channel, where one request at a time is under way.

mod begin;
mod control;
mod end;
#[cfg(test)]
mod fuzz;
mod inbox;
mod process;
mod undo;
mod version;

use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use rustix::net::{send, sendmsg, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::process::Signal;

pub use control::{Capabilities, Capability, Reply, Request};
use inbox::Inbox;
pub use process::{Exit, Process, Setup, SetupError};
pub use version::Version;

use crate::journal::{Entry, Journal};
use crate::state::{self, State};
use crate::watch::Watched;

/// The locality that swtpm starts in.
const FIRST_LOCALITY: u8 = 0;

/// How messages are sent: swtpm has a copy of the socket, and could have made it a blocking one.
const SEND: SendFlags = SendFlags::NOSIGNAL.union(SendFlags::DONTWAIT);

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
    Ended(Exit),
    /// Its state folder's surroundings cannot be read or changed.
    #[error(transparent)]
    State(#[from] state::Error),
    /// What it is doing could not be noted for the next daemon.
    #[error("journal: {0}")]
    Journal(#[source] io::Error),
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
    #[error("swtpm was not up after {} s", begin::START_LIMIT.as_secs())]
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

/// Where a [`Swtpm`] got readable: the code that it gives to its
/// [`Registrar`](crate::watch::Registrar).
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
#[derive(Debug)]
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
    /// It was taken over. Its own end of the control channel shows what it has not read yet.
    Settling(UnixStream),
    /// It was taken over, and this one of two requests is under way that show when it is idle.
    Barrier(u8),
    /// The undoing of a command is running that a former daemon passed on.
    StaleUndoing,
    /// The volatile state is being stored; then it is ended.
    Storing,
    /// It is being ended; the step after the next deadline is this signal.
    Ending(Signal),
}

/// One swtpm.
#[derive(Debug)]
pub struct Swtpm {
    process: Watched<Process>,
    state: State,
    control: Watched<UnixStream>,
    data: Watched<UnixStream>,
    journal: Journal,
    /// swtpm's end of `data`, until it has it.
    data_peer: Option<UnixStream>,
    capabilities: Capabilities,
    established: Option<bool>,
    /// Whether it starts with the volatile state of a guest that was saved.
    goes_on: bool,
    /// Whether the former daemon had passed on a command whose answer nobody got.
    interrupted: bool,
    /// Whether it is to be saved as soon as the locality is set.
    save_next: bool,
    phase: Phase,
    deadline: Option<Instant>,
    /// `None` if a former daemon set it.
    locality: Option<u8>,
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
    /// Which TPM it is.
    pub fn version(&self) -> Version {
        self.state.version
    }

    /// The process's id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Whether it can take a command.
    pub fn is_free(&self) -> bool {
        matches!(self.phase, Phase::Free)
    }

    /// When [`on_deadline`](Self::on_deadline) wants to be called.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whether a dynamic launch has measured anything, as it was when the TPM came up. `None` if swtpm
    /// does not say.
    pub fn established(&self) -> Option<bool> {
        self.established
    }

    /// Hands over a command. It has to be [free](Self::is_free).
    pub fn submit(&mut self, locality: u8, packet: &[u8]) -> Result<(), Error> {
        debug_assert!(self.is_free());
        self.code = undo::code(packet).unwrap_or(0);
        self.undo = None;
        self.interrupted = false;
        self.note(Entry::Command(self.code))?;
        if self.locality == Some(locality) || !self.capabilities.has(Capability::SetLocality) {
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

    /// The answer that was just given is in the guest's page, or was dropped with nothing to
    /// [undo](Self::undo): should the daemon die from now on, no command is under way. Also for a page
    /// that was abandoned after [`was_interrupted`](Self::was_interrupted).
    pub fn settled(&mut self) -> Result<(), Error> {
        self.interrupted = false;
        match self.phase {
            Phase::Free => self.note(Entry::Free),
            _ => Ok(()),
        }
    }

    /// Whether a former daemon died while a command was under way. Its answer was dropped: the guest's
    /// page has to be abandoned, since what is in it may have been carried out. True until the next
    /// [`settled`](Self::settled) or [`submit`](Self::submit).
    pub fn was_interrupted(&self) -> bool {
        self.interrupted
    }

    /// Undoes the command that was just answered, because nobody takes its answer. If there is
    /// something to undo, it is not free until [`Event::Undone`].
    pub fn undo(&mut self) -> Result<(), Error> {
        match (&self.phase, self.undo.take()) {
            (Phase::Free, Some(packet)) => {
                self.note(Entry::Undoing)?;
                self.send_packet(&packet)?;
                self.phase = Phase::Undoing;
                Ok(())
            }
            _ => self.settled(),
        }
    }

    /// Goes on after something got readable.
    pub fn on_ready(&mut self, source: Source) -> Result<Option<Event<'_>>, Error> {
        if matches!(self.phase, Phase::Ending(_)) && source != Source::Exit {
            self.overhear(source);
            return Ok(None);
        }
        let arrived = match source {
            Source::Exit => {
                return match self.process.exit() {
                    Ok(Some(exit)) => Err(Error::Ended(exit)),
                    Ok(None) => Ok(None),
                    Err(e) => Err(Error::Socket("process", e)),
                }
            }
            Source::Control => self.replies.fill(&self.control, "control"),
            Source::Data => self.answers.fill(&self.data, "data"),
        };
        match (arrived, source) {
            (Err(e), _) => Err(self.explained(e)),
            (Ok(false), _) => Ok(None),
            (Ok(true), Source::Control) => self.on_reply(),
            (Ok(true), _) => self.on_data(),
        }
    }

    /// Goes on after [`deadline`](Self::deadline) has passed.
    pub fn on_deadline(&mut self) -> Result<(), Error> {
        match self.phase {
            Phase::Settling(_) => self.settle().map_err(|e| self.explained(e)),
            Phase::Ending(signal) => {
                self.end_by(signal);
                Ok(())
            }
            Phase::Storing | Phase::Locality(_) => {
                self.end_by(Signal::Term);
                Ok(())
            }
            _ => Err(Error::Slow),
        }
    }

    /// A reply's bytes have arrived on the control socket.
    fn on_reply(&mut self) -> Result<Option<Event<'_>>, Error> {
        let request = match self.phase {
            Phase::Starting(request) => request,
            Phase::Locality(locality) => Request::SetLocality(locality),
            Phase::Barrier(turn) => return self.on_barrier(turn),
            Phase::Storing => return self.on_stored().map(|()| None),
            // Of no interest: `settle` empties it.
            Phase::Settling(_) => return Ok(None),
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
            (Request::SetLocality(_), _) if self.save_next => {
                self.save_next = false;
                self.phase = Phase::Free;
                self.save();
                Ok(None)
            }
            (Request::SetLocality(_), Reply::Refused(code)) => {
                self.phase = Phase::Free;
                Ok(Some(Event::LocalityRefused(code)))
            }
            (Request::SetLocality(locality), _) => {
                let command = std::mem::take(&mut self.command);
                self.locality = Some(locality);
                self.send_packet(&command)?;
                self.command = command;
                self.phase = Phase::Running;
                Ok(None)
            }
            (_, reply) => self.next_step(request, reply),
        }
    }

    /// An answer's bytes have arrived on the data socket.
    fn on_data(&mut self) -> Result<Option<Event<'_>>, Error> {
        match self.phase {
            Phase::Startup | Phase::Running | Phase::Undoing | Phase::StaleUndoing => (),
            // For a command that was under way before: looked at when all of them are over.
            Phase::Settling(_) | Phase::Barrier(_) => return Ok(None),
            Phase::Storing => {
                self.answers.empty();
                return Ok(None);
            }
            _ => return Err(self.answers.garbage("data")),
        }
        if !self.answers.packet()? {
            return Ok(None);
        }
        let code = undo::code(self.answers.empty());

        match self.phase {
            Phase::Startup => match code {
                Some(0) => self.look_around(),
                code => Err(Error::Startup(code.unwrap_or(u32::MAX))),
            },
            Phase::StaleUndoing => self.look_around(),
            Phase::Undoing => {
                self.phase = Phase::Free;
                self.note(Entry::Free)?;
                Ok(Some(Event::Undone))
            }
            _ => {
                let answer = self.answers.last();
                self.phase = Phase::Free;
                if self.state.version == Version::Tpm2 {
                    self.undo = undo::undo(self.code, answer);
                }
                Ok(Some(Event::Answer(answer)))
            }
        }
    }

    /// Notes for the next daemon what is under way.
    fn note(&self, entry: Entry) -> Result<(), Error> {
        self.journal.note(entry).map_err(Error::Journal)
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
            SEND,
        );
        match sent {
            Ok(n) if n == message.len() => Ok(()),
            Ok(_) => Err(Error::Socket("control", io::ErrorKind::WriteZero.into())),
            Err(e) => Err(Error::Socket("control", e.into())),
        }
    }

    /// Sends a packet. The socket's buffer is empty, since no other command is under way.
    fn send_packet(&self, packet: &[u8]) -> Result<(), Error> {
        match send(&*self.data, packet, SEND) {
            Ok(n) if n == packet.len() => Ok(()),
            Ok(_) => Err(Error::Socket("data", io::ErrorKind::WriteZero.into())),
            Err(e) => Err(Error::Socket("data", e.into())),
        }
    }
}
