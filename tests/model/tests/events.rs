// SPDX-License-Identifier: GPL-2.0

//! Which events of the backend count as ones without a reason. A backend that keeps to the protocol
//! sends one for each SUBMIT that it completes and one for each CANCEL, and none of these is
//! spurious, also when it comes late.

use std::cell::{Cell, RefCell};

use xen_tpm_model::world::PlainFlag;
use xen_tpm_protocol::command::{
    CommandSlot, Failure, Flags, Jiffies, Transport, Wait, WaitContext,
};
use xen_tpm_protocol::packet::HEADER_SIZE;
use xen_tpm_protocol::{HeaderField, OutOfBounds, Page, State};

/// What happens while the frontend waits.
type Script = fn(&Wire);

/// A page whose one packet is a header, and a script with a step for each wait.
struct Wire {
    state: Cell<u8>,
    flags: Flags<PlainFlag>,
    script: RefCell<Vec<Script>>,
    /// Runs when the frontend is about to write CANCEL.
    before_cancel: Cell<Option<Script>>,
    spurious: Cell<u32>,
}

impl Wire {
    fn new(script: &[Script]) -> Self {
        Self {
            state: Cell::new(0),
            flags: Flags::new(PlainFlag::default),
            script: RefCell::new(script.iter().rev().copied().collect()),
            before_cancel: Cell::new(None),
            spurious: Cell::new(0),
        }
    }

    fn set(&self, state: State) {
        self.state.set(state as u8);
    }

    /// The backend's event is delivered.
    fn interrupt(&self) {
        if !self.event(self.state.get()) {
            self.spurious.set(self.spurious.get() + 1);
        }
    }

    fn command(&self, slot: &mut CommandSlot) -> Result<usize, Failure> {
        slot.transmit(self, &mut [0; HEADER_SIZE], HEADER_SIZE, 0, 0)
    }
}

impl Page for Wire {
    fn state(&self) -> u8 {
        self.state.get()
    }

    fn set_state(&self, value: u8) {
        if value == State::Cancel as u8 {
            if let Some(script) = self.before_cancel.take() {
                script(self);
            }
        }
        self.state.set(value);
    }

    fn byte(&self, _field: HeaderField) -> u8 {
        0
    }

    fn set_byte(&self, _field: HeaderField, _value: u8) {}

    fn length(&self) -> u32 {
        HEADER_SIZE as u32
    }

    fn set_length(&self, _value: u32) {}

    fn read(&self, _offset: usize, into: &mut [u8]) -> Result<(), OutOfBounds> {
        into.fill(0);
        into[5] = HEADER_SIZE as u8;
        Ok(())
    }

    fn write(&self, _offset: usize, _from: &[u8]) -> Result<(), OutOfBounds> {
        Ok(())
    }

    fn wipe(&self, _offset: usize) -> Result<(), OutOfBounds> {
        Ok(())
    }
}

impl WaitContext for Wire {
    type Flag = PlainFlag;

    fn flags(&self) -> &Flags<PlainFlag> {
        &self.flags
    }

    fn complete(&self) {}

    fn reinit(&self) {}

    fn wait(&self, _timeout: Jiffies, _killable: bool) -> Wait {
        let script = self.script.borrow_mut().pop().expect("no more waits");

        script(self);
        Wait::Completed
    }

    fn jiffies(_ms: u32) -> Jiffies {
        1
    }

    fn now(&self) -> Jiffies {
        0
    }
}

impl Transport for Wire {
    type Page = Self;
    type Context = Self;

    fn page(&self) -> &Self {
        self
    }

    fn context(&self) -> &Self {
        self
    }

    fn notify(&self) {}
}

fn finish(wire: &Wire) {
    wire.set(State::Finish);
    wire.interrupt();
}

#[test]
fn ordinary_events_are_expected() {
    let wire = Wire::new(&[finish, finish, finish]);
    let mut slot = CommandSlot::new();

    for _ in 0..3 {
        assert_eq!(wire.command(&mut slot), Ok(HEADER_SIZE));
    }
    assert_eq!(wire.spurious.get(), 0);
    // Nothing is owed.
    wire.interrupt();
    assert_eq!(wire.spurious.get(), 1);
}

#[test]
fn an_event_behind_the_response_is_late_but_not_spurious() {
    // The response is there when a cancel wakes the waiter; the event comes afterwards.
    let wire = Wire::new(&[|wire| wire.set(State::Finish)]);
    let mut slot = CommandSlot::new();

    assert_eq!(wire.command(&mut slot), Ok(HEADER_SIZE));
    wire.interrupt();
    assert_eq!(wire.spurious.get(), 0);
    wire.interrupt();
    assert_eq!(wire.spurious.get(), 1);
}

#[test]
fn an_event_whose_response_cancel_overwrites_is_not_spurious() {
    let wire = Wire::new(&[
        |wire| wire.cancel(),
        |wire| {
            // That of the response, and then the backend's to CANCEL.
            wire.interrupt();
            wire.set(State::Idle);
            wire.interrupt();
        },
    ]);
    let mut slot = CommandSlot::new();

    wire.before_cancel.set(Some(|wire| wire.set(State::Finish)));
    assert_eq!(wire.command(&mut slot), Err(Failure::Cancelled));
    assert_eq!(wire.spurious.get(), 0);
    wire.interrupt();
    assert_eq!(wire.spurious.get(), 1);
}

#[test]
fn an_event_behind_the_next_submit_is_late_but_not_spurious() {
    // The backend is held up between FINISH and its event, and the frontend polls the page.
    let wire = Wire::new(&[
        |wire| wire.set(State::Finish),
        |wire| {
            wire.interrupt();
            finish(wire);
        },
    ]);
    let mut slot = CommandSlot::new();

    assert_eq!(wire.command(&mut slot), Ok(HEADER_SIZE));
    assert_eq!(wire.command(&mut slot), Ok(HEADER_SIZE));
    assert_eq!(wire.spurious.get(), 0);
    wire.interrupt();
    assert_eq!(wire.spurious.get(), 1);
}
