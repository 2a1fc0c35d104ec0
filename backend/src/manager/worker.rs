// SPDX-License-Identifier: GPL-2.0

//! What the manager knows of a worker: its process, and the connection to its socket.

use super::*;

/// A worker's socket in its directory.
pub(super) const WORKER_SOCKET: &str = "worker.sock";

/// What the manager asks a worker for.
pub(super) const ASK_STATUS: &[u8] = b"{\"request\":\"status\"}\n";
pub(super) const ASK_STOP: &[u8] = b"{\"request\":\"stop\"}\n";

/// A line from a worker.
pub(super) enum Line {
    Event(Event),
    Status(Box<status::Vtpm>),
    /// A response to a stop, or something of a later version.
    Other,
}

impl Line {
    pub(super) fn parse(line: &[u8]) -> serde_json::Result<Self> {
        let value: serde_json::Value = serde_json::from_slice(line)?;
        Ok(match (value.get("event"), value.get("state")) {
            // An event that is not known here is one of a later version.
            (Some(_), _) => serde_json::from_value(value).map_or(Self::Other, Self::Event),
            (None, Some(_)) => Self::Status(serde_json::from_value(value)?),
            (None, None) => Self::Other,
        })
    }
}

/// The connection to a worker.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: UnixStream,
    /// What has arrived of a line.
    pub(super) input: Vec<u8>,
}

impl Connection {
    /// Connects without waiting. `None` if nobody listens.
    pub(super) fn open(run_dir: &Path, id: Id) -> io::Result<Option<Self>> {
        let path = worker_dir(run_dir, id).join(WORKER_SOCKET);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        match rustix::net::connect_unix(&socket, &SocketAddrUnix::new(&path)?) {
            Ok(()) => Ok(Some(Self {
                stream: socket.into(),
                input: Vec::new(),
            })),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::CONNREFUSED) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    pub(super) fn send(&self, line: &[u8]) -> io::Result<()> {
        match (&self.stream).write(line)? {
            n if n == line.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    /// Reads once. Returns the lines that are whole now; the error means that it is over.
    pub(super) fn receive(&mut self) -> (Vec<Vec<u8>>, io::Result<()>) {
        let mut bytes = [0; READ];
        let end = match (&self.stream).read(&mut bytes) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                self.input.extend_from_slice(&bytes[..n]);
                Ok(())
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(e) => Err(e),
        };
        let mut lines: Vec<Vec<u8>> = Vec::new();
        if let Some(last) = self.input.iter().rposition(|b| *b == b'\n') {
            let rest = self.input.split_off(last + 1);
            let whole = std::mem::replace(&mut self.input, rest);
            let split = whole[..last].split(|b| *b == b'\n');
            lines.extend(split.map(<[u8]>::to_vec));
        }
        match self.input.len() > MAX_LINE {
            true => (lines, Err(io::ErrorKind::InvalidData.into())),
            false => (lines, end),
        }
    }
}

/// A worker that this manager has started.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) child: Child,
    pub(super) pidfd: OwnedFd,
}

/// What the manager knows of a vTPM.
#[derive(Debug)]
pub(super) struct Worker {
    /// Whether xenstore has it, by the last look.
    pub(super) needed: bool,
    pub(super) process: Option<Process>,
    pub(super) connection: Option<Connection>,
    /// When it was started or found.
    pub(super) since: Instant,
    /// The pause before the next start, and that before the next attempt to connect.
    pub(super) pause: Duration,
    pub(super) connect_pause: Duration,
    /// When something is due: a start, or an attempt to connect.
    pub(super) due: Option<Instant>,
    /// Xenstore is to be looked at before the next start.
    pub(super) checking: bool,
    /// It was asked to hand over to the next one.
    pub(super) hands_over: bool,
    /// It was asked for its status and has not responded.
    pub(super) asked: bool,
    pub(super) status: Option<status::Vtpm>,
    /// How many successors there were.
    pub(super) restarts: u64,
    /// The last error that was logged about it, to log it once.
    pub(super) complaint: String,
}

impl Worker {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            needed: false,
            process: None,
            connection: None,
            since: now,
            pause: Duration::ZERO,
            connect_pause: CONNECT_PAUSE,
            due: None,
            checking: false,
            hands_over: false,
            asked: false,
            status: None,
            restarts: 0,
            complaint: String::new(),
        }
    }

    pub(super) fn is_alive(&self) -> bool {
        self.process.is_some() || self.connection.is_some()
    }

    /// The pause before a successor: none for one that lived long enough.
    pub(super) fn next_pause(&mut self, now: Instant) -> Duration {
        self.pause = match now - self.since < YOUNG {
            true => (self.pause * 2).clamp(FIRST_PAUSE, LAST_PAUSE),
            false => Duration::ZERO,
        };
        self.pause
    }
}
