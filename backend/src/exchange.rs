// SPDX-License-Identifier: GPL-2.0

//! The guest's page on one side, a TPM that takes one command at a time on the other. Pure: what has
//! to be sent, and whether the guest has to be notified, is returned.

use xen_tpm_protocol::backend::{Refused, Taken, Vacant, Wish, Working};
use xen_tpm_protocol::layout::MAX_PACKET;
use xen_tpm_protocol::{OutOfBounds, Page};
use zeroize::Zeroize;

/// What a look at the page came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Look {
    /// Nothing to do.
    Nothing,
    /// The guest has cancelled a command, which is over now, and has to be notified.
    Cancelled,
    /// A request was turned down; the guest has to be notified.
    Refused(Refused),
    /// A command was taken, and waits in [`Exchange::command`]. It has to come to
    /// [`Exchange::respond`] or [`Exchange::abandon`].
    Command {
        /// The locality that it was sent from, unchecked.
        locality: u8,
    },
}

/// What became of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// It is in the page; the guest has to be notified.
    Delivered,
    /// Its command was cancelled before; it goes nowhere.
    Dropped,
    /// It did not fit behind the guest's own offset, and the command was abandoned; the guest has to
    /// be notified.
    TooLong,
}

/// One guest's page over the time of a connection.
#[derive(Debug)]
pub struct Exchange {
    slot: Slot,
    command: Box<[u8; MAX_PACKET]>,
    len: usize,
    /// The last look left a request in the page.
    waiting: bool,
}

/// Who has the page.
#[derive(Debug)]
enum Slot {
    /// The guest.
    Vacant(Vacant),
    /// We, until the response is there.
    Working(Working),
    /// Nobody: only while a state is being replaced.
    Moving,
}

impl Slot {
    fn take(&mut self) -> Self {
        std::mem::replace(self, Self::Moving)
    }
}

impl Exchange {
    /// For a page that was just mapped. The first [`look`](Self::look) is due at once.
    pub fn new() -> Self {
        Self::from(Vacant::mapped())
    }

    /// For a page whose command was lost, and may have been carried out: it is abandoned. The guest has
    /// to be notified.
    pub fn interrupted<P: Page>(page: &P) -> Self {
        Self::from(Vacant::interrupted(page))
    }

    fn from(vacant: Vacant) -> Self {
        Self {
            slot: Slot::Vacant(vacant),
            command: Box::new([0; MAX_PACKET]),
            len: 0,
            waiting: false,
        }
    }

    /// Looks at the page once, after an event, after the TPM got free, and after binding.
    ///
    /// A cancelled command is abandoned towards the guest at once, although the TPM goes on with it;
    /// as long as `tpm_is_free` is false, the next one stays in the page.
    pub fn look<P: Page>(&mut self, page: &P, tpm_is_free: bool) -> Look {
        self.waiting = false;
        let (slot, look) = match self.slot.take() {
            Slot::Working(working) if working.is_cancelled(page) => {
                (Slot::Vacant(working.abandon(page)), Look::Cancelled)
            }
            Slot::Vacant(vacant) => match vacant.look(page) {
                Wish::Nothing(vacant) => (Slot::Vacant(vacant), Look::Nothing),
                Wish::CancelledNothing(vacant) => (Slot::Vacant(vacant), Look::Cancelled),
                Wish::Submitted(submitted) if !tpm_is_free => {
                    self.waiting = true;
                    (Slot::Vacant(submitted.later()), Look::Nothing)
                }
                Wish::Submitted(submitted) => match submitted.take(page, &mut self.command[..]) {
                    Ok((working, Taken { length, locality })) => {
                        self.len = length;
                        (Slot::Working(working), Look::Command { locality })
                    }
                    Err((vacant, refused)) => (Slot::Vacant(vacant), Look::Refused(refused)),
                },
            },
            slot => (slot, Look::Nothing),
        };

        self.slot = slot;
        look
    }

    /// Whether the last look left a request in the page because the TPM was not free. No event comes for
    /// it again.
    pub fn has_waiting(&self) -> bool {
        self.waiting
    }

    /// The command that the last [`Look::Command`] was about.
    pub fn command(&self) -> &[u8] {
        &self.command[..self.len]
    }

    /// Gives the guest its response, unless it cancelled the command.
    pub fn respond<P: Page>(&mut self, page: &P, response: &[u8]) -> Delivery {
        self.forget_command();
        match self.slot.take() {
            Slot::Working(working) => {
                let (vacant, written) = working.finish(page, response);
                self.slot = Slot::Vacant(vacant);
                match written {
                    Ok(()) => Delivery::Delivered,
                    Err(OutOfBounds) => Delivery::TooLong,
                }
            }
            slot => {
                self.slot = slot;
                Delivery::Dropped
            }
        }
    }

    /// Gives up on the running command, if there is one: true if the guest has to be notified.
    pub fn abandon<P: Page>(&mut self, page: &P) -> bool {
        self.forget_command();
        match self.slot.take() {
            Slot::Working(working) => {
                self.slot = Slot::Vacant(working.abandon(page));
                true
            }
            slot => {
                self.slot = slot;
                false
            }
        }
    }

    /// Wipes the command, once it is sent: it may have secrets in it.
    pub fn forget_command(&mut self) {
        self.command[..self.len].zeroize();
        self.len = 0;
    }
}

impl Default for Exchange {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use xen_tpm_protocol::layout::{
        LENGTH,
        LOCALITY,
        NR_EXTRA_PAGES,
        PAD,
        PAGE_SIZE,
        STATE, //
    };
    use xen_tpm_protocol::{HeaderField, State};

    use super::*;

    /// A page that nobody else has.
    struct Memory(RefCell<[u8; PAGE_SIZE]>);

    impl Memory {
        fn set(&self, at: usize, value: u8) {
            self.0.borrow_mut()[at] = value;
        }

        fn get(&self, at: usize) -> u8 {
            self.0.borrow()[at]
        }
    }

    impl Page for Memory {
        fn state(&self) -> u8 {
            self.get(STATE)
        }
        fn set_state(&self, value: u8) {
            self.set(STATE, value);
        }
        fn byte(&self, field: HeaderField) -> u8 {
            match field {
                HeaderField::Locality => self.get(LOCALITY),
                HeaderField::Pad => self.get(PAD),
                HeaderField::NrExtraPages => self.get(NR_EXTRA_PAGES),
            }
        }
        fn set_byte(&self, _: HeaderField, _: u8) {
            panic!("the backend writes no such byte");
        }
        fn length(&self) -> u32 {
            u32::from_le_bytes(self.0.borrow()[LENGTH..LENGTH + 4].try_into().unwrap())
        }
        fn set_length(&self, value: u32) {
            self.0.borrow_mut()[LENGTH..LENGTH + 4].copy_from_slice(&value.to_le_bytes());
        }
        fn read(&self, offset: usize, into: &mut [u8]) -> Result<(), OutOfBounds> {
            let page = self.0.borrow();
            let from = page.get(offset..offset + into.len()).ok_or(OutOfBounds)?;
            into.copy_from_slice(from);
            Ok(())
        }
        fn write(&self, offset: usize, from: &[u8]) -> Result<(), OutOfBounds> {
            let mut page = self.0.borrow_mut();
            let to = page
                .get_mut(offset..offset + from.len())
                .ok_or(OutOfBounds)?;
            to.copy_from_slice(from);
            Ok(())
        }
        fn wipe(&self, _: usize) -> Result<(), OutOfBounds> {
            panic!("the backend leaves wiping to the guest");
        }
    }

    const COMMAND: [u8; 12] = [0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x7b, 0, 8];
    const RESPONSE: [u8; 10] = [0x80, 1, 0, 0, 0, 10, 0, 0, 0, 0];

    /// A page in which a guest has just submitted [`COMMAND`] from locality 3.
    fn submitted() -> Memory {
        let page = Memory(RefCell::new([0; PAGE_SIZE]));
        submit(&page);
        page
    }

    fn submit(page: &Memory) {
        page.write(8, &COMMAND).unwrap();
        page.set_length(COMMAND.len() as u32);
        page.set(LOCALITY, 3);
        page.set(STATE, State::Submit as u8);
    }

    #[test]
    fn a_command_and_its_response() {
        let (page, mut exchange) = (submitted(), Exchange::new());

        assert_eq!(exchange.look(&page, true), Look::Command { locality: 3 });
        assert_eq!(exchange.command(), COMMAND);
        assert_eq!(exchange.look(&page, true), Look::Nothing);
        assert_eq!(page.state(), State::Submit as u8);
        assert_eq!(exchange.respond(&page, &RESPONSE), Delivery::Delivered);
        assert_eq!(page.state(), State::Finish as u8);
        assert_eq!(page.length(), 10);
        assert!(exchange.command().is_empty());
        assert_eq!(exchange.look(&page, true), Look::Nothing);
    }

    #[test]
    fn a_cancelled_response_is_never_the_next_commands() {
        let (page, mut exchange) = (submitted(), Exchange::new());

        assert_eq!(exchange.look(&page, true), Look::Command { locality: 3 });
        page.set(STATE, State::Cancel as u8);
        assert_eq!(exchange.look(&page, false), Look::Cancelled);
        assert_eq!(page.state(), State::Idle as u8);

        assert!(!exchange.has_waiting());
        submit(&page);
        assert_eq!(exchange.look(&page, false), Look::Nothing);
        assert!(exchange.has_waiting());
        assert_eq!(exchange.respond(&page, &RESPONSE), Delivery::Dropped);
        assert!(exchange.has_waiting());
        assert_eq!(page.state(), State::Submit as u8);
        assert_eq!(exchange.look(&page, true), Look::Command { locality: 3 });
        assert!(!exchange.has_waiting());
    }

    #[test]
    fn a_command_that_waits_can_be_cancelled() {
        let (page, mut exchange) = (submitted(), Exchange::new());

        assert_eq!(exchange.look(&page, false), Look::Nothing);
        page.set(STATE, State::Cancel as u8);
        assert_eq!(exchange.look(&page, false), Look::Cancelled);
        assert_eq!(page.state(), State::Idle as u8);
    }

    #[test]
    fn bad_lengths_are_refused() {
        for length in [0, 9, 11, 13, 4089, u32::MAX] {
            let (page, mut exchange) = (submitted(), Exchange::new());
            page.set_length(length);

            assert!(matches!(exchange.look(&page, true), Look::Refused(_)));
            assert_eq!(page.state(), State::Idle as u8);
            assert_eq!(exchange.look(&page, true), Look::Nothing);
        }
    }

    #[test]
    fn an_response_that_does_not_fit_behind_the_extra_pages() {
        let page = submitted();
        let mut exchange = Exchange::new();
        page.set(NR_EXTRA_PAGES, 255);
        page.write(8 + 4 * 255, &COMMAND).unwrap();

        assert_eq!(exchange.look(&page, true), Look::Command { locality: 3 });
        assert_eq!(exchange.respond(&page, &[0; MAX_PACKET]), Delivery::TooLong);
        assert_eq!(page.state(), State::Idle as u8);
    }

    #[test]
    fn what_was_interrupted_is_abandoned_and_nothing_else() {
        for (before, after) in [(0, 0), (1, 0), (2, 2), (3, 0), (9, 9)] {
            let page = submitted();
            page.set(STATE, before);

            let mut exchange = Exchange::interrupted(&page);
            assert_eq!(page.state(), after);
            assert_eq!(exchange.look(&page, true), Look::Nothing);
        }
    }

    #[test]
    fn abandoning_only_what_runs() {
        let (page, mut exchange) = (submitted(), Exchange::new());

        assert!(!exchange.abandon(&page));
        assert_eq!(exchange.look(&page, true), Look::Command { locality: 3 });
        assert!(exchange.abandon(&page));
        assert_eq!(page.state(), State::Idle as u8);
        assert!(!exchange.abandon(&page));
    }
}
