// SPDX-License-Identifier: GPL-2.0

//! Where the fields of the shared page are, which values they take, and the names of the xenstore
//! nodes that lead to it. Offsets and sizes are in bytes; integers are little endian.

/// Size of the one page that a frontend grants.
pub const PAGE_SIZE: usize = 4096;

/// Offset of `length` (`u32`): bytes of the request, then of the response.
pub const LENGTH: usize = 0;

/// Offset of `state` (`u8`): one of [`State`].
pub const STATE: usize = 4;

/// Offset of `locality` (`u8`): the locality that the request is sent from.
pub const LOCALITY: usize = 5;

/// Offset of `pad` (`u8`): written as zero and never read.
pub const PAD: usize = 6;

/// Offset of `nr_extra_pages` (`u8`): how many grant references follow the header.
pub const NR_EXTRA_PAGES: usize = 7;

/// Size of the header, which is where the grant references of extra pages would start.
pub const HEADER_SIZE: usize = 8;

/// Size of one grant reference of an extra page.
pub const GRANT_REF_SIZE: usize = 4;

/// Where the packet starts when the page announces `nr_extra_pages` extra pages.
pub const fn payload_offset(nr_extra_pages: u8) -> usize {
    HEADER_SIZE + GRANT_REF_SIZE * nr_extra_pages as usize
}

/// The longest packet that fits behind the header of a page without extra pages: 4,088 bytes.
pub const MAX_PACKET: usize = PAGE_SIZE - payload_offset(0);

/// xenstore node, frontend's directory: grant reference of the shared page, decimal.
pub const NODE_RING_REF: &str = "ring-ref";

/// xenstore node, frontend's directory: port of the event channel, decimal.
pub const NODE_EVENT_CHANNEL: &str = "event-channel";

/// xenstore node, both directories: "1" says that its owner supports this protocol.
pub const NODE_FEATURE: &str = "feature-protocol-v2";

/// The value of [`NODE_FEATURE`]. Xen's mini-os compares the very string.
pub const FEATURE_VALUE: &str = "1";

/// [`FEATURE_VALUE`] as a number, to be written in decimal.
pub const FEATURE: u32 = 1;

/// xenstore directory, backend's: the log of what was measured, in the nodes `0`, `1`, ... as hex
/// digits.
pub const NODE_EVENT_LOG: &str = "event-log";

/// So many bytes of the log are in each node of [`NODE_EVENT_LOG`] but the last, which has no more.
/// A node of a driver domain's may have 2,048 bytes.
pub const EVENT_LOG_CHUNK: usize = 768;

/// So many nodes [`NODE_EVENT_LOG`] has at most.
pub const EVENT_LOG_CHUNKS: usize = 16;

/// Whether a value of [`NODE_FEATURE`] that the peer wrote, which may be any bytes, says that it
/// supports this protocol.
pub fn speaks_protocol(value: &[u8]) -> bool {
    value == FEATURE_VALUE.as_bytes()
}

/// What the page's `state` says. The frontend writes only `Submit` and `Cancel`, the backend only
/// `Idle` and `Finish`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// No command, or the last one was abandoned.
    Idle = 0,
    /// A request is in the page and belongs to the backend.
    Submit = 1,
    /// The response is in the page and belongs to the frontend.
    Finish = 2,
    /// The frontend asks to abandon the command. The backend goes to `Idle` or `Finish`.
    Cancel = 3,
}

impl State {
    /// The state that a byte of the page stands for, or `None` for a value that has no meaning.
    pub const fn from_wire(value: u8) -> Option<Self> {
        match value {
            0 => Some(Self::Idle),
            1 => Some(Self::Submit),
            2 => Some(Self::Finish),
            3 => Some(Self::Cancel),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_survives_the_wire_and_nothing_else_does() {
        for value in 0..=u8::MAX {
            match State::from_wire(value) {
                Some(state) => assert_eq!(state as u8, value),
                None => assert!(value > State::Cancel as u8),
            }
        }
    }

    #[test]
    fn payload_follows_the_extra_grant_references() {
        assert_eq!(payload_offset(0), 8);
        assert_eq!(payload_offset(3), 20);
        assert_eq!(payload_offset(u8::MAX), 1028);
        assert_eq!(MAX_PACKET, 4088);
    }

    #[test]
    fn both_forms_of_the_feature_are_the_same() {
        assert_eq!(FEATURE_VALUE.parse(), Ok(FEATURE));
    }
}
