// SPDX-License-Identifier: GPL-2.0

//! A page that changes under its reader: bytes, and a script of what the other end writes where
//! after each access. Both ends of the wire have to bear it.

use std::cell::{Cell, RefCell};
use std::sync::atomic::Ordering;

use xen_tpm_protocol::backend::{Vacant, Wish};
use xen_tpm_protocol::frontend::{Completed, Idle, Submitted};
use xen_tpm_protocol::layout::{
    HEADER_SIZE as PAYLOAD, LENGTH, LOCALITY, MAX_PACKET, NR_EXTRA_PAGES, PAD, PAGE_SIZE, STATE,
};
use xen_tpm_protocol::packet::{Request, HEADER_SIZE};
use xen_tpm_protocol::{Memory, OutOfBounds};

/// How many bytes of the page come from the input; the rest is zero.
const GIVEN: usize = 24;

/// One write of the other end takes so much of the input: where (two bytes), and what.
const WRITE: usize = 3;

/// The page.
struct Changing<'a> {
    bytes: RefCell<[u8; PAGE_SIZE]>,
    script: RefCell<std::slice::ChunksExact<'a, u8>>,
    accesses: Cell<u64>,
}

impl<'a> Changing<'a> {
    fn new(data: &'a [u8]) -> Self {
        let (given, script) = data.split_at(data.len().min(GIVEN));
        let mut bytes = [0; PAGE_SIZE];

        bytes[..given.len()].copy_from_slice(given);
        Self {
            bytes: RefCell::new(bytes),
            script: RefCell::new(script.chunks_exact(WRITE)),
            accesses: Cell::new(0),
        }
    }

    /// After an access: the other end's turn.
    fn change(&self) {
        self.accesses.set(self.accesses.get() + 1);
        if let Some(&[low, high, value]) = self.script.borrow_mut().next() {
            let at = usize::from(u16::from_le_bytes([low, high])) % PAGE_SIZE;
            self.bytes.borrow_mut()[at] = value;
        }
    }

    fn get(&self, at: usize) -> u8 {
        let value = self.bytes.borrow()[at];
        self.change();
        value
    }

    fn put(&self, at: usize, value: u8) {
        self.bytes.borrow_mut()[at] = value;
        self.change();
    }

    /// Whether nothing but what the other end wrote since is in the payload.
    fn is_wiped(&self) -> bool {
        self.bytes.borrow()[PAYLOAD..]
            .iter()
            .all(|byte| *byte != 0x5a)
    }
}

impl Memory for Changing<'_> {
    fn load_acquire<const AT: usize>(&self) -> u8 {
        self.get(AT)
    }

    fn store_release<const AT: usize>(&self, value: u8) {
        self.put(AT, value);
    }

    fn load<const AT: usize>(&self) -> u8 {
        self.get(AT)
    }

    fn store<const AT: usize>(&self, value: u8) {
        self.put(AT, value);
    }

    fn load_le32<const AT: usize>(&self) -> u32 {
        let value = self.bytes.borrow()[AT..AT + 4].try_into().unwrap();
        self.change();
        u32::from_le_bytes(value)
    }

    fn store_le32<const AT: usize>(&self, value: u32) {
        self.bytes.borrow_mut()[AT..AT + 4].copy_from_slice(&value.to_le_bytes());
        self.change();
    }

    fn copy_from(&self, offset: usize, into: &mut [u8]) -> Result<(), OutOfBounds> {
        // Byte by byte, with the other end's turn between the first few.
        for (i, byte) in into.iter_mut().enumerate() {
            let at = offset.checked_add(i).filter(|at| *at < PAGE_SIZE);
            *byte = self.bytes.borrow()[at.expect("read out of the page")];
            if i < 8 {
                self.change();
            }
        }
        Ok(())
    }

    fn copy_to(&self, offset: usize, from: &[u8]) -> Result<(), OutOfBounds> {
        let end = offset
            .checked_add(from.len())
            .filter(|end| *end <= PAGE_SIZE);
        let end = end.ok_or(OutOfBounds)?;
        self.bytes.borrow_mut()[offset..end].copy_from_slice(from);
        self.change();
        Ok(())
    }

    fn zero(&self, offset: usize) -> Result<(), OutOfBounds> {
        self.bytes.borrow_mut()[offset..].fill(0);
        Ok(())
    }
}

/// Both ends, one after the other, on a page each.
pub(crate) fn page(data: &[u8]) {
    let (ends, data) = data.split_at(data.len().min(1));
    let page = Changing::new(data);

    match ends.first().is_some_and(|end| end % 2 == 1) {
        false => frontend(&page),
        true => backend(&page),
    }
    crate::STEPS.fetch_add(page.accesses.get(), Ordering::Relaxed);
}

/// A packet that is easily found again.
fn packet(length: usize) -> Vec<u8> {
    let mut packet = vec![0x5a; length];
    packet[2..6].copy_from_slice(&(length as u32).to_be_bytes());
    packet
}

/// Looks three times, then cancels and looks four times more. `None` when the page was given up.
fn end(page: &Changing<'_>, mut submitted: Submitted) -> Option<Completed> {
    for _ in 0..3 {
        submitted = match submitted.poll(page) {
            Ok(end) => return Some(end),
            Err(submitted) => submitted,
        };
    }
    let mut cancelling = submitted.cancel(page);
    for _ in 0..4 {
        cancelling = match cancelling.poll(page) {
            Ok(end) => return Some(end),
            Err(cancelling) => cancelling,
        };
    }
    cancelling.give_up_page(page);
    None
}

/// One command of a frontend.
fn frontend(page: &Changing<'_>) {
    let packet = packet(40);
    let Ok(submitted) = Idle::new().submit(page, &Request::new(&packet).unwrap(), 2) else {
        panic!("a page has room for 40 bytes");
    };

    if let Some(Completed::Finished(finished)) = end(page, submitted) {
        let mut into = [0xee; 4096];
        let (_idle, result) = finished.response(page, &mut into);

        match result {
            Ok(n) => {
                assert!((HEADER_SIZE..=MAX_PACKET).contains(&n));
                assert_eq!(into[2..6], (n as u32).to_be_bytes());
                assert!(
                    into[n..].iter().all(|byte| *byte == 0xee),
                    "more than the response"
                );
            }
            Err(_) => assert_eq!(into, [0; 4096]),
        }
    }
    assert!(page.is_wiped());
}

/// A backend that takes what there is, and answers it with the greatest packet there may be.
fn backend(page: &Changing<'_>) {
    let mut vacant = Vacant::mapped();

    for _ in 0..4 {
        vacant = match vacant.look(page) {
            Wish::Nothing(vacant) | Wish::CancelledNothing(vacant) => vacant,
            Wish::Submitted(request) => {
                let mut into = [0; MAX_PACKET];
                match request.take(page, &mut into) {
                    Ok((working, taken)) => {
                        assert!((HEADER_SIZE..=MAX_PACKET).contains(&taken.length));
                        assert_eq!(into[2..6], (taken.length as u32).to_be_bytes());
                        match working.is_cancelled(page) {
                            true => working.abandon(page),
                            false => working.finish(page, &packet(MAX_PACKET)).0,
                        }
                    }
                    Err((vacant, _refused)) => vacant,
                }
            }
        }
    }
}

const _: () = assert!(LENGTH + 4 <= STATE && LOCALITY < PAD && NR_EXTRA_PAGES < GIVEN);
