// SPDX-License-Identifier: GPL-2.0

//! The shared page as memory that somebody else writes to at any moment. The two ends implement
//! [`Page`] over a grant; host tests and model checkers over whatever they want to provoke.

/// The one-byte fields of the header that carry no ordering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Byte {
    /// The locality that the request is sent from.
    Locality,
    /// Zero.
    Pad,
    /// How many grant references follow the header.
    NrExtraPages,
}

/// An access reached beyond the page. Nothing was read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfPage;

/// Access to the shared page: every call is one access, so that a value which was judged is never
/// read a second time. Offsets are those of [`layout`](super::layout).
///
/// There is no way to borrow the page's bytes: the peer may change them at any time.
pub trait Page {
    /// Reads `state`. Acquire: what the peer wrote before it is visible afterwards.
    fn state(&self) -> u8;

    /// Writes `state`. Release: what was written before it is visible to a peer that sees it.
    fn set_state(&self, value: u8);

    /// Reads one of the header's plain bytes.
    fn byte(&self, field: Byte) -> u8;

    /// Writes one of the header's plain bytes.
    fn set_byte(&self, field: Byte, value: u8);

    /// Reads `length`.
    fn length(&self) -> u32;

    /// Writes `length`.
    fn set_length(&self, value: u32);

    /// Copies bytes of the page, from `offset` on, into a private buffer.
    fn read(&self, offset: usize, into: &mut [u8]) -> Result<(), OutOfPage>;

    /// Copies a private buffer into the page, from `offset` on.
    fn write(&self, offset: usize, from: &[u8]) -> Result<(), OutOfPage>;

    /// Overwrites everything from `offset` to the end of the page with zeroes.
    fn wipe(&self, offset: usize) -> Result<(), OutOfPage>;
}
