// SPDX-License-Identifier: GPL-2.0

//! The shared page as memory that somebody else writes to at any moment. The two ends implement
//! [`Memory`] over a grant, model checkers over their own atomics; what provokes the reader value
//! by value implements [`Page`].

use super::layout::{
    LENGTH,
    LOCALITY,
    NR_EXTRA_PAGES,
    PAD,
    STATE, //
};

/// A one-byte field of the header that carries no ordering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderField {
    /// The locality that the request is sent from.
    Locality,
    /// Zero.
    Pad,
    /// How many grant references follow the header.
    NrExtraPages,
}

/// An access reached beyond the page. Nothing was read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfBounds;

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
    fn byte(&self, field: HeaderField) -> u8;

    /// Writes one of the header's plain bytes.
    fn set_byte(&self, field: HeaderField, value: u8);

    /// Reads `length`.
    fn length(&self) -> u32;

    /// Writes `length`.
    fn set_length(&self, value: u32);

    /// Copies bytes of the page, from `offset` on, into a private buffer.
    fn read(&self, offset: usize, into: &mut [u8]) -> Result<(), OutOfBounds>;

    /// Copies a private buffer into the page, from `offset` on.
    fn write(&self, offset: usize, from: &[u8]) -> Result<(), OutOfBounds>;

    /// Overwrites everything from `offset` to the end of the page with zeroes.
    fn wipe(&self, offset: usize) -> Result<(), OutOfBounds>;
}

/// One page of memory that is shared with another domain. `AT` and `offset` count bytes from the
/// page's start.
pub trait Memory {
    /// Reads the byte at `AT`, before everything that is read later.
    fn load_acquire<const AT: usize>(&self) -> u8;

    /// Writes the byte at `AT`, after everything that was written earlier.
    fn store_release<const AT: usize>(&self, value: u8);

    /// Reads the byte at `AT`.
    fn load<const AT: usize>(&self) -> u8;

    /// Writes the byte at `AT`.
    fn store<const AT: usize>(&self, value: u8);

    /// Reads the little-endian number at `AT`.
    fn load_le32<const AT: usize>(&self) -> u32;

    /// Writes the little-endian number at `AT`.
    fn store_le32<const AT: usize>(&self, value: u32);

    /// Copies from the page.
    fn copy_from(&self, offset: usize, into: &mut [u8]) -> Result<(), OutOfBounds>;

    /// Copies to the page.
    fn copy_to(&self, offset: usize, from: &[u8]) -> Result<(), OutOfBounds>;

    /// Overwrites everything from `offset` to the end of the page with zeroes.
    fn zero(&self, offset: usize) -> Result<(), OutOfBounds>;
}

impl<M: Memory> Page for M {
    fn state(&self) -> u8 {
        self.load_acquire::<STATE>()
    }

    fn set_state(&self, value: u8) {
        self.store_release::<STATE>(value);
    }

    fn byte(&self, field: HeaderField) -> u8 {
        match field {
            HeaderField::Locality => self.load::<LOCALITY>(),
            HeaderField::Pad => self.load::<PAD>(),
            HeaderField::NrExtraPages => self.load::<NR_EXTRA_PAGES>(),
        }
    }

    fn set_byte(&self, field: HeaderField, value: u8) {
        match field {
            HeaderField::Locality => self.store::<LOCALITY>(value),
            HeaderField::Pad => self.store::<PAD>(value),
            HeaderField::NrExtraPages => self.store::<NR_EXTRA_PAGES>(value),
        }
    }

    fn length(&self) -> u32 {
        self.load_le32::<LENGTH>()
    }

    fn set_length(&self, value: u32) {
        self.store_le32::<LENGTH>(value);
    }

    fn read(&self, offset: usize, into: &mut [u8]) -> Result<(), OutOfBounds> {
        self.copy_from(offset, into)
    }

    fn write(&self, offset: usize, from: &[u8]) -> Result<(), OutOfBounds> {
        self.copy_to(offset, from)
    }

    fn wipe(&self, offset: usize) -> Result<(), OutOfBounds> {
        self.zero(offset)
    }
}
