// SPDX-License-Identifier: GPL-2.0

//! What the I/O process and its worker say to each other, a message each, over a socket pair that keeps
//! messages apart (SOCK_SEQPACKET).

use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::net::{recv, send, RecvFlags, SendFlags};

/// The longest text that a message carries.
const MAX_TEXT: usize = 1000;

/// What the I/O process wants to be done. The worker replies with [`Reply::Done`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Set swtpm's locality.
    Locality(u8),
    /// Make the state durable.
    Sync,
}

/// What the I/O process says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tell {
    /// The page is mapped and the process confined, except for what is named.
    Connected(String),
    /// Something is to be done.
    Ask(Ask),
    /// The TPM's last response says that it is in failure mode.
    FailureMode,
    /// The process ends, for this reason.
    Failed(String),
}

/// What the worker says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// What was asked for was done, or not.
    Done(bool),
    /// The process is to end when the guest has the response to its command.
    Quit,
    /// The guest is to be let go now, and the process to end when the TPM is through with its command.
    Leave,
}

impl Tell {
    fn encode(&self) -> Vec<u8> {
        let text = |kind: u8, text: &str| {
            let end = text.len().min(MAX_TEXT);
            [&[kind], &text.as_bytes()[..end]].concat()
        };
        match self {
            Self::Connected(lacks) => text(b'C', lacks),
            Self::Ask(Ask::Locality(locality)) => vec![b'L', *locality],
            Self::Ask(Ask::Sync) => vec![b'S'],
            Self::FailureMode => vec![b'F'],
            Self::Failed(reason) => text(b'E', reason),
        }
    }

    /// From a message, which a compromised process may have made.
    pub fn decode(message: &[u8]) -> Option<Self> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match message {
            [b'C', lacks @ ..] => Some(Self::Connected(text(lacks))),
            [b'L', locality] => Some(Self::Ask(Ask::Locality(*locality))),
            [b'S'] => Some(Self::Ask(Ask::Sync)),
            [b'F'] => Some(Self::FailureMode),
            [b'E', reason @ ..] => Some(Self::Failed(text(reason))),
            _ => None,
        }
    }
}

/// Sends a message to the worker.
pub fn tell(worker: impl AsFd, tell: &Tell) -> Result<(), Errno> {
    send(worker, &tell.encode(), SendFlags::NOSIGNAL).map(drop)
}

/// Waits for a message of the worker's; `None` if there is no worker any more.
pub fn reply(worker: impl AsFd) -> Result<Option<Reply>, Errno> {
    let mut message = [0; 2];
    loop {
        let n = match recv(&worker, &mut message, RecvFlags::empty()) {
            Err(Errno::INTR) => continue,
            Err(Errno::CONNRESET) => return Ok(None),
            n => n?,
        };
        return match message[..n.min(2)] {
            [] => Ok(None),
            [b'0'] => Ok(Some(Reply::Done(false))),
            [b'1'] => Ok(Some(Reply::Done(true))),
            [b'Q'] => Ok(Some(Reply::Quit)),
            [b'A'] => Ok(Some(Reply::Leave)),
            _ => Err(Errno::PROTO),
        };
    }
}

/// Sends a message to the I/O process, without waiting for one that does not read.
pub fn send_reply(io: impl AsFd, reply: Reply) -> Result<(), Errno> {
    let byte = match reply {
        Reply::Done(false) => b'0',
        Reply::Done(true) => b'1',
        Reply::Quit => b'Q',
        Reply::Leave => b'A',
    };
    send(io, &[byte], SendFlags::NOSIGNAL | SendFlags::DONTWAIT).map(drop)
}

/// A message of the I/O process's that is there: `Err(AGAIN)` if there is none, `None` if there is no
/// process any more or it says what makes no sense.
pub fn next(io: impl AsFd) -> Result<Option<Tell>, Errno> {
    let mut message = [0; MAX_TEXT + 1];
    match recv(&io, &mut message, RecvFlags::DONTWAIT) {
        Err(Errno::CONNRESET) => Ok(None),
        n => Ok(Tell::decode(&message[..n?.min(MAX_TEXT + 1)])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{socketpair, AddressFamily, SocketFlags, SocketType};

    #[test]
    fn messages_arrive_as_they_were_sent() {
        let (io, worker) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let all = [
            Tell::Connected(String::new()),
            Tell::Ask(Ask::Locality(4)),
            Tell::Ask(Ask::Sync),
            Tell::FailureMode,
            Tell::Failed("é".repeat(MAX_TEXT)),
        ];
        for message in &all {
            tell(&io, message).unwrap();
        }
        for message in &all[..4] {
            assert_eq!(next(&worker).unwrap().as_ref(), Some(message));
        }
        assert!(matches!(next(&worker).unwrap(), Some(Tell::Failed(text)) if text.len() >= 1000));
        assert_eq!(next(&worker), Err(Errno::AGAIN));
        for message in [
            Reply::Done(false),
            Reply::Done(true),
            Reply::Quit,
            Reply::Leave,
        ] {
            send_reply(&worker, message).unwrap();
            assert_eq!(reply(&io), Ok(Some(message)));
        }
        drop(worker);
        assert_eq!(reply(&io), Ok(None));
    }

    #[test]
    fn nonsense_is_no_message() {
        for bytes in [&b""[..], b"L", b"L12", b"S1", b"x", b"F0"] {
            assert_eq!(Tell::decode(bytes), None, "{bytes:?}");
        }
    }
}
