// SPDX-License-Identifier: GPL-2.0

//! What the command line asks a worker for, by the worker's socket: what only the one who has the TPM can do.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::control::Request;
use crate::record::RunDir;

/// How long the worker may take: a command of the guest ends first.
const TIMEOUT: Duration = Duration::from_secs(60);

/// More than a worker says at once.
const MAX_LINE: u64 = 64 << 10;

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The worker cannot be asked.
    #[error("asking the worker: {0}")]
    Io(#[from] io::Error),
    /// It could not do it.
    #[error("the worker says: {0}")]
    Refused(String),
}

/// Has a TPM that is in use forget the failed authorizations that locked it.
pub fn clear_lockout(run: &RunDir) -> Result<(), Error> {
    ask(run, &Request::ClearLockout)
}

/// Has the TPM of a guest that is suspended for a migration packed, as it is now. Returns the archive's file.
pub fn depart(run: &RunDir, migration: &str, peer: &str) -> Result<PathBuf, Error> {
    let request = Request::Depart {
        migration: migration.to_owned(),
        peer: peer.to_owned(),
    };
    ask(run, &request)?;
    Ok(run.departing())
}

fn ask(run: &RunDir, request: &Request) -> Result<(), Error> {
    let mut stream = UnixStream::connect(run.worker_socket())?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut request = serde_json::to_vec(request).map_err(io::Error::from)?;
    request.push(b'\n');
    stream.write_all(&request)?;

    let mut lines = BufReader::new(stream).take(MAX_LINE);
    loop {
        let mut line = String::new();
        if lines.read_line(&mut line)? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let response: Value = serde_json::from_str(&line).map_err(io::Error::from)?;
        match (response.get("event"), response.get("error")) {
            // What happens meanwhile is told to everybody.
            (Some(_), _) => (),
            (None, Some(error)) => return Err(Error::Refused(error.to_string())),
            (None, None) => return Ok(()),
        }
    }
}
