// SPDX-License-Identifier: GPL-2.0

//! Orders to the backend that runs: a line each way through a socket.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use crate::Result;

/// Where it listens.
const SOCKET: &str = "/run/xen-hostile-backend";

/// How long whoever gives an order may take to say it.
const PATIENCE: Duration = Duration::from_secs(2);

/// The end that listens.
#[derive(Debug)]
pub(crate) struct Ears(UnixListener);

impl Ears {
    /// Starts to listen, in the place of a former one.
    pub(crate) fn open() -> Result<Self> {
        match fs::remove_file(SOCKET) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                return Err(format!("{SOCKET}: {e}").into())
            }
            _ => {}
        }
        let listener = UnixListener::bind(SOCKET)?;
        listener.set_nonblocking(true)?;
        Ok(Self(listener))
    }

    /// The next order, if there is one, and whom to answer.
    pub(crate) fn order(&self) -> Result<Option<(String, UnixStream)>> {
        let stream = match self.0.accept() {
            Ok((stream, _)) => stream,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line)?;
        Ok(Some((line.trim().to_owned(), stream)))
    }
}

impl AsFd for Ears {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Gives an order, and prints the answer. Fails when the answer says so.
pub(crate) fn tell(order: &str) -> Result<()> {
    let mut stream = UnixStream::connect(SOCKET).map_err(|e| format!("{SOCKET}: {e}"))?;
    stream.write_all(format!("{order}\n").as_bytes())?;
    let mut answer = String::new();
    BufReader::new(&stream).read_line(&mut answer)?;
    match answer.trim().strip_prefix("error: ") {
        None if answer.is_empty() => Err("no answer".into()),
        None => {
            print!("{answer}");
            Ok(())
        }
        Some(why) => Err(why.into()),
    }
}
