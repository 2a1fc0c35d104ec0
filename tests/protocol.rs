// SPDX-License-Identifier: GPL-2.0

//! Property tests of both sides of the protocol: against a page that holds anything, against one that
//! changes between any two accesses, and against each other.

use proptest::prelude::*;
use std::cell::{Cell, RefCell};
use xen_tpm_protocol::backend::{Vacant, Wish};
use xen_tpm_protocol::command::{
    CANCEL_TIMEOUT_MS, MAX_TIMEOUT_MS, MIN_TIMEOUT_MS, SILENT_TIMEOUT_MS,
};
use xen_tpm_protocol::frontend::{Completed, Idle, Submitted};
use xen_tpm_protocol::layout::{MAX_PACKET, PAGE_SIZE, STATE};
use xen_tpm_protocol::packet::{BadResponse, Request, HEADER_SIZE};
use xen_tpm_protocol::{HeaderField, OutOfBounds, Page, State};

/// A page in private memory that counts how often each field is read, and that a hostile peer can
/// change after every access.
struct TestPage {
    bytes: RefCell<Vec<u8>>,
    /// What the peer writes, in turn, after each access: offset and value.
    meddling: RefCell<Vec<(usize, u8)>>,
    length_reads: Cell<u32>,
    state_reads: Cell<u32>,
    payload_reads: Cell<u32>,
}

impl TestPage {
    fn new(bytes: Vec<u8>) -> Self {
        assert_eq!(bytes.len(), PAGE_SIZE);
        Self {
            bytes: RefCell::new(bytes),
            meddling: RefCell::default(),
            length_reads: Cell::new(0),
            state_reads: Cell::new(0),
            payload_reads: Cell::new(0),
        }
    }

    fn zeroed() -> Self {
        Self::new(vec![0; PAGE_SIZE])
    }

    fn meddle(&self) {
        if let Some((offset, value)) = self.meddling.borrow_mut().pop() {
            self.bytes.borrow_mut()[offset % PAGE_SIZE] = value;
        }
    }

    fn payload_is_wiped(&self) -> bool {
        self.bytes.borrow()[8..].iter().all(|byte| *byte == 0)
    }

    fn at(field: HeaderField) -> usize {
        match field {
            HeaderField::Locality => 5,
            HeaderField::Pad => 6,
            HeaderField::NrExtraPages => 7,
        }
    }
}

impl Page for TestPage {
    fn state(&self) -> u8 {
        self.state_reads.set(self.state_reads.get() + 1);
        let value = self.bytes.borrow()[STATE];
        self.meddle();
        value
    }

    fn set_state(&self, value: u8) {
        self.bytes.borrow_mut()[STATE] = value;
        self.meddle();
    }

    fn byte(&self, field: HeaderField) -> u8 {
        let value = self.bytes.borrow()[Self::at(field)];
        self.meddle();
        value
    }

    fn set_byte(&self, field: HeaderField, value: u8) {
        self.bytes.borrow_mut()[Self::at(field)] = value;
        self.meddle();
    }

    fn length(&self) -> u32 {
        self.length_reads.set(self.length_reads.get() + 1);
        let value = u32::from_le_bytes(self.bytes.borrow()[..4].try_into().unwrap());
        self.meddle();
        value
    }

    fn set_length(&self, value: u32) {
        self.bytes.borrow_mut()[..4].copy_from_slice(&value.to_le_bytes());
        self.meddle();
    }

    fn read(&self, offset: usize, into: &mut [u8]) -> Result<(), OutOfBounds> {
        self.payload_reads.set(self.payload_reads.get() + 1);
        let end = offset.checked_add(into.len()).ok_or(OutOfBounds)?;
        into.copy_from_slice(self.bytes.borrow().get(offset..end).ok_or(OutOfBounds)?);
        self.meddle();
        Ok(())
    }

    fn write(&self, offset: usize, from: &[u8]) -> Result<(), OutOfBounds> {
        let end = offset.checked_add(from.len()).ok_or(OutOfBounds)?;
        let mut bytes = self.bytes.borrow_mut();
        bytes
            .get_mut(offset..end)
            .ok_or(OutOfBounds)?
            .copy_from_slice(from);
        drop(bytes);
        self.meddle();
        Ok(())
    }

    fn wipe(&self, offset: usize) -> Result<(), OutOfBounds> {
        self.bytes
            .borrow_mut()
            .get_mut(offset..)
            .ok_or(OutOfBounds)?
            .fill(0);
        Ok(())
    }
}

/// A packet of `length` bytes with a right header, filled with `fill`.
fn packet(length: usize, fill: u8) -> Vec<u8> {
    let mut packet = vec![fill; length];
    packet[..2].copy_from_slice(&0x8001u16.to_be_bytes());
    packet[2..6].copy_from_slice(&u32::try_from(length).unwrap().to_be_bytes());
    packet
}

fn submit(page: &TestPage, length: usize) -> Submitted {
    let packet = packet(length, 0x5a);
    Idle::new()
        .submit(page, &Request::new(&packet).unwrap(), 3)
        .unwrap_or_else(|_| panic!("{length} bytes fit"))
}

/// Responds as a backend would, without asking what the request was.
fn finish(page: &TestPage, length: u32, payload: &[u8]) {
    page.write(8, payload).unwrap();
    page.set_length(length);
    page.set_state(State::Finish as u8);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn request_is_in_the_page_before_the_state_says_so(
        length in HEADER_SIZE..=MAX_PACKET, locality: u8, junk: u8,
    ) {
        let page = TestPage::new(vec![junk; PAGE_SIZE]);
        let packet = packet(length, 0x77);

        Idle::new().submit(&page, &Request::new(&packet).unwrap(), locality).unwrap();
        let bytes = page.bytes.borrow();
        prop_assert_eq!(&bytes[8..8 + length], &packet[..]);
        prop_assert_eq!(&bytes[..4], &u32::try_from(length).unwrap().to_le_bytes()[..]);
        prop_assert_eq!(&bytes[4..8], &[State::Submit as u8, locality, 0, 0][..]);
    }

    #[test]
    fn only_a_valid_response_is_taken(
        length in prop_oneof![0u32..=20, 4080u32..=4100, any::<u32>()],
        claimed in prop_oneof![0u32..=20, 4080u32..=4100, any::<u32>()],
        same: bool,
        room in prop_oneof![Just(4096usize), 0usize..=4096],
    ) {
        let page = TestPage::zeroed();
        let submitted = submit(&page, 10);
        let mut payload = packet(MAX_PACKET, 0xa5);
        let claimed = if same { length } else { claimed };
        payload[2..6].copy_from_slice(&claimed.to_be_bytes());
        finish(&page, length, &payload);

        let Ok(Completed::Finished(finished)) = submitted.poll(&page) else {
            return Err(TestCaseError::fail("FINISH was not seen"));
        };
        let mut into = vec![0xee; room];
        let (_idle, result) = finished.response(&page, &mut into);

        let n = length as usize;
        let valid = (HEADER_SIZE..=MAX_PACKET).contains(&n) && n <= room && claimed == length;
        match result {
            Ok(taken) => {
                prop_assert!(valid);
                prop_assert_eq!(taken, n);
                prop_assert_eq!(&into[..n], &payload[..n]);
            }
            Err(bad) => {
                prop_assert!(!valid, "{:?}", bad);
                prop_assert!(into.iter().all(|byte| *byte == 0), "half a response was left");
                if let BadResponse::Header { page, packet } = bad {
                    prop_assert_eq!((page, packet), (length, claimed));
                }
            }
        }
        prop_assert!(page.payload_is_wiped());
    }

    #[test]
    fn a_page_that_changes_all_the_time_is_read_once_and_checked(
        mut meddling in prop::collection::vec(
            (prop_oneof![Just(STATE), 0usize..24, 0..PAGE_SIZE], prop_oneof![0u8..4, any::<u8>()]),
            0..40),
        cancel_at in 0usize..6,
    ) {
        let page = TestPage::zeroed();
        meddling.reverse();
        *page.meddling.borrow_mut() = meddling;
        let mut submitted = submit(&page, 100);

        for turn in 0..8 {
            let reads = page.state_reads.get();
            let seen = if turn < cancel_at {
                submitted.poll(&page)
            } else {
                match submitted.cancel(&page).poll(&page) {
                    Ok(end) => Ok(end),
                    Err(cancelling) => {
                        cancelling.give_up_page(&page);
                        return Ok(());
                    }
                }
            };
            prop_assert!(page.state_reads.get() <= reads + 1);

            match seen {
                Ok(Completed::Finished(finished)) => {
                    let mut into = vec![0; 4096];
                    let (_idle, result) = finished.response(&page, &mut into);

                    prop_assert!(page.length_reads.get() <= 1);
                    prop_assert!(page.payload_reads.get() <= 1);
                    if let Ok(n) = result {
                        prop_assert!((HEADER_SIZE..=MAX_PACKET).contains(&n));
                        prop_assert_eq!(&into[2..6], &(n as u32).to_be_bytes()[..]);
                    }
                    return Ok(());
                }
                Ok(Completed::Abandoned(_idle)) => return Ok(()),
                Err(still) => submitted = still,
            }
        }
    }

    #[test]
    fn only_idle_and_finish_end_a_command(state: u8) {
        let page = TestPage::zeroed();
        let submitted = submit(&page, 10);

        page.set_state(state);
        match submitted.poll(&page) {
            Ok(Completed::Abandoned(_)) => prop_assert_eq!(state, 0),
            Ok(Completed::Finished(_)) => prop_assert_eq!(state, 2),
            Err(_) => prop_assert!(state != 0 && state != 2),
        }
    }

    #[test]
    fn backend_takes_only_what_is_within_the_page(
        length in prop_oneof![0u32..=20, 3000u32..=4100, any::<u32>()],
        claimed in prop_oneof![0u32..=20, 3000u32..=4100, any::<u32>()],
        same: bool,
        extra_pages: u8,
        locality: u8,
    ) {
        let page = TestPage::new(vec![0xcc; PAGE_SIZE]);
        let start = 8 + 4 * usize::from(extra_pages);
        let claimed = if same { length } else { claimed };
        page.write(start + 2, &claimed.to_be_bytes()).unwrap();
        page.set_length(length);
        page.set_byte(HeaderField::Locality, locality);
        page.set_byte(HeaderField::NrExtraPages, extra_pages);
        page.set_state(State::Submit as u8);

        let Wish::Submitted(request_there) = Vacant::mapped().look(&page) else {
            return Err(TestCaseError::fail("SUBMIT was not seen"));
        };
        let mut into = vec![0; MAX_PACKET];
        let fits = (HEADER_SIZE..=PAGE_SIZE - start).contains(&(length as usize));
        match request_there.take(&page, &mut into) {
            Ok((working, taken)) => {
                prop_assert!(fits && claimed == length);
                prop_assert_eq!((taken.length, taken.locality), (length as usize, locality));

                let response = packet(MAX_PACKET, 1);
                let (_vacant, written) = working.finish(&page, &response);
                prop_assert_eq!(written.is_ok(), extra_pages == 0);
                let state = if written.is_ok() { State::Finish } else { State::Idle };
                prop_assert_eq!(page.state(), state as u8);
            }
            Err((_vacant, refused)) => {
                prop_assert!(!fits || claimed != length, "{:?}", refused);
                prop_assert_eq!(page.state(), State::Idle as u8);
            }
        }
        prop_assert_eq!(page.length_reads.get(), 1);
    }

    #[test]
    fn both_ends_carry_many_commands_without_mixing_them_up(
        steps in prop::collection::vec((HEADER_SIZE..=MAX_PACKET, any::<u8>(), 0u8..4), 1..30),
    ) {
        let page = TestPage::zeroed();
        let (mut idle, mut vacant) = (Idle::new(), Vacant::mapped());

        for (length, fill, way) in steps {
            let request = packet(length, fill);
            let submitted = idle.submit(&page, &Request::new(&request).unwrap(), fill % 5).unwrap();
            let Wish::Submitted(request_there) = vacant.look(&page) else {
                return Err(TestCaseError::fail("SUBMIT was not seen"));
            };
            let mut taken = vec![0; MAX_PACKET];
            let (working, particulars) = request_there.take(&page, &mut taken).unwrap();
            prop_assert_eq!(&taken[..particulars.length], &request[..]);
            prop_assert_eq!(particulars.locality, fill % 5);

            let response = packet(length, !fill);
            let mut into = vec![0; 4096];
            idle = match way {
                // Completed, and completed although it was cancelled.
                0 | 1 => {
                    let end = if way == 0 {
                        vacant = working.finish(&page, &response).0;
                        submitted.poll(&page).unwrap()
                    } else {
                        let cancelling = submitted.cancel(&page);
                        prop_assert!(working.is_cancelled(&page));
                        vacant = working.finish(&page, &response).0;
                        cancelling.poll(&page).unwrap()
                    };
                    let Completed::Finished(finished) = end else {
                        return Err(TestCaseError::fail("FINISH was not seen"));
                    };
                    let (idle, result) = finished.response(&page, &mut into);
                    prop_assert_eq!(result, Ok(length));
                    prop_assert_eq!(&into[..length], &response[..]);
                    idle
                }
                // Abandoned on demand.
                2 => {
                    let cancelling = submitted.cancel(&page);
                    vacant = working.abandon(&page);
                    let Completed::Abandoned(idle) = cancelling.poll(&page).unwrap() else {
                        return Err(TestCaseError::fail("IDLE was not seen"));
                    };
                    idle
                }
                // Cancelled in the very moment of its end: CANCEL overwrites FINISH.
                _ => {
                    vacant = working.finish(&page, &response).0;
                    let cancelling = submitted.cancel(&page);
                    let cancelling = cancelling.poll(&page).unwrap_err();
                    let Wish::CancelledNothing(still) = vacant.look(&page) else {
                        return Err(TestCaseError::fail("CANCEL was not seen"));
                    };
                    vacant = still;
                    let Completed::Abandoned(idle) = cancelling.poll(&page).unwrap() else {
                        return Err(TestCaseError::fail("IDLE was not seen"));
                    };
                    idle
                }
            };
            prop_assert!(page.payload_is_wiped());
        }
    }
}

/// The models take the timeouts from the code; these are the ones that are promised.
#[test]
fn the_timeouts_are_those_of_the_document() {
    let text = include_str!("../Documentation/security.rst");
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for promise in [
        format!(
            "its timeout and {} s for its cancel",
            CANCEL_TIMEOUT_MS / 1000
        ),
        format!(
            "the timeout is {} s to {} minutes, and {} s after",
            MIN_TIMEOUT_MS / 1000,
            MAX_TIMEOUT_MS / 60_000,
            SILENT_TIMEOUT_MS / 1000
        ),
    ] {
        assert!(text.contains(&promise), "no {promise:?}");
    }
}
