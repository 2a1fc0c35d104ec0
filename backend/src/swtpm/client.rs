// SPDX-License-Identifier: GPL-2.0

//! The worker's end of an swtpm: one control request or command at a time, each with a timeout. swtpm is not
//! trusted: what it says is bounded and checked.

use std::fmt;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::event::{poll, PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{
    connect_unix, recv, send, sendmsg, socket_with, AddressFamily, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use xen_tpm_protocol::layout::MAX_PACKET;
use zeroize::Zeroize;

use super::{undo, Capabilities, Capability, Error, Inbox, Reply, Request, Version};

/// How long a request or a command of the worker's own may take. swtpm reads a request when a running command
/// has ended, and some commands take long on a slow host.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// How often a wait is asked for its use.
const ASK_EACH: Duration = Duration::from_millis(500);

/// swtpm has a data channel (TPM_IOERROR).
const HAS_ONE: u32 = 0x1f;

/// How soon a data channel is offered again.
const DATA_PAUSE: Duration = Duration::from_millis(5);

/// The longest reply that there is.
const MAX_REPLY: usize = 16;

const SEND: SendFlags = SendFlags::NOSIGNAL.union(SendFlags::DONTWAIT);

/// Says whether what is waited for is of no use any more. It is asked now and then during each wait.
#[derive(Clone)]
pub struct GiveUp(Rc<dyn Fn() -> bool>);

impl GiveUp {
    /// By this question.
    pub fn when(question: impl Fn() -> bool + 'static) -> Self {
        Self(Rc::new(question))
    }

    /// Whether it is.
    pub fn is_so(&self) -> bool {
        (self.0)()
    }

    /// Never: only timeouts end a wait.
    pub fn never() -> Self {
        Self::when(|| false)
    }
}

impl fmt::Debug for GiveUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GiveUp")
    }
}

/// A connection to an swtpm.
#[derive(Debug)]
pub struct Client {
    control: UnixStream,
    /// The worker's end of the data channel, of which the I/O process has a copy.
    data: UnixStream,
    capabilities: Capabilities,
    version: Version,
    timeout: Duration,
    give_up: GiveUp,
}

impl Client {
    /// Connects to an swtpm that listens there, and gives it a new data channel. What was under way on a
    /// former one ends first, and its response is lost. `timeout` is for this and for all that follows.
    pub fn connect(
        path: &Path,
        version: Version,
        timeout: Duration,
        give_up: GiveUp,
    ) -> Result<Self, Error> {
        let control = connect(path).map_err(socket("control"))?;
        let (data, peer) = UnixStream::pair().map_err(socket("data"))?;
        let mut client = Self {
            control,
            data,
            capabilities: Capabilities::default(),
            version,
            timeout,
            give_up,
        };

        match client.ask(Request::GetCapability, None)? {
            Reply::Capabilities(capabilities) => client.capabilities = capabilities,
            reply => return Err(Error::Garbage("control", format!("{reply:?}"))),
        }
        for (capability, request) in [
            (Capability::SetDataFd, Request::SetDataFd),
            (Capability::Init, Request::Init),
            (Capability::SetLocality, Request::SetLocality(0)),
            (Capability::StoreVolatile, Request::StoreVolatile),
        ] {
            if !client.capabilities.has(capability) {
                return Err(Error::Lacks(request.name()));
            }
        }
        client.set_data(peer.as_fd())?;
        Ok(client)
    }

    /// Gives it the data channel. It takes none while it has not seen that the former one was closed, and
    /// keeps the descriptor of one that it does not take: so it is then asked without one first.
    fn set_data(&mut self, peer: BorrowedFd<'_>) -> Result<(), Error> {
        const REQUEST: Request = Request::SetDataFd;
        let deadline = Instant::now() + self.timeout;

        match self.ask(REQUEST, Some(peer))? {
            Reply::Refused(HAS_ONE) => (),
            Reply::Refused(code) => return Err(Error::Refused(REQUEST.name(), code)),
            _ => return Ok(()),
        }
        while let Reply::Refused(HAS_ONE) = self.ask(REQUEST, None)? {
            if Instant::now() >= deadline || self.give_up.is_so() {
                return Err(Error::Refused(REQUEST.name(), HAS_ONE));
            }
            std::thread::sleep(DATA_PAUSE);
        }
        self.done(REQUEST, Some(peer))
    }

    /// Switches the TPM on. It is started by TPM_Startup, unless it `resumes` volatile state: then that was
    /// long ago. (`--flags startup-clear` would have it on before the buffer's size can be set.)
    pub fn start(&mut self, resumes: bool) -> Result<(), Error> {
        if self.capabilities.has(Capability::SetBufferSize) {
            self.done(Request::SetBufferSize(MAX_PACKET as u32), None)?;
        }
        self.done(Request::Init, None)?;
        match resumes {
            true => Ok(()),
            false => self.own("TPM startup", &self.version.startup()).map(drop),
        }
    }

    /// Closes the platform hierarchy until the next start: nobody knows its authorization.
    pub fn close_platform(&mut self) -> Result<(), Error> {
        let mut secret = [0; 32];
        getrandom(&mut secret).map_err(socket("random"))?;
        let mut done = Ok(());
        for mut packet in self.version.close_platform(&secret) {
            done = self
                .own("closing the platform hierarchy", &packet)
                .map(drop);
            packet.zeroize();
        }
        secret.zeroize();
        match (done, self.version) {
            // One whose physical presence is locked for good says so.
            (Err(Error::Command(..)), Version::Tpm12) => Ok(()),
            (done, _) => done,
        }
    }

    /// Sets the locality of the commands that follow: false if swtpm knows of no such one.
    pub fn set_locality(&mut self, locality: u8) -> Result<bool, Error> {
        match self.ask(Request::SetLocality(locality), None)? {
            Reply::Done => Ok(true),
            _ => Ok(false),
        }
    }

    /// Has it write its volatile state into the state directory.
    pub fn store_volatile(&mut self) -> Result<(), Error> {
        self.done(Request::StoreVolatile, None)
    }

    /// How long what follows may take.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// What ends the waits that follow before their timeouts.
    pub fn set_give_up(&mut self, give_up: GiveUp) {
        self.give_up = give_up;
    }

    /// Tells the TPM that it is about to be switched off.
    pub fn shut_down_tpm(&mut self) -> Result<(), Error> {
        match self.version.shutdown() {
            Some(packet) => self.own("TPM2_Shutdown", &packet).map(drop),
            None => Ok(()),
        }
    }

    /// Has the TPM forget the failed authorizations that locked it.
    pub fn clear_lockout(&mut self) -> Result<(), Error> {
        const NAME: &str = "TPM2_DictionaryAttackLockReset";
        match self.version.clear_lockout() {
            Some(packet) => self.own(NAME, &packet).map(drop),
            None => Err(Error::Lacks(NAME)),
        }
    }

    /// Asks the process to end.
    pub fn shut_down(&mut self) -> Result<(), Error> {
        self.done(Request::Shutdown, None)
    }

    /// Ends the connection, so that another can be made.
    pub fn close(&mut self) {
        // What is gone already is as good. The I/O process may have a copy of the data channel.
        let _ = self.data.shutdown(std::net::Shutdown::Both);
        let _ = self.control.shutdown(std::net::Shutdown::Both);
    }

    /// The data channel, for the I/O process.
    pub fn data(&self) -> BorrowedFd<'_> {
        self.data.as_fd()
    }

    /// Sends one of the worker's own commands and waits for the response. No guest's command is under way.
    pub fn command(&mut self, name: &'static str, packet: &[u8]) -> Result<Inbox, Error> {
        match send(&self.data, packet, SEND) {
            Ok(n) if n == packet.len() => self.receive(name),
            Ok(_) => Err(socket("data")(io::ErrorKind::WriteZero.into())),
            Err(e) => Err(socket("data")(e.into())),
        }
    }

    /// As [`command`](Self::command), where the response has to be a success.
    pub fn own(&mut self, name: &'static str, packet: &[u8]) -> Result<Inbox, Error> {
        let response = self.command(name, packet)?;
        match undo::code(response.packet()) {
            Some(0) => Ok(response),
            code => Err(Error::Command(name, code.unwrap_or(u32::MAX))),
        }
    }

    fn receive(&self, name: &'static str) -> Result<Inbox, Error> {
        let deadline = Instant::now() + self.timeout;
        let mut response = Inbox::new();
        loop {
            self.wait_until(&self.data, deadline, name)?;
            let whole = response.fill(&self.data);
            if whole.map_err(|e| Error::Garbage("data", e))? {
                return Ok(response);
            }
        }
    }

    fn done(&mut self, request: Request, fd: Option<BorrowedFd<'_>>) -> Result<(), Error> {
        match self.ask(request, fd)? {
            Reply::Refused(code) => Err(Error::Refused(request.name(), code)),
            _ => Ok(()),
        }
    }

    fn ask(&mut self, request: Request, fd: Option<BorrowedFd<'_>>) -> Result<Reply, Error> {
        let deadline = Instant::now() + self.timeout;
        self.send(&request.encode(), fd)?;
        let (mut bytes, mut len) = ([0; MAX_REPLY], 0);
        loop {
            if let Some((reply, end)) = request.decode(&bytes[..len]) {
                return match end == len {
                    true => Ok(reply),
                    false => Err(Error::Garbage("control", format!("{:02x?}", &bytes[..len]))),
                };
            }
            self.wait_until(&self.control, deadline, request.name())?;
            match recv(&self.control, &mut bytes[len..], RecvFlags::DONTWAIT) {
                Ok(0) | Err(Errno::CONNRESET) => return Err(Error::Closed("control")),
                Ok(n) => len += n,
                Err(Errno::AGAIN | Errno::INTR) => (),
                Err(e) => return Err(socket("control")(e.into())),
            }
        }
    }

    /// Waits until something is readable.
    fn wait_until(
        &self,
        fd: impl AsFd,
        deadline: Instant,
        name: &'static str,
    ) -> Result<(), Error> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let failed = |e| Error::Socket("poll", e);
            if wait_readable(&fd, left.min(ASK_EACH)).map_err(failed)? {
                return Ok(());
            }
            if left.is_zero() {
                return Err(Error::Slow(name, self.timeout.as_secs()));
            }
            if self.give_up.is_so() {
                return Err(Error::GivenUp(name));
            }
        }
    }

    fn send(&self, message: &[u8], fd: Option<BorrowedFd<'_>>) -> Result<(), Error> {
        let fds = fd.map(|fd| [fd]);
        let mut space = [0; rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if let Some(fds) = &fds {
            ancillary.push(SendAncillaryMessage::ScmRights(fds));
        }
        match sendmsg(
            &self.control,
            &[IoSlice::new(message)],
            &mut ancillary,
            SEND,
        ) {
            Ok(n) if n == message.len() => Ok(()),
            Ok(_) => Err(socket("control")(io::ErrorKind::WriteZero.into())),
            Err(e) => Err(socket("control")(e.into())),
        }
    }
}

/// Connects without waiting: an swtpm that accepts nobody is an error.
fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let control = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect_unix(&control, &SocketAddrUnix::new(path)?)?;
    Ok(control.into())
}

fn socket(name: &'static str) -> impl Fn(io::Error) -> Error {
    move |e| Error::Socket(name, e)
}

fn getrandom(bytes: &mut [u8]) -> io::Result<()> {
    let mut len = 0;
    while len < bytes.len() {
        len += rustix::rand::getrandom(&mut bytes[len..], rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(())
}

/// Waits until something is readable, for so long at most: whether it is.
pub fn wait_readable(fd: impl AsFd, timeout: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let ms = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], ms) {
            Ok(n) if n > 0 => return Ok(true),
            Ok(_) if deadline <= Instant::now() => return Ok(false),
            Ok(_) | Err(Errno::INTR) => (),
            Err(e) => return Err(e.into()),
        }
    }
}
