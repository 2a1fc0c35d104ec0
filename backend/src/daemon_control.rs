// SPDX-License-Identifier: GPL-2.0

//! The daemon's control socket: a line of JSON in, a line of JSON out, and the end. One client at a time,
//! which cannot keep the daemon waiting; and the client's side for the command line.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::watch::{Registrar, Watched};

/// The socket's name in the daemon's folder.
const SOCKET: &str = "control.sock";

/// The longest request.
const MAX_REQUEST: usize = 4096;

/// How long a client may take, for its request and for its answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long the daemon may take: its answer to a stop comes when everything has ended.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// What there is.
    Status,
    /// Close every vTPM, end its TPM and then the daemon.
    Stop,
}

/// What went wrong between a client and the daemon.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No daemon listens.
    #[error("no daemon answers on {}: is `xen-vtpmd run` running?", .0.display())]
    NoDaemon(PathBuf),
    /// Another daemon listens.
    #[error("a daemon is running already: it answers on {}", .0.display())]
    Running(PathBuf),
    /// The socket does not work.
    #[error("control socket {}: {source}", path.display())]
    Socket {
        /// Its path.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
}

impl Error {
    fn socket(path: &Path) -> impl Fn(io::Error) -> Self + '_ {
        |source| Self::Socket {
            path: path.to_owned(),
            source,
        }
    }
}

/// Sends a request to the daemon and returns its answer, a line of JSON.
pub fn ask(run_dir: &Path, request: Request) -> Result<String, Error> {
    let path = run_dir.join(SOCKET);
    let mut stream = match UnixStream::connect(&path) {
        Ok(stream) => stream,
        Err(e) => {
            return Err(match e.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Error::NoDaemon(path),
                _ => Error::socket(&path)(e),
            })
        }
    };
    let mut converse = || -> io::Result<String> {
        let mut answer = String::new();
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        stream.write_all(&line(&request)?)?;
        BufReader::new(&stream).read_line(&mut answer)?;
        match answer.pop() {
            Some('\n') => Ok(answer),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    };
    converse().map_err(Error::socket(&path))
}

/// Something as a line of JSON.
fn line(what: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(what)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// What the server is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It waits for a client.
    Listening,
    /// A client's request arrives.
    Reading,
    /// The daemon works on the request.
    Owing,
    /// The answer goes out.
    Writing,
}

/// The daemon's end.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    registrar: Registrar,
    code: u8,
    listener: UnixListener,
    client: Option<UnixStream>,
    phase: Phase,
    /// A copy of the descriptor that the event loop waits for in this phase.
    waiting: Option<Watched<OwnedFd>>,
    /// The request, as far as it has arrived; or what is left of the answer.
    bytes: Vec<u8>,
    deadline: Option<Instant>,
}

impl Server {
    /// Listens in the folder, which is made if need be. There must be no other daemon.
    pub fn open(run_dir: &Path, registrar: Registrar, code: u8) -> Result<Self, Error> {
        let path = run_dir.join(SOCKET);
        if UnixStream::connect(&path).is_ok() {
            return Err(Error::Running(path));
        }
        let listener = bind(run_dir, &path).map_err(Error::socket(&path))?;
        let mut server = Self {
            path,
            registrar,
            code,
            listener,
            client: None,
            phase: Phase::Listening,
            waiting: None,
            bytes: Vec::new(),
            deadline: None,
        };

        server.listen();
        Ok(server)
    }

    /// When [`on_deadline`](Self::on_deadline) wants to be called.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Lets a client go that has taken too long.
    pub fn on_deadline(&mut self, now: Instant) {
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.listen();
        }
    }

    /// Goes on after something got ready. A request is returned when it is whole, and is owed an
    /// [`answer`](Self::answer).
    pub fn on_ready(&mut self) -> Option<Request> {
        let done = match self.phase {
            Phase::Listening => self.accept().map(|()| None),
            Phase::Reading => self.read(),
            Phase::Owing => Ok(None),
            Phase::Writing => self.write().map(|()| None),
        };
        done.unwrap_or_else(|e| {
            log::debug!("control socket: {e}");
            self.listen();
            None
        })
    }

    /// Answers the last request, if one is owed an answer.
    pub fn answer(&mut self, answer: &impl Serialize) {
        if self.phase != Phase::Owing {
            return;
        }
        let sent = line(answer).and_then(|answer| {
            self.bytes = answer;
            self.deadline = Some(Instant::now() + PATIENCE);
            self.write()
        });
        if let Err(e) = sent {
            log::debug!("control socket: {e}");
            self.listen();
        }
    }

    /// Lets go of the client, if there is one, and waits for the next.
    fn listen(&mut self) {
        self.phase = Phase::Listening;
        self.client = None;
        self.deadline = None;
        self.bytes.clear();
        if let Err(e) = self.wait_for(Phase::Listening) {
            log::error!("control socket {}: {e}", self.path.display());
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        let (stream, _) = match self.listener.accept() {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            accepted => accepted?,
        };
        stream.set_nonblocking(true)?;
        self.client = Some(stream);
        self.deadline = Some(Instant::now() + PATIENCE);
        self.wait_for(Phase::Reading)
    }

    fn read(&mut self) -> io::Result<Option<Request>> {
        let mut bytes = [0; MAX_REQUEST];
        let room = &mut bytes[self.bytes.len()..];
        let Some(mut client) = self.client.as_ref() else {
            return Ok(None);
        };
        match client.read(room)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => self.bytes.extend_from_slice(&room[..n]),
        }
        match self.bytes.ends_with(b"\n") {
            true => (),
            false if self.bytes.len() < MAX_REQUEST => return Ok(None),
            false => return Err(io::ErrorKind::InvalidData.into()),
        }
        let request = serde_json::from_slice(&self.bytes);
        // As long as it takes: the daemon has limits of its own.
        self.deadline = None;
        self.wait_for(Phase::Owing)?;
        match request {
            Ok(request) => Ok(Some(request)),
            Err(e) => {
                self.answer(&serde_json::json!({ "error": e.to_string() }));
                Ok(None)
            }
        }
    }

    /// Sends what the socket takes; the rest follows when it takes more.
    fn write(&mut self) -> io::Result<()> {
        let Some(mut client) = self.client.as_ref() else {
            return Ok(());
        };
        match client.write(&self.bytes) {
            Ok(n) => drop(self.bytes.drain(..n)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => (),
            Err(e) => return Err(e),
        }
        if self.bytes.is_empty() {
            self.listen();
        } else if self.phase != Phase::Writing {
            self.wait_for(Phase::Writing)?;
        }
        Ok(())
    }

    /// Goes to a phase, and has the event loop wait for what brings it on.
    fn wait_for(&mut self, phase: Phase) -> io::Result<()> {
        let copy = |fd: BorrowedFd<'_>| fd.try_clone_to_owned();

        self.phase = phase;
        self.waiting = None;
        self.waiting = match (phase, &self.client) {
            (Phase::Listening, _) => {
                let fd = copy(self.listener.as_fd())?;
                Some(self.registrar.add(self.code, fd)?)
            }
            (Phase::Reading, Some(client)) => {
                Some(self.registrar.add(self.code, copy(client.as_fd())?)?)
            }
            (Phase::Writing, Some(client)) => {
                let fd = copy(client.as_fd())?;
                Some(self.registrar.add_writable(self.code, fd)?)
            }
            _ => None,
        };
        Ok(())
    }
}

/// A socket that only its owner can use, in a folder that others can pass through.
fn bind(run_dir: &Path, path: &Path) -> io::Result<UnixListener> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(run_dir)?;
    fs::set_permissions(run_dir, Permissions::from_mode(0o711))?;
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => (),
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;

    Ok(listener)
}

impl Drop for Server {
    fn drop(&mut self) {
        // The next daemon removes it if it is still there.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::Watcher;

    /// Lets the server work until it has a request or has had nothing to do for a while.
    fn turn(watcher: &Watcher, server: &mut Server) -> Option<Request> {
        while !watcher.wait(200).unwrap().is_empty() {
            if let Some(request) = server.on_ready() {
                return Some(request);
            }
        }
        None
    }

    fn open(watcher: &Watcher, folder: &Path) -> Server {
        Server::open(folder, watcher.registrar(0), 2).unwrap()
    }

    #[test]
    fn a_request_and_an_answer_of_any_size() {
        let (folder, watcher) = (tempfile::tempdir().unwrap(), Watcher::new().unwrap());
        let path = folder.path().join("run");
        let mut server = open(&watcher, &path);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&server.path)), (0o711, 0o600));

        for size in [1, 3_000_000] {
            let path = path.clone();
            let client = std::thread::spawn(move || ask(&path, Request::Status).unwrap());
            assert_eq!(turn(&watcher, &mut server), Some(Request::Status));
            server.answer(&"x".repeat(size));
            assert_eq!(turn(&watcher, &mut server), None);
            assert_eq!(client.join().unwrap().len(), size + 2);
        }
    }

    #[test]
    fn nonsense_and_silence_end_the_conversation() {
        let (folder, watcher) = (tempfile::tempdir().unwrap(), Watcher::new().unwrap());
        let mut server = open(&watcher, folder.path());
        let mut client = UnixStream::connect(&server.path).unwrap();
        let mut answer = String::new();

        client.write_all(b"{\"request\":\"fly\"}\n").unwrap();
        assert_eq!(turn(&watcher, &mut server), None);
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("{\"error\":"), "{answer}");

        client = UnixStream::connect(&server.path).unwrap();
        client.write_all(&[b'x'; MAX_REQUEST]).unwrap();
        assert_eq!(turn(&watcher, &mut server), None);
        assert_eq!(client.read(&mut [0]).unwrap(), 0);

        client = UnixStream::connect(&server.path).unwrap();
        assert_eq!(turn(&watcher, &mut server), None);
        let deadline = server.deadline().unwrap();
        server.on_deadline(deadline);
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
        assert_eq!(server.deadline(), None);
    }

    #[test]
    fn two_daemons_or_none() {
        let (folder, watcher) = (tempfile::tempdir().unwrap(), Watcher::new().unwrap());
        let answer = || ask(folder.path(), Request::Status);

        assert!(matches!(answer(), Err(Error::NoDaemon(_))));
        let server = open(&watcher, folder.path());
        assert!(matches!(
            Server::open(folder.path(), watcher.registrar(0), 2),
            Err(Error::Running(_))
        ));
        drop(server);
        assert!(matches!(answer(), Err(Error::NoDaemon(_))));
        // What a daemon leaves that was killed.
        drop(UnixListener::bind(folder.path().join(SOCKET)).unwrap());
        assert!(matches!(answer(), Err(Error::NoDaemon(_))));
        open(&watcher, folder.path());
    }
}
