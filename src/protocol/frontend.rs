// SPDX-License-Identifier: GPL-2.0

//! The frontend's end of the page, one type a state. A state is a token that its transitions
//! consume, so that submitting twice, submitting before the backend let go of the page, or taking
//! an answer that was not announced cannot be written down.
//!
//! ```text
//!            submit              cancel
//!  Ready -------------> Running ---------> Cancelling --> (dropped: the page is wedged)
//!    ^                    |  |                |  |
//!    |    Idle seen       |  |  Finish seen   |  |
//!    +--------------------+--|----------------+  |
//!    |  answer or discard    v                   |
//!    +------------------  Finished <-------------+
//! ```
//!
//! What would break the protocol does not compile, such as a second submit on the same page:
//!
//! ```compile_fail,E0382
//! # use xen_tpm_protocol::{frontend::Ready, packet::Request, Page};
//! fn twice<P: Page>(page: &P, ready: Ready, request: &Request<'_>) {
//!     let _ = ready.submit(page, request, 0);
//!     let _ = ready.submit(page, request, 0);
//! }
//! ```
//!
//! or a submit while a cancelled command may still be answered:
//!
//! ```compile_fail,E0599
//! # use xen_tpm_protocol::{frontend::Running, packet::Request, Page};
//! fn hasty<P: Page>(page: &P, running: Running, request: &Request<'_>) {
//!     let _ = running.cancel(page).submit(page, request, 0);
//! }
//! ```

use super::{
    layout::{
        payload_offset,
        State, //
    },
    packet::{
        check_answer,
        check_answer_length,
        BadAnswer,
        Request, //
    },
    page::{
        Byte,
        OutOfPage,
        Page, //
    },
};

/// Where this end's packets start: it never announces extra pages, and never asks the page for
/// the offset.
const PAYLOAD: usize = payload_offset(0);

/// The page is the frontend's: it is fresh, or `Idle` or `Finish` was seen after the last submit.
#[derive(Debug)]
pub struct Ready(());

/// A request was submitted and the backend owns the page.
#[derive(Debug)]
pub struct Running(());

/// The request was submitted and then cancelled; the backend still owns the page.
///
/// There is no way from here but through [`look`](Self::look): dropping the token gives the page
/// up for good, because an answer may still be written into it.
#[derive(Debug)]
pub struct Cancelling(());

/// `Finish` was seen: an answer is in the page, which is the frontend's again.
#[derive(Debug)]
pub struct Finished(());

/// How the backend ended a command.
#[derive(Debug)]
pub enum End {
    /// It abandoned the command; nothing of it is left in the page.
    Abandoned(Ready),
    /// An answer is there.
    Finished(Finished),
}

impl Ready {
    /// For a page that is all zeroes and that no backend has seen yet.
    pub fn fresh() -> Self {
        Self(())
    }

    /// Hands a request to the backend, which has to be notified afterwards.
    pub fn submit<P: Page>(
        self,
        page: &P,
        request: &Request<'_>,
        locality: u8,
    ) -> Result<Running, (Self, OutOfPage)> {
        if let Err(e) = page.write(PAYLOAD, request.bytes()) {
            return Err((self, e));
        }
        page.set_length(request.wire_length());
        page.set_byte(Byte::Locality, locality);
        page.set_byte(Byte::Pad, 0);
        page.set_byte(Byte::NrExtraPages, 0);
        page.set_state(State::Submit as u8);

        Ok(Running(()))
    }
}

/// Looks at the state once. `from` comes back as the error while there is neither `Idle` nor
/// `Finish`; a value that the backend may not write counts as nothing.
fn look<P: Page, R>(page: &P, from: R) -> Result<End, R> {
    match State::from_wire(page.state()) {
        Some(State::Idle) => {
            wipe(page);
            Ok(End::Abandoned(Ready(())))
        }
        Some(State::Finish) => Ok(End::Finished(Finished(()))),
        _ => Err(from),
    }
}

/// Whether a state that was read from the page ends a wait. For an interrupt handler, which must
/// not take the tokens; the waiter looks for itself.
pub fn ends_wait(state: u8) -> bool {
    matches!(State::from_wire(state), Some(State::Idle | State::Finish))
}

/// Leaves none of a request's or an answer's bytes in the page.
fn wipe<P: Page>(page: &P) {
    // The payload starts within every page.
    let _ = page.wipe(PAYLOAD);
}

impl Running {
    /// Looks whether the backend is done.
    pub fn look<P: Page>(self, page: &P) -> Result<End, Self> {
        look(page, self)
    }

    /// Asks the backend to abandon the command; it has to be notified afterwards.
    pub fn cancel<P: Page>(self, page: &P) -> Cancelling {
        page.set_state(State::Cancel as u8);
        Cancelling(())
    }
}

impl Cancelling {
    /// Looks whether the backend let go of the page.
    pub fn look<P: Page>(self, page: &P) -> Result<End, Self> {
        look(page, self)
    }

    /// Gives the page up: the backend answered neither way. What the frontend put there is wiped;
    /// nothing may be submitted on this page again, and without a token nothing can.
    pub fn abandon_page<P: Page>(self, page: &P) {
        wipe(page);
    }
}

impl Finished {
    /// Copies the answer out and wipes it from the page. The page's `length` is read once and
    /// judged before it is used; the packet is judged in the private copy. When it is not
    /// credible, `into` is left zeroed.
    pub fn answer<P: Page>(self, page: &P, into: &mut [u8]) -> (Ready, Result<usize, BadAnswer>) {
        let result = take_answer(page, into);

        if result.is_err() {
            into.fill(0);
        }
        (self.discard(page), result)
    }

    /// Throws the answer away.
    pub fn discard<P: Page>(self, page: &P) -> Ready {
        wipe(page);
        Ready(())
    }
}

/// The checks of [`Finished::answer`].
fn take_answer<P: Page>(page: &P, into: &mut [u8]) -> Result<usize, BadAnswer> {
    let length = page.length();
    let n = check_answer_length(length, into.len())?;
    let answer = into.get_mut(..n).ok_or(BadAnswer::Length(length))?;

    page.read(PAYLOAD, answer)
        .map_err(|OutOfPage| BadAnswer::Length(length))?;
    check_answer(answer)?;

    Ok(n)
}
