// SPDX-License-Identifier: GPL-2.0

//! The world's page: what is read from it is chosen, and what the frontend does with it is held
//! against the rules.

use xen_tpm_protocol::layout::{payload_offset, MAX_PACKET};
use xen_tpm_protocol::{HeaderField, OutOfBounds, Page, State};

use super::{Owner, World};

/// What the page's `state` may be read as: all that has a meaning, after the quiet one, and two
/// that have none.
const STATES: [u8; 6] = [1, 0, 2, 3, 4, 0x82];

/// What its `length` may be read as, with one that is no packet's among the first.
const LENGTHS: [u32; 10] = [10, 9, 11, 64, 4088, 0, 4089, 4096, 1 << 31, u32::MAX];

/// How much there is of each of these when it does not matter much which it is.
const FEW: usize = 2;

impl Page for World<'_> {
    fn state(&self) -> u8 {
        let mut command = self.access();
        assert!(
            matches!(self.owner.get(), Owner::Backend { .. }),
            "the page was the frontend's"
        );
        assert!(command.may_look, "the state is read twice in one step");
        command.may_look = false;

        let state = match self.bounds.flicker {
            true => STATES[0],
            false => STATES[self.choose_few(1 + FEW, STATES.len())],
        };
        if state == State::Idle as u8 || state == State::Finish as u8 {
            // Whatever the backend left there.
            self.dirty.set(true);
            self.owner.set(Owner::Frontend(State::from_wire(state)));
        }
        state
    }

    fn set_state(&self, value: u8) {
        let mut command = self.access();

        command.notifications_owed += 1;
        command.may_look = true;
        command.since = self.now.get();
        command.clock_read = false;
        match State::from_wire(value) {
            Some(State::Submit) => {
                assert!(
                    matches!(self.owner.get(), Owner::Frontend(_)),
                    "submitted before IDLE or FINISH was seen"
                );
                assert!(command.payload_written && command.length_written);
                assert_eq!(command.bytes_written, 3);
                self.owner.set(Owner::Backend { cancelled: false });
            }
            Some(State::Cancel) => {
                assert_eq!(self.owner.get(), Owner::Backend { cancelled: false });
                self.owner.set(Owner::Backend { cancelled: true });
                command.cancelled = true;
            }
            _ => panic!("the frontend writes state {value}"),
        }
    }

    fn byte(&self, field: HeaderField) -> u8 {
        panic!("{field:?} is the frontend's own: it does not ask the page");
    }

    fn set_byte(&self, field: HeaderField, value: u8) {
        let mut command = self.own();
        let right = if field == HeaderField::Locality {
            command.locality
        } else {
            0
        };

        assert_eq!(value, right, "{field:?}");
        command.bytes_written += 1;
    }

    fn length(&self) -> u32 {
        let mut command = self.access();

        assert_eq!(
            self.owner.get(),
            Owner::Frontend(Some(State::Finish)),
            "no response was announced"
        );
        assert_eq!(command.length_read, None, "length is read twice");
        let length = LENGTHS[self.choose_few(FEW, LENGTHS.len())];
        command.length_read = Some(length);
        length
    }

    fn set_length(&self, value: u32) {
        let mut command = self.own();

        assert_eq!(value as usize, command.request.len());
        command.length_written = true;
    }

    fn read(&self, offset: usize, into: &mut [u8]) -> Result<(), OutOfBounds> {
        let mut command = self.access();
        let length = into.len();

        assert_eq!(
            self.owner.get(),
            Owner::Frontend(Some(State::Finish)),
            "no response was announced"
        );
        assert_eq!(offset, payload_offset(0));
        assert!(length <= MAX_PACKET, "{length} bytes are out of the page");
        assert_eq!(
            Some(length as u32),
            command.length_read,
            "not the length that was checked"
        );
        assert!(command.response.is_none(), "the payload is read twice");

        let claimed = match self.choose_few(FEW, 4) {
            0 => length as u32,
            1 => length as u32 + 1,
            2 => 0,
            _ => u32::MAX,
        };
        into.fill(0xa5);
        into[2..6].copy_from_slice(&claimed.to_be_bytes());
        command.response = Some(into.to_vec());
        Ok(())
    }

    fn write(&self, offset: usize, from: &[u8]) -> Result<(), OutOfBounds> {
        let mut command = self.own();

        assert_eq!(offset, payload_offset(0));
        assert_eq!(from, command.request);
        command.payload_written = true;
        self.dirty.set(true);
        Ok(())
    }

    fn wipe(&self, offset: usize) -> Result<(), OutOfBounds> {
        let _command = self.access();

        assert_eq!(offset, payload_offset(0));
        match self.owner.get() {
            Owner::Frontend(_) => {}
            Owner::Backend { cancelled: true } => self.owner.set(Owner::GivenUp),
            owner => panic!("wiped while it is {owner:?}"),
        }
        self.dirty.set(false);
        Ok(())
    }
}
