// SPDX-License-Identifier: GPL-2.0

//! The frontend's side of the page, one type a state. A state is a token that its transitions
//! consume, so that submitting twice, submitting before the backend let go of the page, or taking
//! a response that was not announced cannot be written down.
//!
//! ```text
//!           submit                cancel
//!  Idle --------------> Submitted -------> Cancelling --> (dropped: the page is wedged)
//!    ^                    |  |                |  |
//!    |    Idle seen       |  |  Finish seen   |  |
//!    +--------------------+--|----------------+  |
//!    | response or discard   v                   |
//!    +------------------  Finished <-------------+
//! ```
//!
//! What would break the protocol does not compile, such as a second submit on the same page:
//!
//! ```compile_fail,E0382
//! # use xen_tpm_protocol::{frontend::Idle, packet::Request, Page};
//! fn twice<P: Page>(page: &P, idle: Idle, request: &Request<'_>) {
//!     let _ = idle.submit(page, request, 0);
//!     let _ = idle.submit(page, request, 0);
//! }
//! ```
//!
//! or a submit while a cancelled command may still be answered:
//!
//! ```compile_fail,E0599
//! # use xen_tpm_protocol::{frontend::Submitted, packet::Request, Page};
//! fn hasty<P: Page>(page: &P, submitted: Submitted, request: &Request<'_>) {
//!     let _ = submitted.cancel(page).submit(page, request, 0);
//! }
//! ```

use super::{
    layout::{
        payload_offset,
        State, //
    },
    packet::{
        check_response,
        check_response_length,
        BadResponse,
        Request, //
    },
    page::{
        HeaderField,
        OutOfBounds,
        Page, //
    },
};

/// Where the frontend's packets start: it never announces extra pages, and never asks the page for
/// the offset.
const PAYLOAD: usize = payload_offset(0);

/// The page is the frontend's: it is fresh, or `Idle` or `Finish` was seen after the last submit.
#[derive(Debug)]
pub struct Idle(());

/// A request was submitted and the backend owns the page.
#[derive(Debug)]
pub struct Submitted(());

/// The request was submitted and then cancelled; the backend still owns the page.
///
/// There is no way from here but through [`poll`](Self::poll): dropping the token gives the page
/// up for good, because a response may still be written into it.
#[derive(Debug)]
pub struct Cancelling(());

/// `Finish` was seen: a response is in the page, which is the frontend's again.
#[derive(Debug)]
pub struct Finished(());

/// How the backend completed a command.
#[derive(Debug)]
pub enum Completed {
    /// The backend abandoned the command; nothing of it is left in the page.
    Abandoned(Idle),
    /// A response is there.
    Finished(Finished),
}

impl Idle {
    /// For a page that is all zeroes and that no backend has seen yet.
    // No Default: that a page is new is for the caller to say.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self(())
    }

    /// Hands a request to the backend, which has to be notified afterwards.
    pub fn submit<P: Page>(
        self,
        page: &P,
        request: &Request<'_>,
        locality: u8,
    ) -> Result<Submitted, (Self, OutOfBounds)> {
        if let Err(e) = page.write(PAYLOAD, request.bytes()) {
            return Err((self, e));
        }
        page.set_length(request.wire_length());
        page.set_byte(HeaderField::Locality, locality);
        page.set_byte(HeaderField::Pad, 0);
        page.set_byte(HeaderField::NrExtraPages, 0);
        page.set_state(State::Submit as u8);

        Ok(Submitted(()))
    }
}

/// Reads the state once. `from` comes back as the error while it is neither `Idle` nor `Finish`; a
/// value that the backend may not write counts as nothing.
fn poll<P: Page, R>(page: &P, from: R) -> Result<Completed, R> {
    match State::from_wire(page.state()) {
        Some(State::Idle) => {
            wipe_payload(page);
            Ok(Completed::Abandoned(Idle(())))
        }
        Some(State::Finish) => Ok(Completed::Finished(Finished(()))),
        _ => Err(from),
    }
}

/// Whether a state that was read from the page completes a command. For an interrupt handler, which
/// must not take the tokens; the waiter polls the page itself.
pub fn is_complete(state: u8) -> bool {
    matches!(State::from_wire(state), Some(State::Idle | State::Finish))
}

/// Leaves none of a request's or a response's bytes in the page.
fn wipe_payload<P: Page>(page: &P) {
    // The payload starts within every page.
    let _ = page.wipe(PAYLOAD);
}

impl Submitted {
    /// Checks whether the command is completed.
    pub fn poll<P: Page>(self, page: &P) -> Result<Completed, Self> {
        poll(page, self)
    }

    /// Asks the backend to abandon the command; it has to be notified afterwards.
    pub fn cancel<P: Page>(self, page: &P) -> Cancelling {
        page.set_state(State::Cancel as u8);
        Cancelling(())
    }
}

impl Cancelling {
    /// Checks whether the backend let go of the page.
    pub fn poll<P: Page>(self, page: &P) -> Result<Completed, Self> {
        poll(page, self)
    }

    /// Gives the page up: the backend did not react to the cancel. The frontend's bytes are wiped;
    /// nothing may be submitted on this page again, and without a token nothing can.
    pub fn give_up_page<P: Page>(self, page: &P) {
        wipe_payload(page);
    }
}

impl Finished {
    /// Copies the response out and wipes it from the page. The page's `length` is read once and
    /// checked before it is used; the packet is checked in the private copy. When a check fails,
    /// `into` is left zeroed.
    pub fn response<P: Page>(
        self,
        page: &P,
        into: &mut [u8],
    ) -> (Idle, Result<usize, BadResponse>) {
        let result = copy_response(page, into);

        if result.is_err() {
            into.fill(0);
        }
        (self.discard(page), result)
    }

    /// Discards the response.
    pub fn discard<P: Page>(self, page: &P) -> Idle {
        wipe_payload(page);
        Idle(())
    }
}

/// The checks of [`Finished::response`].
fn copy_response<P: Page>(page: &P, into: &mut [u8]) -> Result<usize, BadResponse> {
    let length = page.length();
    let n = check_response_length(length, into.len())?;
    let response = into.get_mut(..n).ok_or(BadResponse::Length(length))?;

    page.read(PAYLOAD, response)
        .map_err(|OutOfBounds| BadResponse::Length(length))?;
    check_response(response)?;

    Ok(n)
}
