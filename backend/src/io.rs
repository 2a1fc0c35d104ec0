// SPDX-License-Identifier: GPL-2.0

//! The I/O process, `xen-vtpmd io`: the only one that looks at the guest's page and at swtpm's
//! responses. It maps the page, binds the event channel, gives up everything else, and only then reads.
//!
//! A command takes six system calls: read the event, send the command, unmask the event channel, poll,
//! receive the response, notify. For what is rare it asks the worker: [`link`].

mod confine;
pub mod link;

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use rustix::event::{poll, PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{send, SendFlags};

use crate::counters::SAMPLE;
use crate::exchange::{Delivery, Exchange, Look};
use crate::storm::Storm;
use crate::swtpm::{undo, Inbox, Version};
use crate::sys::shared::{Entry, Shared};
use crate::sys::{inherited, release_memory};
use crate::xen::{self, EventChannel, GrantedPage};
use link::{Ask, Reply, Tell};

/// One connection to a guest. The descriptors are inherited from the worker.
#[derive(Clone, Debug, Args)]
pub struct Io {
    /// The guest's domain
    #[arg(long)]
    pub domid: u16,
    /// The grant of its page
    #[arg(long)]
    pub ring_ref: u32,
    /// The port of its event channel
    #[arg(long)]
    pub port: u32,
    /// The user to become
    #[arg(long)]
    pub uid: Option<u32>,
    /// The version of the TPM
    #[arg(long)]
    pub version: Version,
    /// The localities that commands may come from, a bit each
    #[arg(long)]
    pub localities: u8,
    /// The page was served before; a command in it is abandoned if it was under way
    #[arg(long)]
    pub resumed: bool,
    /// Refuse to run without all of the sandbox
    #[arg(long)]
    pub sandbox_required: bool,
    /// The socket to the worker
    #[arg(long)]
    pub worker: RawFd,
    /// swtpm's data socket
    #[arg(long)]
    pub data: RawFd,
    /// The journal and the counters
    #[arg(long)]
    pub shared: RawFd,
    /// Readable when files of the state directory have changed
    #[arg(long)]
    pub changes: RawFd,
}

/// What ends a connection.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Xen did not do it.
    #[error(transparent)]
    Xen(#[from] xen::Error),
    /// The process could not give up what it does not need.
    #[error("sandbox of the I/O process: {0}")]
    Confine(String),
    /// One of the sockets failed.
    #[error("{0} of the I/O process: {1}")]
    Socket(&'static str, #[source] io::Error),
    /// swtpm has closed its data socket, or said what is no response.
    #[error("swtpm's data socket: {0}")]
    Swtpm(String),
    /// The worker is gone, or has said that this is the end.
    #[error("ended by the worker")]
    Ended,
}

/// Serves the connection until the worker ends it.
pub fn run(io: &Io) -> ExitCode {
    // A worker that is gone already would not end this process.
    let signal = rustix::process::Signal::Kill;
    if rustix::process::set_parent_process_death_signal(Some(signal)).is_err() {
        return ExitCode::FAILURE;
    }
    let fds = [io.worker, io.data, io.shared, io.changes].map(inherited);
    let [Some(worker), Some(data), Some(shared), Some(changes)] = fds else {
        return ExitCode::FAILURE;
    };
    let Err(e) = Server::new(io, worker.as_fd(), data, shared, changes)
        .and_then(|mut server| server.serve());

    if let Error::Ended = e {
        return ExitCode::SUCCESS;
    }
    let _ = link::tell(&worker, &Tell::Failed(e.to_string()));
    ExitCode::FAILURE
}

/// The guest's side of the connection. Dropping it unmaps the page and unbinds the channel, in this order.
struct Guest {
    exchange: Exchange,
    page: GrantedPage,
    event: EventChannel,
    storm: Storm,
    /// An event was taken, and the next one comes after [`unmask`](Self::unmask).
    masked: bool,
}

impl Guest {
    fn open(io: &Io) -> Result<Self, Error> {
        Ok(Self {
            exchange: Exchange::new(),
            page: GrantedPage::map(io.domid, io.ring_ref)?,
            event: EventChannel::bind(io.domid, io.port)?,
            storm: Storm::default(),
            masked: false,
        })
    }

    /// Takes the event that is there, or waits for one.
    fn take_event(&mut self) -> Result<(), Error> {
        self.event.wait()?;
        self.masked = true;
        Ok(())
    }

    /// Lets the next event come.
    fn unmask(&mut self) -> Result<(), Error> {
        if std::mem::take(&mut self.masked) {
            self.event.unmask()?;
        }
        Ok(())
    }

    /// Looks at the page once. The guest is notified where it has to be.
    fn look(&mut self, shared: &Shared, tpm_is_free: bool) -> Result<Look, Error> {
        let look = self.exchange.look(&self.page, tpm_is_free);
        match look {
            Look::Cancelled => {
                shared.cancels.add(1);
                if !tpm_is_free {
                    shared.note(Entry::Left);
                }
            }
            Look::Refused(_) => shared.refused.add(1),
            Look::Nothing | Look::Command { .. } => return Ok(look),
        }
        self.event.notify()?;
        Ok(look)
    }

    /// Gives the guest its response: false if it has cancelled the command, or left too little room.
    fn deliver(
        &mut self,
        shared: &Shared,
        response: &[u8],
        woke: Option<Instant>,
    ) -> Result<bool, Error> {
        let delivered = match self.exchange.respond(&self.page, response) {
            Delivery::Delivered => true,
            Delivery::TooLong => false,
            Delivery::Dropped => return Ok(false),
        };
        if delivered {
            // From here on the guest may submit the next one, which is not to be taken for this.
            shared.note(Entry::Free);
            shared.bytes_out.add(response.len() as u64);
            if let Some(woke) = woke {
                shared.timed(woke.elapsed());
            }
        }
        self.event.notify()?;
        Ok(delivered)
    }

    /// Gives up on the running command, if there is one.
    fn abandon(&mut self, shared: &Shared) -> Result<(), Error> {
        if self.exchange.abandon(&self.page) {
            shared.note(Entry::Left);
            self.event.notify()?;
        }
        Ok(())
    }

    /// An event has brought nothing, or a request that was refused: counts it, and returns how long the next
    /// one has to wait.
    fn spurious(&mut self, shared: &Shared, look: &Look) -> Option<Duration> {
        shared.spurious.add(u64::from(*look == Look::Nothing));
        self.storm.spurious()
    }
}

/// The connection.
struct Server<'a> {
    guest: Guest,
    worker: BorrowedFd<'a>,
    data: OwnedFd,
    changes: OwnedFd,
    shared: Shared,
    version: Version,
    localities: u8,
    /// The one that swtpm is known to have.
    locality: Option<u8>,
    response: Inbox,
    /// The connection is to end with the running command.
    quit: bool,
}

impl<'a> Server<'a> {
    fn new(
        io: &Io,
        worker: BorrowedFd<'a>,
        data: OwnedFd,
        shared: OwnedFd,
        changes: OwnedFd,
    ) -> Result<Self, Error> {
        let mut server = Self {
            guest: Guest::open(io)?,
            worker,
            data,
            changes,
            shared: Shared::map(shared).map_err(|e| Error::Socket("journal", e))?,
            version: io.version,
            localities: io.localities,
            locality: None,
            response: Inbox::new(),
            quit: false,
        };
        let lacks = confine::confine(io.uid).map_err(Error::Confine)?;
        release_memory();
        if io.sandbox_required && !lacks.is_empty() {
            return Err(Error::Confine(format!("{lacks} is missing")));
        }
        server.tell(Tell::Connected(lacks))?;

        // From here on the page is looked at.
        if io.resumed {
            if let Entry::Command(_) = server.shared.entry() {
                server.guest.exchange = Exchange::interrupted(&server.guest.page);
            }
            // An event may have been lost.
            server.guest.event.notify()?;
        }
        server.shared.note(Entry::Free);
        Ok(server)
    }

    fn serve(&mut self) -> Result<Infallible, Error> {
        // A command may have been in the page before the port was bound.
        self.pump(None)?;
        loop {
            while self.guest.exchange.has_waiting() {
                self.pump(None)?;
            }
            self.guest.take_event()?;
            let timed = self.shared.commands.get() % SAMPLE == 0;
            let look = self.pump(timed.then(Instant::now))?;
            match look {
                Look::Command { .. } | Look::Cancelled => self.guest.storm.calm(),
                Look::Nothing | Look::Refused(_) => {
                    if let Some(delay) = self.guest.spurious(&self.shared, &look) {
                        std::thread::sleep(delay);
                    }
                }
            }
            self.guest.unmask()?;
        }
    }

    /// Looks at the page once, and carries out what is there. `woke` is when the event came, if the command is
    /// to be timed.
    fn pump(&mut self, woke: Option<Instant>) -> Result<Look, Error> {
        let look = self.guest.look(&self.shared, true)?;
        if let Look::Command { locality } = look {
            self.command(locality, woke)?;
        }
        Ok(look)
    }

    /// Takes a command to swtpm, and the response back.
    fn command(&mut self, locality: u8, woke: Option<Instant>) -> Result<(), Error> {
        let allowed = 1u32.checked_shl(locality.into()).unwrap_or(0);
        if u32::from(self.localities) & allowed == 0 || !self.set_locality(locality)? {
            self.shared.refused.add(1);
            let response = self.version.bad_locality();
            self.guest.deliver(&self.shared, &response, None)?;
            return self.end_if_asked();
        }
        let command = self.guest.exchange.command();
        let code = undo::code(command).unwrap_or(0);
        self.shared.note(Entry::Command(code));
        self.shared.commands.add(1);
        self.shared.bytes_in.add(command.len() as u64);
        send_packet(&self.data, command)?;
        self.guest.exchange.forget_command();
        self.guest.unmask()?;

        // Nothing that the guest is told may be lost with the host's power.
        let durable = !self.receive()? || self.ask(Ask::Sync)?;
        let response = self.response.packet();
        let (undoing, failure) = (
            undo::undo(self.version, code, response),
            self.version.is_failure_mode(response),
        );
        let delivered = match durable {
            true => self.guest.deliver(&self.shared, response, woke)?,
            false => self.guest.abandon(&self.shared).map(|()| false)?,
        };
        self.response.wipe();
        match undoing {
            Some(packet) if !delivered => self.undo(&packet)?,
            _ => (),
        }
        self.shared.note(Entry::Free);
        if failure {
            self.tell(Tell::FailureMode)?;
        }
        self.end_if_asked()
    }

    fn end_if_asked(&self) -> Result<(), Error> {
        match self.quit {
            true => Err(Error::Ended),
            false => Ok(()),
        }
    }

    /// Undoes a command whose response nobody takes.
    fn undo(&mut self, packet: &[u8]) -> Result<(), Error> {
        self.shared.note(Entry::Left);
        send_packet(&self.data, packet)?;
        self.receive()?;
        self.response.wipe();
        Ok(())
    }

    /// Waits for the response, with an eye on the guest and the worker. Returns whether files of the state
    /// have changed until then.
    fn receive(&mut self) -> Result<bool, Error> {
        let mut changed = false;
        let mut unmask_at: Option<Instant> = None;
        loop {
            let ready = self.wait(!changed, unmask_at)?;
            changed |= ready.changes;
            if ready.data && self.response.fill(&self.data).map_err(Error::Swtpm)? {
                return Ok(changed);
            }
            if ready.worker {
                self.listen()?;
            }
            if ready.event {
                self.guest.take_event()?;
                let look = self.guest.look(&self.shared, false)?;
                if look == Look::Nothing && !self.guest.exchange.has_waiting() {
                    let delay = self.guest.spurious(&self.shared, &look);
                    unmask_at = delay.map(|delay| Instant::now() + delay);
                }
            }
            if unmask_at.is_none_or(|at| at <= Instant::now()) {
                unmask_at = None;
                self.guest.unmask()?;
            }
        }
    }

    /// Waits for anything, until a moment at the latest.
    fn wait(&self, for_changes: bool, until: Option<Instant>) -> Result<Ready, Error> {
        let timeout = until.map_or(-1, |until| {
            // Rounded up: not to wake before it.
            let left = until.saturating_duration_since(Instant::now()).as_millis();
            i32::try_from(left).unwrap_or(i32::MAX).saturating_add(1)
        });
        let event = self.guest.event.as_fd();
        // The kernel looks at them in this order: where there is a response, what swtpm changed before it is
        // seen, too.
        let mut fds = [
            PollFd::new(&self.data, PollFlags::IN),
            PollFd::from_borrowed_fd(self.worker, PollFlags::IN),
            PollFd::from_borrowed_fd(event, PollFlags::IN),
            PollFd::new(&self.changes, PollFlags::IN),
        ];
        let all = if for_changes { 4 } else { 3 };
        match poll(&mut fds[..all], timeout) {
            Ok(_) | Err(Errno::INTR) => (),
            Err(e) => return Err(Error::Socket("poll", e.into())),
        }
        let ready = |n: usize| !fds[n].revents().is_empty();

        Ok(Ready {
            data: ready(0),
            worker: ready(1),
            event: ready(2),
            changes: for_changes && ready(3),
        })
    }

    /// Has the worker set the locality, if it is another one: false if swtpm refuses it.
    fn set_locality(&mut self, locality: u8) -> Result<bool, Error> {
        if self.locality == Some(locality) {
            return Ok(true);
        }
        self.locality = None;
        let set = self.ask(Ask::Locality(locality))?;
        self.locality = set.then_some(locality);
        Ok(set)
    }

    /// Asks the worker, and waits until it is done: false if it could not be. What the worker does for it has
    /// timeouts, and so this has an end.
    fn ask(&mut self, ask: Ask) -> Result<bool, Error> {
        self.tell(Tell::Ask(ask))?;
        loop {
            if let Some(done) = self.listen()? {
                return Ok(done);
            }
        }
    }

    /// Takes one message of the worker's.
    fn listen(&mut self) -> Result<Option<bool>, Error> {
        match link::reply(self.worker).map_err(socket("worker"))? {
            None => Err(Error::Ended),
            Some(Reply::Quit) => {
                self.quit = true;
                Ok(None)
            }
            Some(Reply::Leave) => {
                self.quit = true;
                self.guest.abandon(&self.shared)?;
                Ok(None)
            }
            Some(Reply::Done(done)) => Ok(Some(done)),
        }
    }

    fn tell(&self, message: Tell) -> Result<(), Error> {
        link::tell(self.worker, &message).map_err(socket("worker"))
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        // The guest is not to wait for what does not come. If it cannot be notified it has a timeout.
        let _ = self.guest.abandon(&self.shared);
    }
}

/// What a wait has shown.
struct Ready {
    data: bool,
    worker: bool,
    event: bool,
    changes: bool,
}

fn socket(name: &'static str) -> impl Fn(Errno) -> Error {
    move |e| Error::Socket(name, e.into())
}

/// Sends a packet. The socket's buffer is empty, since no other command is under way.
fn send_packet(data: &OwnedFd, packet: &[u8]) -> Result<(), Error> {
    match send(data, packet, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
        Ok(n) if n == packet.len() => Ok(()),
        Ok(n) => Err(Error::Swtpm(format!("took {n} of {} bytes", packet.len()))),
        Err(e) => Err(Error::Swtpm(format!("sending: {e}"))),
    }
}
