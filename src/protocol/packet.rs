// SPDX-License-Identifier: GPL-2.0

//! TPM packets as far as the wire cares: the ten-byte header that TPM 1.2 and 2.0 share (tag,
//! length, ordinal or return code, all big endian), and which packets are fit to be sent or
//! accepted.

use super::{
    be::be32,
    layout::MAX_PACKET, //
};

/// Bytes of a packet's header: `u16` tag, `u32` length of the whole packet, `u32` ordinal (TPM
/// 2.0: command code) or return code.
pub const HEADER_SIZE: usize = 10;

/// Why a request is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadRequest {
    /// Shorter than a header.
    TooShort,
    /// Longer than [`MAX_PACKET`]. Xen's vTPM ends its service on such a one.
    TooLong,
}

/// Why a response is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadResponse {
    /// The page's `length` is under a header's, over the page's room or over the reader's buffer.
    Length(u32),
    /// The packet's own length is not the page's.
    Header {
        /// What the page's `length` said.
        page: u32,
        /// What the packet's header says.
        packet: u32,
    },
}

/// The length that a packet's header claims, `None` when there is no whole header.
pub fn claimed_length(packet: &[u8]) -> Option<u32> {
    be32(packet.get(..HEADER_SIZE)?, 2)
}

/// A request that fits the page.
///
/// # Invariants
///
/// The packet is [`HEADER_SIZE`] to [`MAX_PACKET`] bytes long.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a>(&'a [u8]);

impl<'a> Request<'a> {
    /// Takes a packet for sending.
    pub fn new(packet: &'a [u8]) -> Result<Self, BadRequest> {
        if packet.len() < HEADER_SIZE {
            return Err(BadRequest::TooShort);
        }
        if packet.len() > MAX_PACKET {
            return Err(BadRequest::TooLong);
        }
        // INVARIANT: Both bounds were just checked.
        Ok(Self(packet))
    }

    /// The packet.
    pub fn bytes(&self) -> &'a [u8] {
        self.0
    }

    /// The packet's length in bytes, as the page's `length` wants it.
    pub fn wire_length(&self) -> u32 {
        // CAST: At most `MAX_PACKET` by the type invariant.
        self.0.len() as u32
    }

    /// The ordinal (TPM 2.0: command code).
    pub fn ordinal(&self) -> u32 {
        // A header is there by the type invariant.
        be32(self.0, 6).unwrap_or(0)
    }
}

/// Checks a response's length, as the page gave it, against the page's room and the reader's
/// buffer.
pub fn check_response_length(length: u32, room: usize) -> Result<usize, BadResponse> {
    match usize::try_from(length) {
        Ok(n) if (HEADER_SIZE..=MAX_PACKET).contains(&n) && n <= room => Ok(n),
        _ => Err(BadResponse::Length(length)),
    }
}

/// Checks a copied response's own length against the one that the page gave.
pub fn check_response(response: &[u8]) -> Result<(), BadResponse> {
    // CAST: Responses are at most `MAX_PACKET` long.
    let page = response.len() as u32;

    match claimed_length(response) {
        Some(packet) if packet == page => Ok(()),
        Some(packet) => Err(BadResponse::Header { page, packet }),
        None => Err(BadResponse::Length(page)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// TPM 2.0 GetRandom of 8 bytes.
    const GET_RANDOM: [u8; 12] = [0x80, 0x01, 0, 0, 0, 12, 0, 0, 0x01, 0x7b, 0, 8];

    #[test]
    fn request_lengths() {
        let big = [0u8; MAX_PACKET + 1];

        assert_eq!(Request::new(&[]).unwrap_err(), BadRequest::TooShort);
        assert_eq!(Request::new(&big[..9]).unwrap_err(), BadRequest::TooShort);
        assert_eq!(Request::new(&big[..10]).unwrap().wire_length(), 10);
        assert_eq!(Request::new(&big[..4088]).unwrap().wire_length(), 4088);
        assert_eq!(Request::new(&big).unwrap_err(), BadRequest::TooLong);
    }

    #[test]
    fn request_ordinal() {
        assert_eq!(Request::new(&GET_RANDOM).unwrap().ordinal(), 0x17b);
    }

    #[test]
    fn response_lengths() {
        for bad in [0, 1, 9, 4089, 1 << 31, u32::MAX] {
            assert_eq!(
                check_response_length(bad, 4096),
                Err(BadResponse::Length(bad))
            );
        }
        assert_eq!(check_response_length(10, 4096), Ok(10));
        assert_eq!(check_response_length(4088, 4096), Ok(4088));
        assert_eq!(check_response_length(11, 10), Err(BadResponse::Length(11)));
    }

    #[test]
    fn response_header_has_to_match() {
        assert_eq!(check_response(&GET_RANDOM), Ok(()));
        assert_eq!(
            check_response(&GET_RANDOM[..11]),
            Err(BadResponse::Header {
                page: 11,
                packet: 12
            })
        );
        assert_eq!(
            check_response(&GET_RANDOM[..4]),
            Err(BadResponse::Length(4))
        );
    }
}
