// SPDX-License-Identifier: GPL-2.0

//! A swtpm behind its data socket: one packet in, one packet out.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use crate::Result;

/// Bytes of a packet's header.
const HEADER: usize = 10;

/// A connection to a TPM.
#[derive(Debug)]
pub(crate) struct Tpm(UnixStream);

impl Tpm {
    /// Connects to swtpm's data socket.
    pub(crate) fn open(path: &str) -> Result<Self> {
        let stream = UnixStream::connect(path).map_err(|e| format!("no swtpm at {path}: {e}"))?;
        Ok(Self(stream))
    }

    /// Has a command carried out, and waits for its answer.
    pub(crate) fn command(&mut self, request: &[u8]) -> Result<Vec<u8>> {
        self.0.write_all(request)?;
        let mut answer = vec![0; HEADER];
        self.0.read_exact(&mut answer)?;
        let length = u32::from_be_bytes(answer[2..6].try_into()?) as usize;
        if length < HEADER {
            return Err(format!("swtpm gave an answer of {length} bytes").into());
        }
        answer.resize(length, 0);
        self.0.read_exact(&mut answer[HEADER..])?;
        Ok(answer)
    }
}
