// SPDX-License-Identifier: GPL-2.0

//! A guest that writes anything at any time, and a TPM that says anything, against all that stands
//! between them. `make test-deep` sets XEN_VTPMD_STEPS to ten million.

use std::cell::{Cell, RefCell};
use std::io::Write;
use std::os::unix::net::UnixStream;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestError, TestRunner};
use xen_tpm_protocol::layout::{LOCALITY, MAX_PACKET, NR_EXTRA_PAGES, PAD, PAGE_SIZE, STATE};
use xen_tpm_protocol::packet::HEADER_SIZE;
use xen_tpm_protocol::{HeaderField, OutOfBounds, Page, State};

use super::inbox::Inbox;
use super::Request;
use crate::exchange::{Delivery, Exchange, Look};

/// Steps without `XEN_VTPMD_STEPS`, and steps of one case.
const STEPS: u32 = 100_000;
const CASE: u32 = 50;

/// A page that notes what the backend does with it; the guest changes it after any access.
struct Wild {
    bytes: RefCell<Box<[u8; PAGE_SIZE]>>,
    /// What the guest writes after the next accesses.
    plans: RefCell<Vec<(usize, u8)>>,
    /// What the backend read and wrote since it was last [`fresh`](Wild::fresh).
    reads: RefCell<Vec<&'static str>>,
    seen: Cell<Option<u8>>,
    shown: RefCell<Vec<u8>>,
}

impl Wild {
    fn new() -> Self {
        Self {
            bytes: RefCell::new(Box::new([0; PAGE_SIZE])),
            plans: RefCell::default(),
            reads: RefCell::default(),
            seen: Cell::new(None),
            shown: RefCell::default(),
        }
    }

    fn fresh(&self) {
        self.reads.borrow_mut().clear();
        self.shown.borrow_mut().clear();
        self.seen.set(None);
    }

    fn put(&self, at: usize, bytes: &[u8]) {
        let end = (at + bytes.len()).min(PAGE_SIZE);
        if at < end {
            self.bytes.borrow_mut()[at..end].copy_from_slice(&bytes[..end - at]);
        }
    }

    /// Notes an access, after which the guest has its turn.
    fn access(&self, read: Option<&'static str>) {
        if let Some(name) = read {
            let mut reads = self.reads.borrow_mut();
            assert!(!reads.contains(&name), "{name} is read twice");
            reads.push(name);
        }
        if let Some((at, value)) = self.plans.borrow_mut().pop() {
            self.put(at % PAGE_SIZE, &[value]);
        }
    }
}

impl Page for Wild {
    fn state(&self) -> u8 {
        let value = self.bytes.borrow()[STATE];
        self.seen.set(Some(value));
        self.access(Some("state"));
        value
    }
    fn set_state(&self, value: u8) {
        self.put(STATE, &[value]);
        self.shown.borrow_mut().push(value);
        self.access(None);
    }
    fn byte(&self, field: HeaderField) -> u8 {
        let (at, name) = match field {
            HeaderField::Locality => (LOCALITY, "locality"),
            HeaderField::Pad => (PAD, "pad"),
            HeaderField::NrExtraPages => (NR_EXTRA_PAGES, "nr_extra_pages"),
        };
        let value = self.bytes.borrow()[at];
        self.access(Some(name));
        value
    }
    fn set_byte(&self, _: HeaderField, _: u8) {
        panic!("the backend writes no such byte");
    }
    fn length(&self) -> u32 {
        let value = u32::from_le_bytes(self.bytes.borrow()[..4].try_into().unwrap());
        self.access(Some("length"));
        value
    }
    fn set_length(&self, value: u32) {
        self.put(0, &value.to_le_bytes());
        self.access(None);
    }
    fn read(&self, offset: usize, into: &mut [u8]) -> Result<(), OutOfBounds> {
        let end = offset.checked_add(into.len()).ok_or(OutOfBounds)?;
        into.copy_from_slice(self.bytes.borrow().get(offset..end).ok_or(OutOfBounds)?);
        self.access(Some("payload"));
        Ok(())
    }
    fn write(&self, offset: usize, from: &[u8]) -> Result<(), OutOfBounds> {
        match offset.checked_add(from.len()) {
            Some(end) if end <= PAGE_SIZE => self.put(offset, from),
            _ => return Err(OutOfBounds),
        }
        self.access(None);
        Ok(())
    }
    fn wipe(&self, _: usize) -> Result<(), OutOfBounds> {
        panic!("the backend leaves wiping to the guest");
    }
}

/// One step of anybody's.
#[derive(Clone, Debug)]
enum Step {
    /// The guest writes a byte, most often of the header.
    Write(usize, u8),
    /// The guest puts a well-formed request there, and perhaps says so.
    Request {
        len: usize,
        extra_pages: u8,
        submit: bool,
    },
    /// The guest writes these bytes while the backend works.
    Meddle(Vec<(usize, u8)>),
    /// The backend looks.
    Look,
    /// The TPM answers, with so many bytes, in pieces.
    Answer(usize, Vec<usize>),
    /// The TPM says anything.
    Babble(Vec<u8>),
    /// The daemon is killed, and its successor goes on.
    Restart,
}

fn steps() -> impl Strategy<Value = Step> {
    let place = prop_oneof![3 => 0usize..8, 2 => Just(STATE), 1 => 8usize..64, 1 => 0..PAGE_SIZE];
    let byte = prop_oneof![3 => 0u8..4, 1 => any::<u8>()];
    let write = (place, byte);
    let length = prop_oneof![HEADER_SIZE..=64, HEADER_SIZE..=MAX_PACKET];

    prop_oneof![
        3 => write.clone().prop_map(|(at, value)| Step::Write(at, value)),
        4 => (length.clone(), prop_oneof![3 => Just(0), 1 => any::<u8>()], any::<bool>()).prop_map(
            |(len, extra_pages, submit)| Step::Request { len, extra_pages, submit }),
        1 => prop::collection::vec(write, 1..8).prop_map(Step::Meddle),
        6 => Just(Step::Look),
        4 => (length, prop::collection::vec(1usize..2000, 0..3))
            .prop_map(|(len, pieces)| Step::Answer(len, pieces)),
        1 => prop::collection::vec(any::<u8>(), 1..40).prop_map(Step::Babble),
        1 => Just(Step::Restart),
    ]
}

/// The daemon's side of one vTPM, as `vtpm` has it, and what is known about it.
struct Daemon {
    page: Wild,
    exchange: Exchange,
    inbox: Inbox,
    ours: UnixStream,
    swtpm: UnixStream,
    /// The command that swtpm runs, and the one that the guest is owed an answer to.
    running: Option<u32>,
    owed: Option<u32>,
    commands: u32,
}

impl Daemon {
    fn new() -> Self {
        let (ours, swtpm) = UnixStream::pair().unwrap();
        Self {
            page: Wild::new(),
            exchange: Exchange::new(),
            inbox: Inbox::new(),
            ours,
            swtpm,
            running: None,
            owed: None,
            commands: 0,
        }
    }

    fn take(&mut self, step: Step) {
        self.page.fresh();
        match step {
            Step::Write(at, value) => self.page.put(at, &[value]),
            Step::Request {
                len,
                extra_pages,
                submit,
            } => {
                let length = (len as u32).to_be_bytes();
                self.page.put(0, &(len as u32).to_le_bytes());
                self.page.put(NR_EXTRA_PAGES, &[extra_pages]);
                self.page.put(8 + 4 * usize::from(extra_pages) + 2, &length);
                if submit {
                    self.page.put(STATE, &[State::Submit as u8]);
                }
            }
            Step::Meddle(plans) => *self.page.plans.borrow_mut() = plans,
            Step::Look => self.look(),
            Step::Answer(len, pieces) => self.answer(len, &pieces),
            Step::Babble(bytes) => self.babble(&bytes),
            Step::Restart => self.restart(),
        }
    }

    fn look(&mut self) {
        let look = self.exchange.look(&self.page, self.running.is_none());
        let seen = self.page.seen.get();
        let shown = self.page.shown.borrow().clone();
        const IDLE: [u8; 1] = [State::Idle as u8];

        match look {
            Look::Nothing => assert!(shown.is_empty()),
            Look::Cancelled => {
                assert_eq!((seen, shown), (Some(State::Cancel as u8), IDLE.into()));
                self.owed = None;
            }
            Look::Refused(_) => {
                assert_eq!((seen, shown), (Some(State::Submit as u8), IDLE.into()));
                assert_eq!(self.owed, None);
            }
            Look::Command { .. } => {
                assert_eq!((seen, shown), (Some(State::Submit as u8), vec![]));
                assert_eq!((self.owed, self.running), (None, None));
                let packet = self.exchange.command();
                assert!((HEADER_SIZE..=MAX_PACKET).contains(&packet.len()));
                assert_eq!(packet[2..6], (packet.len() as u32).to_be_bytes());
                self.commands += 1;
                self.owed = Some(self.commands);
                self.running = self.owed;
            }
        }
    }

    /// swtpm answers the command that it runs; the answer has the command's number in its code.
    fn answer(&mut self, len: usize, pieces: &[usize]) {
        let Some(number) = self.running.take() else {
            return;
        };
        let mut packet = vec![0x80; len];
        packet[2..6].copy_from_slice(&(len as u32).to_be_bytes());
        packet[6..10].copy_from_slice(&number.to_be_bytes());
        let mut rest = &packet[..];
        for piece in pieces.iter().chain([&len]) {
            let (now, later) = rest.split_at((*piece).min(rest.len()));
            if !now.is_empty() {
                self.swtpm.write_all(now).unwrap();
                let whole = self.inbox.fill(&self.ours).unwrap();
                assert_eq!(whole, later.is_empty());
            }
            rest = later;
        }
        let answer = self.inbox.packet();
        assert_eq!(answer, packet);

        let delivery = self.exchange.respond(&self.page, answer);
        let shown = self.page.shown.borrow().clone();
        match delivery {
            Delivery::Delivered => assert_eq!(shown, [State::Finish as u8]),
            Delivery::TooLong => assert_eq!(shown, [State::Idle as u8]),
            Delivery::Dropped => assert!(shown.is_empty()),
        }
        // Never the answer to a command that was cancelled.
        assert_eq!(delivery != Delivery::Dropped, self.owed == Some(number));
        self.inbox.wipe();
        self.owed = None;
    }

    /// What makes no sense is an error, and the end of this swtpm.
    fn babble(&mut self, bytes: &[u8]) {
        self.swtpm.write_all(bytes).unwrap();
        let whole = self.inbox.fill(&self.ours);
        let claimed = bytes
            .get(2..6)
            .map(|n| u32::from_be_bytes(n.try_into().unwrap()));
        let claimed = claimed.map_or(usize::MAX, |n| n as usize);
        if let Ok(true) = whole {
            assert!(claimed == bytes.len() && bytes.len() >= HEADER_SIZE);
        }
        self.inbox.wipe();
        for request in [
            Request::GetCapability,
            Request::SetBufferSize(9),
            Request::Init,
        ] {
            if let Some((_, taken)) = request.decode(bytes) {
                assert!(taken <= bytes.len());
            }
        }
        let owed = self.owed.take().is_some();
        assert_eq!(self.exchange.abandon(&self.page), owed);
        assert_eq!(self.page.shown.borrow().len(), usize::from(owed));
        self.running = None;
    }

    /// With a command under way the page is abandoned; else what is in it is new.
    fn restart(&mut self) {
        self.exchange = match self.running.take() {
            Some(_) => Exchange::interrupted(&self.page),
            None => Exchange::new(),
        };
        let asked = [Some(State::Submit as u8), Some(State::Cancel as u8)];
        assert_eq!(
            !self.page.shown.borrow().is_empty(),
            asked.contains(&self.page.seen.get())
        );
        self.owed = None;
    }
}

#[test]
fn fuzz() {
    let total = std::env::var("XEN_VTPMD_STEPS").map_or(STEPS, |n| n.parse().unwrap());
    let mut runner = TestRunner::new(Config {
        cases: total.div_ceil(CASE),
        failure_persistence: None,
        ..Config::default()
    });
    let case = prop::collection::vec(steps(), CASE as usize);
    let (commands, answered) = (Cell::new(0u64), Cell::new(0u64));

    let done = runner.run(&case, |case| {
        let mut daemon = Daemon::new();
        for step in case {
            let owed = daemon.owed.is_some() && matches!(step, Step::Answer(..));
            daemon.take(step);
            answered.set(answered.get() + u64::from(owed));
        }
        commands.set(commands.get() + u64::from(daemon.commands));
        Ok(())
    });
    match done {
        Ok(()) => (),
        Err(TestError::Fail(why, case)) => panic!("{why}\n{case:?}"),
        Err(e) => panic!("{e}"),
    }
    // Or it would have tried nothing.
    assert!(
        commands.get() > u64::from(total) / 100,
        "{} commands",
        commands.get()
    );
    assert!(
        answered.get() > u64::from(total) / 200,
        "{} answers",
        answered.get()
    );
}
