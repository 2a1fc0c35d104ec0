// SPDX-License-Identifier: GPL-2.0

//! The backend's end of the page, one type a state, as in [`frontend`](super::frontend). The
//! guest is no more trusted than a backend is: every field is read once and judged.
//!
//! ```text
//!            take                finish or abandon
//!  Vacant ─────────► Working ──────────────────────► Vacant
//! ```

use super::{
    layout::{
        payload_offset,
        State,
        PAGE_SIZE, //
    },
    packet::{
        claimed_length,
        HEADER_SIZE, //
    },
    page::{
        HeaderField,
        OutOfBounds,
        Page, //
    },
};

/// No command is running; the page is the frontend's.
#[derive(Debug)]
pub struct Vacant(());

/// A request was taken out of the page and its answer is owed.
///
/// # Invariants
///
/// `payload` is within the page.
#[derive(Debug)]
pub struct Working {
    payload: usize,
}

/// What one look at the page's state showed.
#[derive(Debug)]
pub enum Wish {
    /// Nothing is asked for.
    Nothing(Vacant),
    /// A request is there, to be taken out with [`Submitted::take`].
    Submitted(Submitted),
    /// The frontend cancelled a command that is over already. The page was set to `Idle`; the
    /// frontend has to be notified.
    CancelledNothing(Vacant),
}

/// `Submit` was seen: a request is in the page.
#[derive(Debug)]
pub struct Submitted(());

/// A request's particulars; its packet is in the buffer that was given to [`Submitted::take`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Bytes of the packet.
    pub length: usize,
    /// The locality that the guest sent it from, unchecked: what is allowed is a policy.
    pub locality: u8,
}

/// Why a request is not carried out. The page was set to `Idle`; the frontend has to be notified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The page's `length` is under a header's, over the page's room or over the buffer.
    Length(u32),
    /// So many extra pages that no packet could follow them.
    ExtraPages(u8),
    /// The packet's own length is not the page's.
    Header {
        /// What the page's `length` said.
        page: u32,
        /// What the packet's header says.
        packet: u32,
    },
}

impl Vacant {
    /// For a page that was just mapped. It may be in [`State::Submit`] already.
    pub fn mapped() -> Self {
        Self(())
    }

    /// For a page whose command was lost with the worker that had it: it is abandoned, since it may
    /// have been carried out. The frontend has to be notified.
    pub fn interrupted<P: Page>(page: &P) -> Self {
        if let Some(State::Submit | State::Cancel) = State::from_wire(page.state()) {
            page.set_state(State::Idle as u8);
        }
        Self(())
    }

    /// Looks at what the frontend wants.
    pub fn look<P: Page>(self, page: &P) -> Wish {
        match State::from_wire(page.state()) {
            Some(State::Submit) => Wish::Submitted(Submitted(())),
            Some(State::Cancel) => {
                page.set_state(State::Idle as u8);
                Wish::CancelledNothing(self)
            }
            _ => Wish::Nothing(self),
        }
    }
}

impl Submitted {
    /// Copies the request out of the page.
    pub fn take<P: Page>(
        self,
        page: &P,
        into: &mut [u8],
    ) -> Result<(Working, Taken), (Vacant, Refused)> {
        match take_request(page, into) {
            Ok((payload, taken)) => Ok((Working { payload }, taken)),
            Err(bad) => {
                page.set_state(State::Idle as u8);
                Err((Vacant(()), bad))
            }
        }
    }

    /// Leaves the request where it is, for a later look: the TPM is still busy with a command
    /// that was cancelled.
    pub fn later(self) -> Vacant {
        Vacant(())
    }
}

/// The checks of [`Submitted::take`]: returns where the payload is, and the particulars.
fn take_request<P: Page>(page: &P, into: &mut [u8]) -> Result<(usize, Taken), Refused> {
    let length = page.length();
    let locality = page.byte(HeaderField::Locality);
    let extra_pages = page.byte(HeaderField::NrExtraPages);

    let payload = payload_offset(extra_pages);
    let room = PAGE_SIZE
        .checked_sub(payload)
        .ok_or(Refused::ExtraPages(extra_pages))?;
    let n = usize::try_from(length).map_err(|_| Refused::Length(length))?;
    if n < HEADER_SIZE || n > room {
        return Err(Refused::Length(length));
    }
    let request = into.get_mut(..n).ok_or(Refused::Length(length))?;

    page.read(payload, request)
        .map_err(|OutOfBounds| Refused::Length(length))?;
    match claimed_length(request) {
        Some(packet) if packet == length => Ok((
            payload,
            Taken {
                length: n,
                locality,
            },
        )),
        Some(packet) => Err(Refused::Header {
            page: length,
            packet,
        }),
        None => Err(Refused::Length(length)),
    }
}

impl Working {
    /// Whether the frontend asked to abandon the command.
    pub fn is_cancelled<P: Page>(&self, page: &P) -> bool {
        State::from_wire(page.state()) == Some(State::Cancel)
    }

    /// Puts the answer into the page; the frontend has to be notified. An answer that does not
    /// fit behind the guest's own offset abandons the command instead, and says so.
    pub fn finish<P: Page>(self, page: &P, answer: &[u8]) -> (Vacant, Result<(), OutOfBounds>) {
        let length = u32::try_from(answer.len()).map_err(|_| OutOfBounds);
        let written = length.and_then(|n| page.write(self.payload, answer).map(|()| n));

        match written {
            Ok(n) => {
                page.set_length(n);
                page.set_state(State::Finish as u8);
                (Vacant(()), Ok(()))
            }
            Err(e) => (self.abandon(page), Err(e)),
        }
    }

    /// Abandons the command; the frontend has to be notified.
    pub fn abandon<P: Page>(self, page: &P) -> Vacant {
        page.set_state(State::Idle as u8);
        Vacant(())
    }
}
