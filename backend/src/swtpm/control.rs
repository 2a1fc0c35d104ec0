// SPDX-License-Identifier: GPL-2.0

//! swtpm's control channel: its messages, big endian, as swtpm_ioctls(3) has them. One request at a
//! time; a reply has no type of its own and is told by the request that it belongs to.

/// What swtpm says it can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities(u64);

/// One bit of [`Capabilities`], where the daemon has a use for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Capability {
    /// [`Request::Init`].
    Init = 1 << 0,
    /// [`Request::Shutdown`].
    Shutdown = 1 << 1,
    /// [`Request::SetLocality`].
    SetLocality = 1 << 3,
    /// [`Request::StoreVolatile`].
    StoreVolatile = 1 << 6,
    /// [`Request::SetDataFd`].
    SetDataFd = 1 << 12,
    /// [`Request::SetBufferSize`].
    SetBufferSize = 1 << 13,
}

impl Capabilities {
    /// Whether swtpm has the capability.
    pub fn has(self, capability: Capability) -> bool {
        self.0 & capability as u64 != 0
    }
}

/// What can be asked of swtpm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Which of the others there are.
    GetCapability,
    /// The longest packet that the TPM is to take or give. Only while the TPM is off.
    SetBufferSize(u32),
    /// The socket that goes with the request as ancillary data is the one for TPM packets.
    SetDataFd,
    /// Switch the TPM on.
    Init,
    /// Write PCRs, sessions and what else goes with the power to the state folder.
    StoreVolatile,
    /// The locality of the packets that follow.
    SetLocality(u8),
    /// Switch the TPM off and end the process.
    Shutdown,
}

/// What came of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The answer to [`Request::GetCapability`].
    Capabilities(Capabilities),
    /// The size that [`Request::SetBufferSize`] arrived at.
    BufferSize(u32),
    /// The request was carried out.
    Done,
    /// The request was refused, with a TPM 1.2 return code whatever the TPM's version.
    Refused(u32),
}

impl Request {
    /// The name that swtpm_ioctls(3) has for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::GetCapability => "CMD_GET_CAPABILITY",
            Self::SetBufferSize(_) => "CMD_SET_BUFFERSIZE",
            Self::SetDataFd => "CMD_SET_DATAFD",
            Self::Init => "CMD_INIT",
            Self::StoreVolatile => "CMD_STORE_VOLATILE",
            Self::SetLocality(_) => "CMD_SET_LOCALITY",
            Self::Shutdown => "CMD_SHUTDOWN",
        }
    }

    /// The message.
    pub fn encode(self) -> Vec<u8> {
        let (command, body): (u32, Option<u32>) = match self {
            Self::GetCapability => (1, None),
            // No flag. The only one has volatile state deleted *after* it was taken up (0.7.1), and then
            // a daemon that dies now would find none.
            Self::Init => (2, Some(0)),
            Self::Shutdown => (3, None),
            // A byte and three of padding.
            Self::SetLocality(locality) => (5, Some(u32::from(locality) << 24)),
            Self::StoreVolatile => (10, None),
            Self::SetDataFd => (16, None),
            Self::SetBufferSize(size) => (17, Some(size)),
        };

        [Some(command), body]
            .into_iter()
            .flatten()
            .flat_map(u32::to_be_bytes)
            .collect()
    }

    /// The reply, from what has arrived since the request was sent; `None` if it is not whole yet.
    /// The number is how many bytes it took.
    pub fn decode(self, bytes: &[u8]) -> Option<(Reply, usize)> {
        let word = |i: usize| -> Option<u32> {
            let bytes = bytes.get(4 * i..4 * (i + 1))?;
            Some(u32::from_be_bytes(bytes.try_into().ok()?))
        };
        let first = word(0)?;

        Some(match self {
            Self::GetCapability => {
                let bits = (u64::from(first) << 32) | u64::from(word(1)?);
                (Reply::Capabilities(Capabilities(bits)), 8)
            }
            _ if first != 0 => (Reply::Refused(first), 4),
            Self::SetBufferSize(_) => {
                // Then the least and the greatest size.
                word(3)?;
                (Reply::BufferSize(word(1)?), 16)
            }
            _ => (Reply::Done, 4),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The requests whose reply is a return code and nothing else.
    const PLAIN: [Request; 5] = [
        Request::SetDataFd,
        Request::StoreVolatile,
        Request::Init,
        Request::SetLocality(3),
        Request::Shutdown,
    ];

    #[test]
    fn requests_on_the_wire() {
        assert_eq!(Request::GetCapability.encode(), [0, 0, 0, 1]);
        assert_eq!(Request::Init.encode(), [0, 0, 0, 2, 0, 0, 0, 0]);
        assert_eq!(Request::StoreVolatile.encode(), [0, 0, 0, 10]);
        assert_eq!(Request::Shutdown.encode(), [0, 0, 0, 3]);
        assert_eq!(Request::SetLocality(4).encode(), [0, 0, 0, 5, 4, 0, 0, 0]);
        assert_eq!(Request::SetDataFd.encode(), [0, 0, 0, 16]);
        assert_eq!(
            Request::SetBufferSize(4088).encode(),
            [0, 0, 0, 17, 0, 0, 0x0f, 0xf8]
        );
    }

    #[test]
    fn capabilities_of_swtpm_0_7_1() {
        let bytes = [0, 0, 0, 0, 0, 0, 0x7f, 0xff];
        let Some((Reply::Capabilities(caps), 8)) = Request::GetCapability.decode(&bytes) else {
            panic!("not taken for capabilities");
        };

        assert!(caps.has(Capability::SetBufferSize) && caps.has(Capability::Init));
        assert!(!Capabilities::default().has(Capability::Init));
        for n in 0..8 {
            assert_eq!(Request::GetCapability.decode(&bytes[..n]), None);
        }
    }

    #[test]
    fn plain_replies() {
        for request in PLAIN {
            assert_eq!(request.decode(&[0, 0, 0, 0]), Some((Reply::Done, 4)));
            assert_eq!(
                request.decode(&[0, 0, 0, 0x3d]),
                Some((Reply::Refused(0x3d), 4))
            );
            assert_eq!(request.decode(&[0, 0, 0]), None);
            assert_eq!(request.decode(&[]), None);
        }
    }

    #[test]
    fn a_refused_buffer_size_is_shorter_than_a_taken_one() {
        let request = Request::SetBufferSize(4088);
        let taken = [0, 0, 0, 0, 0, 0, 0x0f, 0xf8, 0, 0, 0x0c, 0, 0, 0, 0x10, 0];

        assert_eq!(request.decode(&taken), Some((Reply::BufferSize(4088), 16)));
        for n in 0..16 {
            assert_eq!(request.decode(&taken[..n]), None);
        }
        assert_eq!(
            request.decode(&[0, 0, 0, 10]),
            Some((Reply::Refused(10), 4))
        );
    }
}
