// SPDX-License-Identifier: GPL-2.0

//! worker.sock: the manager asks, a line of JSON each, and is told of events.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::events::Event;
use crate::files;

/// So many clients there may be; the oldest makes room.
const MAX_CLIENTS: usize = 4;

/// The longest request.
const MAX_REQUEST: usize = 1000;

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub(super) enum Request {
    /// What there is to know.
    Status,
    /// Close the vTPM, and end the TPM and the worker.
    Stop,
    /// Make the state durable, for a copy of it.
    Backup,
    /// Have the TPM forget the failed authorizations that locked it.
    ClearLockout,
    /// Pack the TPM, whose guest is suspended, for another host.
    Depart {
        /// Which migration.
        migration: String,
        /// The other host.
        peer: String,
    },
}

/// Where something is readable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Listener,
    Client(u32),
}

#[derive(Debug)]
struct Client {
    number: u32,
    stream: UnixStream,
    request: Vec<u8>,
}

/// The socket and its clients.
#[derive(Debug)]
pub(super) struct Server {
    listener: UnixListener,
    clients: Vec<Client>,
    last: u32,
    stop_asked_by: Vec<Source>,
}

impl Server {
    /// Listens. The caller has the vTPM's lock, so whoever listened there before is gone.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        files::remove(path)?;
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            clients: Vec::new(),
            last: 0,
            stop_asked_by: Vec::new(),
        })
    }

    /// What to wait for.
    pub(super) fn sources(&self) -> impl Iterator<Item = (Source, BorrowedFd<'_>)> {
        let listener = (Source::Listener, self.listener.as_fd());
        let clients = self.clients.iter();
        let clients = clients.map(|client| (Source::Client(client.number), client.stream.as_fd()));
        std::iter::once(listener).chain(clients)
    }

    /// Goes on where something got readable; returns a request that is whole.
    pub(super) fn on_ready(&mut self, source: Source) -> Option<(Source, Request)> {
        match source {
            Source::Listener => {
                let accepted = self.listener.accept();
                let accepted = accepted.and_then(|(stream, _)| {
                    stream.set_nonblocking(true)?;
                    Ok(stream)
                });
                match accepted {
                    Ok(stream) => self.add(stream),
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => (),
                    Err(e) => log::warn!("worker.sock: {e}"),
                }
                None
            }
            Source::Client(number) => {
                let place = self.clients.iter().position(|c| c.number == number)?;
                match self.clients[place].read() {
                    Ok(request) => request.map(|request| (source, request)),
                    Err(e) => {
                        log::debug!("client of worker.sock: {e}");
                        self.clients.remove(place);
                        None
                    }
                }
            }
        }
    }

    fn add(&mut self, stream: UnixStream) {
        if self.clients.len() >= MAX_CLIENTS {
            self.clients.remove(0);
        }
        self.last = self.last.wrapping_add(1);
        self.clients.push(Client {
            number: self.last,
            stream,
            request: Vec::new(),
        });
    }

    /// Responds to a request. A client that does not read is let go.
    pub(super) fn respond(&mut self, to: Source, response: &impl Serialize) {
        let Ok(line) = line(response) else {
            return;
        };
        self.clients.retain_mut(|client| {
            Source::Client(client.number) != to || client.stream.write_all(&line).is_ok()
        });
    }

    /// Tells all clients.
    pub(super) fn tell(&mut self, event: &Event) {
        let Ok(line) = line(event) else {
            return;
        };
        self.clients
            .retain_mut(|client| client.stream.write_all(&line).is_ok());
    }

    /// The client is told by [`stopped`](Self::stopped).
    pub(super) fn stop_asked_by(&mut self, client: Source) {
        self.stop_asked_by.push(client);
    }

    /// The vTPM is over.
    pub(super) fn stopped(&mut self) {
        for client in std::mem::take(&mut self.stop_asked_by) {
            self.respond(client, &serde_json::json!({}));
        }
    }
}

fn line(value: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}

impl Client {
    fn read(&mut self) -> io::Result<Option<Request>> {
        let mut bytes = [0; MAX_REQUEST];
        match self.stream.read(&mut bytes) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => self.request.extend_from_slice(&bytes[..n]),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(e) => return Err(e),
        }
        let Some(end) = self.request.iter().position(|byte| *byte == b'\n') else {
            return match self.request.len() {
                ..=MAX_REQUEST => Ok(None),
                _ => Err(io::ErrorKind::InvalidData.into()),
            };
        };
        let rest = self.request.split_off(end + 1);
        let request = std::mem::replace(&mut self.request, rest);
        Ok(Some(serde_json::from_slice(&request)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufRead;

    #[test]
    fn a_line_each_way() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("worker.sock");
        let mut server = Server::open(&path).unwrap();
        let mut client = UnixStream::connect(&path).unwrap();
        assert_eq!(server.on_ready(Source::Listener), None);

        client.write_all(b"{\"request\":\"sta").unwrap();
        assert_eq!(server.on_ready(Source::Client(1)), None);
        client.write_all(b"tus\"}\n").unwrap();
        let request = server.on_ready(Source::Client(1)).unwrap();
        assert_eq!(request, (Source::Client(1), Request::Status));
        server.respond(request.0, &serde_json::json!({"a": 1}));
        server.tell(&Event::Saved { uuid: "u".into() });
        let mut lines = io::BufReader::new(&client).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "{\"a\":1}");
        assert!(lines.next().unwrap().unwrap().contains("saved"));

        client.write_all(b"{\"request\":\"nonsense\"}\n").unwrap();
        assert_eq!(server.on_ready(Source::Client(1)), None);
        assert!(server.clients.is_empty());
    }

    #[test]
    fn clients_without_number_or_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("worker.sock");
        let mut server = Server::open(&path).unwrap();
        let mut clients = Vec::new();
        for _ in 0..10 {
            clients.push(UnixStream::connect(&path).unwrap());
            server.on_ready(Source::Listener);
        }
        assert_eq!(server.clients.len(), MAX_CLIENTS);
        clients[9].write_all(&[b'x'; 1001]).unwrap();
        server.on_ready(Source::Client(10));
        server.on_ready(Source::Client(10));
        assert_eq!(server.clients.len(), MAX_CLIENTS - 1);
    }
}
