// SPDX-License-Identifier: GPL-2.0

//! The manager's control socket: a request of one line of JSON, a response of one line, and the end. Any
//! number of clients may come; none of them, slow, silent or many, holds up the manager or each other.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{chown, DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::sockopt::get_socket_peercred;
use serde::{Deserialize, Serialize};

use crate::event_loop::{EventLoop, Token};
use crate::files;

/// The socket's name in the run directory.
const SOCKET: &str = "control.sock";

/// The longest request.
const MAX_REQUEST: usize = 4096;

/// How many clients there may be, and how many of one user.
const MAX_CLIENTS: usize = 64;
const MAX_CLIENTS_OF_USER: usize = 16;

/// How long a client may take for its request, and then for each part of the response that it takes.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(2);

/// The pause when no descriptor is left to accept with.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// How long the command line waits for a response: that to a stop comes when everything has ended.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(40);

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// What there is. For everybody who may use the socket; the others are for the manager's user.
    Status,
    /// Close every vTPM, end its TPM and then the manager.
    Stop,
}

/// What went wrong between a client and the manager.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No manager listens.
    #[error("no manager answers on {}: is `xen-vtpmd run` running?", .0.display())]
    NoManager(PathBuf),
    /// The socket does not work.
    #[error("control socket {}: {source}", path.display())]
    Socket {
        /// Its path.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// The manager turned the request down.
    #[error("{0}")]
    Refused(String),
}

impl Error {
    fn socket(path: &Path) -> impl Fn(io::Error) -> Self + '_ {
        |source| Self::Socket {
            path: path.to_owned(),
            source,
        }
    }
}

/// Sends a request to the manager and returns its response, a line of JSON.
pub fn ask(run_dir: &Path, request: Request) -> Result<String, Error> {
    let path = run_dir.join(SOCKET);
    let stream = match UnixStream::connect(&path) {
        Ok(stream) => stream,
        Err(e) => {
            return Err(match e.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    Error::NoManager(path)
                }
                _ => Error::socket(&path)(e),
            })
        }
    };
    let response = converse(stream, &request, RESPONSE_TIMEOUT).map_err(Error::socket(&path))?;
    let refused = serde_json::from_str(&response).ok();
    match refused
        .as_ref()
        .and_then(|r: &serde_json::Value| r.get("error"))
    {
        Some(error) => Err(Error::Refused(
            error.as_str().unwrap_or("refused").to_owned(),
        )),
        None => Ok(response),
    }
}

/// Sends a line of JSON and returns the one that comes back, with a limit for each wait.
pub fn converse(
    mut stream: UnixStream,
    request: &impl Serialize,
    timeout: Duration,
) -> io::Result<String> {
    let mut response = String::new();

    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    stream.write_all(&line(request)?)?;
    BufReader::new(&stream).read_line(&mut response)?;
    match response.pop() {
        Some('\n') => Ok(response),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Something as a line of JSON.
pub fn line(what: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(what)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// How far a client has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Its request arrives.
    Reading,
    /// The manager works on it.
    Owed,
    /// The response goes out.
    Writing,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    uid: u32,
    phase: Phase,
    /// The request, as far as it has arrived; or what is left of the response.
    bytes: Vec<u8>,
    deadline: Option<Instant>,
}

/// The manager's end.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    /// The user who may ask for everything, besides root.
    owner: u32,
    clients: BTreeMap<u32, Client>,
    last: u32,
    /// Until when nobody is accepted.
    paused: Option<Instant>,
    listening: bool,
}

impl Server {
    /// Listens in the run directory. Members of `group` may ask for the status. The caller has the manager's
    /// lock: nobody else listens there.
    pub fn open(run_dir: &Path, group: Option<u32>, events: &EventLoop) -> Result<Self, Error> {
        let path = run_dir.join(SOCKET);
        let listener = bind(&path, group).map_err(Error::socket(&path))?;
        let added = events.add(Token::Listener, &listener);
        added.map_err(Error::socket(&path))?;
        Ok(Self {
            listener,
            owner: rustix::process::geteuid().as_raw(),
            clients: BTreeMap::new(),
            last: 0,
            paused: None,
            listening: true,
        })
    }

    /// Listens anew, for another group. The clients stay.
    pub fn rebind(
        &mut self,
        run_dir: &Path,
        group: Option<u32>,
        events: &EventLoop,
    ) -> Result<(), Error> {
        let path = run_dir.join(SOCKET);
        let listener = bind(&path, group).map_err(Error::socket(&path))?;
        let added = events.add(Token::Listener, &listener);
        added.map_err(Error::socket(&path))?;
        events.remove(&self.listener);
        self.listener = listener;
        self.listening = true;
        self.listen(events);
        Ok(())
    }

    /// When [`on_deadline`](Self::on_deadline) wants to be called.
    pub fn deadline(&self) -> Option<Instant> {
        let clients = self.clients.values().filter_map(|client| client.deadline);
        clients.chain(self.paused).min()
    }

    /// Lets those clients go that have taken too long, and goes on after a pause.
    pub fn on_deadline(&mut self, events: &EventLoop, now: Instant) {
        let late = |client: &Client| client.deadline.is_some_and(|deadline| deadline <= now);
        let late: Vec<u32> = self
            .clients
            .iter()
            .filter(|(_, client)| late(client))
            .map(|(number, _)| *number)
            .collect();
        for number in late {
            self.drop_client(events, number);
        }
        self.paused = self.paused.filter(|until| *until > now);
        self.listen(events);
    }

    /// Accepts one client.
    pub fn on_listener(&mut self, events: &EventLoop) {
        match self.accept(events) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => (),
            Err(e) => {
                // Without descriptors there is no accepting, and no end of being asked to.
                log::warn!("control socket: {e}; trying again in a second");
                self.paused = Some(Instant::now() + ACCEPT_PAUSE);
            }
            Ok(()) => (),
        }
        self.listen(events);
    }

    fn accept(&mut self, events: &EventLoop) -> io::Result<()> {
        let (stream, _) = self.listener.accept()?;
        let uid = get_socket_peercred(&stream)?.uid.as_raw();
        let of_user = self.clients.values().filter(|client| client.uid == uid);
        if of_user.count() >= MAX_CLIENTS_OF_USER {
            return Ok(());
        }
        stream.set_nonblocking(true)?;
        self.last = self.last.wrapping_add(1);
        events.add(Token::Client(self.last), &stream)?;
        let client = Client {
            stream,
            uid,
            phase: Phase::Reading,
            bytes: Vec::new(),
            deadline: Some(Instant::now() + CLIENT_TIMEOUT),
        };
        self.clients.insert(self.last, client);
        Ok(())
    }

    /// Listens, or does not while there is no room.
    fn listen(&mut self, events: &EventLoop) {
        let wanted = self.paused.is_none() && self.clients.len() < MAX_CLIENTS;
        if wanted != self.listening {
            let changed = events.change(Token::Listener, &self.listener, wanted, false);
            match changed {
                Ok(()) => self.listening = wanted,
                Err(e) => log::error!("control socket: {e}"),
            }
        }
    }

    /// Goes on with a client that got ready. A request is returned when it is whole, and is owed a
    /// [`respond`](Self::respond).
    pub fn on_client(&mut self, events: &EventLoop, number: u32) -> Option<Request> {
        let client = self.clients.get_mut(&number)?;
        let done = match client.phase {
            Phase::Reading => client.read(),
            // Something came that nobody asked for, or the client is gone.
            Phase::Owed => Err(io::ErrorKind::ConnectionAborted.into()),
            Phase::Writing => client.write().map(|()| None),
        };
        let privileged = client.uid == 0 || client.uid == self.owner;
        match done {
            Ok(Some(Err(e))) => {
                self.respond(events, number, &Refusal { error: e });
                None
            }
            Ok(Some(Ok(request))) if request != Request::Status && !privileged => {
                let error = "only root may ask for this".to_owned();
                self.respond(events, number, &Refusal { error });
                None
            }
            Ok(Some(Ok(request))) => Some(request),
            Ok(None) if client.phase == Phase::Writing && client.bytes.is_empty() => {
                self.drop_client(events, number);
                None
            }
            Ok(None) => None,
            Err(e) => {
                log::debug!("client of the control socket: {e}");
                self.drop_client(events, number);
                None
            }
        }
    }

    /// Responds to a client that is owed it. It may be gone.
    pub fn respond(&mut self, events: &EventLoop, number: u32, response: &impl Serialize) {
        let owed = |client: &&mut Client| client.phase == Phase::Owed;
        let Some(client) = self.clients.get_mut(&number).filter(owed) else {
            return;
        };
        let sent = line(response).and_then(|bytes| {
            client.phase = Phase::Writing;
            client.bytes = bytes;
            client.write()?;
            events.change(Token::Client(number), &client.stream, false, true)
        });
        match sent {
            Ok(()) if !client.bytes.is_empty() => (),
            _ => self.drop_client(events, number),
        }
    }

    fn drop_client(&mut self, events: &EventLoop, number: u32) {
        if let Some(client) = self.clients.remove(&number) {
            events.remove(&client.stream);
        }
        self.listen(events);
    }

    /// Waits a little for what the last responses still have to send: the manager's last act.
    pub fn finish(mut self) {
        for client in self.clients.values_mut() {
            if client.phase == Phase::Writing && client.stream.set_nonblocking(false).is_ok() {
                let _ = client.stream.set_write_timeout(Some(CLIENT_TIMEOUT));
                let _ = client.stream.write_all(&client.bytes);
            }
        }
    }
}

/// Why there is no response.
#[derive(Debug, Serialize)]
struct Refusal {
    error: String,
}

impl Client {
    /// `None` until the request is whole; then the request, or what is wrong with it.
    fn read(&mut self) -> io::Result<Option<Result<Request, String>>> {
        let mut bytes = [0; MAX_REQUEST];
        let room = &mut bytes[self.bytes.len()..];
        match (&self.stream).read(room) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => self.bytes.extend_from_slice(&room[..n]),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(e) => return Err(e),
        }
        match self.bytes.ends_with(b"\n") {
            true => (),
            false if self.bytes.len() < MAX_REQUEST => return Ok(None),
            false => return Err(io::ErrorKind::InvalidData.into()),
        }
        let request = serde_json::from_slice(&self.bytes);
        self.bytes.clear();
        self.phase = Phase::Owed;
        // As long as it takes: the manager has deadlines of its own.
        self.deadline = None;
        Ok(Some(request.map_err(|e| e.to_string())))
    }

    /// Sends what the socket takes; the rest follows when it takes more.
    fn write(&mut self) -> io::Result<()> {
        match (&self.stream).write(&self.bytes) {
            Ok(n) => {
                self.bytes.drain(..n);
                self.deadline = Some(Instant::now() + CLIENT_TIMEOUT);
                Ok(())
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(e) => Err(e),
        }
    }
}

/// A socket that its owner can use, and a group to read the status.
fn bind(path: &Path, group: Option<u32>) -> io::Result<UnixListener> {
    files::remove(path)?;
    let listener = UnixListener::bind(path)?;
    let mode = match group {
        Some(gid) => {
            chown(path, None, Some(gid))?;
            0o660
        }
        None => 0o600,
    };
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    listener.set_nonblocking(true)?;

    Ok(listener)
}

/// Makes a directory that others can pass through, or nobody else can.
pub fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(mode).create(path)?;
    fs::set_permissions(path, Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests;
