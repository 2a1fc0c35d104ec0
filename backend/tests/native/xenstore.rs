// SPDX-License-Identifier: GPL-2.0

//! A client of xenstored, over its socket: what the toolstack and the guest write, and what they
//! see. The daemon under test has libxenstore; this is not it.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Mutex;

/// Message types of xen/io/xs_wire.h.
const DIRECTORY: u32 = 1;
const READ: u32 = 2;
const TRANSACTION_START: u32 = 6;
const TRANSACTION_END: u32 = 7;
const INTRODUCE: u32 = 8;
const RELEASE: u32 = 9;
const WRITE: u32 = 11;
const RM: u32 = 13;
const ERROR: u32 = 16;

/// A connection.
pub(crate) struct Xenstore(Mutex<UnixStream>);

/// A change that happens as a whole.
pub(crate) struct Transaction<'a> {
    store: &'a Xenstore,
    id: u32,
}

impl Xenstore {
    pub(crate) fn connect(rundir: &Path) -> io::Result<Self> {
        UnixStream::connect(rundir.join("socket")).map(|stream| Self(Mutex::new(stream)))
    }

    fn call(&self, kind: u32, transaction: u32, payload: &[u8]) -> Result<Vec<u8>, String> {
        let mut stream = self.0.lock().unwrap();
        let length = u32::try_from(payload.len()).unwrap();
        let mut message = Vec::new();
        for field in [kind, 0, transaction, length] {
            message.extend_from_slice(&field.to_ne_bytes());
        }
        message.extend_from_slice(payload);
        stream.write_all(&message).unwrap();

        let mut header = [0; 16];
        stream.read_exact(&mut header).unwrap();
        let field = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
        let mut reply = vec![0; field(12) as usize];
        stream.read_exact(&mut reply).unwrap();
        match field(0) {
            ERROR => Err(String::from_utf8_lossy(&reply)
                .trim_end_matches('\0')
                .to_owned()),
            _ => Ok(reply),
        }
    }

    fn text(&self, kind: u32, transaction: u32, path: &str) -> Option<String> {
        match self.call(kind, transaction, format!("{path}\0").as_bytes()) {
            Ok(value) => Some(String::from_utf8_lossy(&value).into_owned()),
            Err(e) if e == "ENOENT" => None,
            Err(e) => panic!("{path}: {e}"),
        }
    }

    /// The value of a node, if it is there.
    pub(crate) fn read(&self, path: &str) -> Option<String> {
        self.text(READ, 0, path)
    }

    /// The names below a node.
    pub(crate) fn list(&self, path: &str) -> Vec<String> {
        let names = self.text(DIRECTORY, 0, path).unwrap_or_default();
        names.split_terminator('\0').map(str::to_owned).collect()
    }

    /// Writes a node.
    pub(crate) fn write(&self, path: &str, value: impl AsRef<[u8]>) {
        self.try_write(0, path, value.as_ref()).unwrap();
    }

    fn try_write(&self, transaction: u32, path: &str, value: &[u8]) -> Result<(), String> {
        let mut payload = format!("{path}\0").into_bytes();
        payload.extend_from_slice(value);
        self.call(WRITE, transaction, &payload).map(drop)
    }

    /// Removes a node and what is below it.
    pub(crate) fn remove(&self, path: &str) {
        self.text(RM, 0, path);
    }

    /// Does it in one transaction, again if others interfere.
    pub(crate) fn transaction(&self, act: impl Fn(&Transaction<'_>)) {
        loop {
            let id = self.text(TRANSACTION_START, 0, "").unwrap();
            let id = id.trim_end_matches('\0').parse().unwrap();
            act(&Transaction { store: self, id });
            match self.call(TRANSACTION_END, id, b"T\0") {
                Err(e) if e == "EAGAIN" => continue,
                other => return drop(other.unwrap()),
            }
        }
    }

    /// Tells xenstored of a domain, whose ring is its grant 1, and its port `port`.
    pub(crate) fn introduce(&self, domid: u16, port: u32) {
        let payload = format!("{domid}\0{}\0{port}\0", 0);
        self.call(INTRODUCE, 0, payload.as_bytes()).unwrap();
    }

    /// Tells xenstored that a domain is no more.
    pub(crate) fn release(&self, domid: u16) {
        let _ = self.call(RELEASE, 0, format!("{domid}\0").as_bytes());
    }
}

impl Transaction<'_> {
    pub(crate) fn read(&self, path: &str) -> Option<String> {
        self.store.text(READ, self.id, path)
    }

    pub(crate) fn write(&self, path: &str, value: impl AsRef<[u8]>) {
        self.store.try_write(self.id, path, value.as_ref()).unwrap();
    }

    pub(crate) fn remove(&self, path: &str) {
        self.store.text(RM, self.id, path);
    }
}
