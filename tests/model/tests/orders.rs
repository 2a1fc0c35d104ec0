// SPDX-License-Identifier: GPL-2.0

//! Both sides of the protocol and the wait context, in all orders that the memory model has for them:
//! loom runs them again and again, with every interleaving and every value that a load may see.
//! The backend here keeps to the protocol, and nothing but its own end limits a wait: a wake-up
//! that is lost is a deadlock, which loom finds.

use std::sync::atomic::AtomicU64;

use loom::model::Builder;
use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU8, Ordering};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

use xen_tpm_protocol::backend::{Vacant, Wish};
use xen_tpm_protocol::command::{
    CommandSlot, Failure, Flag, Flags, Jiffies, Transport, Wait, WaitContext,
};
use xen_tpm_protocol::layout::{LENGTH, LOCALITY, PAD, STATE};
use xen_tpm_protocol::packet::HEADER_SIZE;
use xen_tpm_protocol::{Memory, OutOfBounds, Page};

/// All packets here: a header, and a byte that says whose it is.
const PACKET: usize = HEADER_SIZE + 1;

/// A flag as in the kernel.
struct LoomFlag(AtomicBool);

impl Flag for LoomFlag {
    fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self, value: bool) {
        self.0.store(value, Ordering::Relaxed);
    }

    fn swap(&self, value: bool) -> bool {
        self.0.swap(value, Ordering::SeqCst)
    }
}

/// As the kernel's.
#[derive(Default)]
struct Completion {
    done: bool,
    /// The time is over, for good.
    over: bool,
}

/// A page, an event channel each way, and the wait context.
struct Wire {
    length: AtomicU32,
    state: AtomicU8,
    locality: AtomicU8,
    /// In place of a payload: the byte after the header.
    byte: AtomicU8,
    flags: Flags<LoomFlag>,
    completion: Mutex<Completion>,
    to_frontend: Condvar,
    /// How often the backend was notified and did not look yet, and whether it may end.
    notified: Mutex<(u32, bool)>,
    to_backend: Condvar,
}

impl Wire {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            length: AtomicU32::new(0),
            state: AtomicU8::new(0),
            locality: AtomicU8::new(0),
            byte: AtomicU8::new(0),
            flags: Flags::new(|| LoomFlag(AtomicBool::new(false))),
            completion: Mutex::new(Completion::default()),
            to_frontend: Condvar::new(),
            notified: Mutex::new((0, false)),
            to_backend: Condvar::new(),
        })
    }

    /// The byte field at `at`; nobody reads the pads.
    fn field(&self, at: usize) -> Option<&AtomicU8> {
        match at {
            STATE => Some(&self.state),
            LOCALITY => Some(&self.locality),
            _ => None,
        }
    }

    /// The backend notifies: the frontend's interrupt handler runs.
    fn interrupt(&self) {
        self.event(self.state());
    }

    /// The time of all waits is over.
    fn time_is_over(&self) {
        self.completion.lock().unwrap().over = true;
        self.to_frontend.notify_one();
    }

    /// Lets the backend end when it has nothing to do.
    fn no_more(&self) {
        self.notified.lock().unwrap().1 = true;
        self.to_backend.notify_one();
    }

    /// Sends `nonce`; the response is the one to it, or there is none.
    fn command(&self, slot: &mut CommandSlot, nonce: u8) -> Result<(), Failure> {
        let mut packet = [nonce; PACKET];
        let n = slot.transmit(self, &mut packet, PACKET, nonce, 1)?;

        assert_eq!(
            (n, packet[HEADER_SIZE]),
            (PACKET, !nonce),
            "not the response to this command"
        );
        Ok(())
    }

    /// A backend that keeps to the protocol. Whether it responds to a command that was cancelled is
    /// its own affair.
    fn backend(&self) {
        let mut vacant = Vacant::mapped();

        loop {
            vacant = match vacant.look(self) {
                Wish::Nothing(vacant) => {
                    let mut notified = self.notified.lock().unwrap();
                    while notified.0 == 0 {
                        if notified.1 {
                            return;
                        }
                        notified = self.to_backend.wait(notified).unwrap();
                    }
                    notified.0 = 0;
                    vacant
                }
                Wish::CancelledNothing(vacant) => {
                    self.interrupt();
                    vacant
                }
                Wish::Submitted(submitted) => {
                    let mut request = [0; PACKET];
                    let (working, taken) = submitted.take(self, &mut request).unwrap();
                    // A page that is given up is wiped, whoever still reads it.
                    assert!([taken.locality, 0].contains(&request[HEADER_SIZE]));

                    let vacant = if working.is_cancelled(self) {
                        working.abandon(self)
                    } else {
                        working.finish(self, &packet(!request[HEADER_SIZE])).0
                    };
                    self.interrupt();
                    vacant
                }
            }
        }
    }
}

/// A packet with a right header.
fn packet(byte: u8) -> [u8; PACKET] {
    let mut packet = [byte; PACKET];
    packet[2..6].copy_from_slice(&(PACKET as u32).to_be_bytes());
    packet
}

impl Memory for Wire {
    fn load_acquire<const AT: usize>(&self) -> u8 {
        self.field(AT)
            .map_or(0, |field| field.load(Ordering::Acquire))
    }

    fn store_release<const AT: usize>(&self, value: u8) {
        if let Some(field) = self.field(AT) {
            field.store(value, Ordering::Release);
        }
    }

    fn load<const AT: usize>(&self) -> u8 {
        self.field(AT)
            .map_or(0, |field| field.load(Ordering::Relaxed))
    }

    fn store<const AT: usize>(&self, value: u8) {
        if let Some(field) = self.field(AT) {
            field.store(value, Ordering::Relaxed);
        }
    }

    fn load_le32<const AT: usize>(&self) -> u32 {
        const { assert!(AT == LENGTH && PAD != AT) };
        self.length.load(Ordering::Relaxed)
    }

    fn store_le32<const AT: usize>(&self, value: u32) {
        self.length.store(value, Ordering::Relaxed);
    }

    fn copy_from(&self, _offset: usize, into: &mut [u8]) -> Result<(), OutOfBounds> {
        into.copy_from_slice(&packet(self.byte.load(Ordering::Relaxed))[..into.len()]);
        Ok(())
    }

    fn copy_to(&self, _offset: usize, from: &[u8]) -> Result<(), OutOfBounds> {
        self.byte.store(from[HEADER_SIZE], Ordering::Relaxed);
        Ok(())
    }

    fn zero(&self, _offset: usize) -> Result<(), OutOfBounds> {
        self.byte.store(0, Ordering::Relaxed);
        Ok(())
    }
}

impl WaitContext for Wire {
    type Flag = LoomFlag;

    fn flags(&self) -> &Flags<LoomFlag> {
        &self.flags
    }

    fn complete(&self) {
        self.completion.lock().unwrap().done = true;
        self.to_frontend.notify_one();
    }

    fn reinit(&self) {
        self.completion.lock().unwrap().done = false;
    }

    fn wait(&self, _limit: Jiffies, _killable: bool) -> Wait {
        let mut completion = self.completion.lock().unwrap();

        loop {
            if completion.done {
                completion.done = false;
                return Wait::Completed;
            }
            if completion.over {
                return Wait::TimedOut;
            }
            completion = self.to_frontend.wait(completion).unwrap();
        }
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

    fn notify(&self) {
        self.notified.lock().unwrap().0 += 1;
        self.to_backend.notify_one();
    }
}

/// Runs `scenario` with a backend beside it, in all orders with at most `preemptions` switches
/// from a thread that could go on.
fn all_orders(preemptions: usize, scenario: fn(&Arc<Wire>)) {
    let mut builder = Builder::new();
    let runs = std::sync::Arc::new(AtomicU64::new(0));
    let counter = runs.clone();

    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 100_000;
    builder.check(move || {
        counter.fetch_add(1, Ordering::Relaxed);
        let wire = Wire::new();
        let backend = {
            let wire = wire.clone();
            thread::spawn(move || wire.backend())
        };

        scenario(&wire);
        wire.no_more();
        backend.join().unwrap();
    });
    println!(
        "{} orders with {preemptions} preemptions",
        runs.load(Ordering::Relaxed)
    );
}

fn two_commands(wire: &Arc<Wire>) {
    let mut slot = CommandSlot::new();

    assert_eq!(wire.command(&mut slot, 1), Ok(()));
    assert_eq!(wire.command(&mut slot, 2), Ok(()));
}

/// Two commands, and beside them what `other` does, in a thread of its own.
fn beside(wire: &Arc<Wire>, other: fn(&Wire)) -> [Result<(), Failure>; 2] {
    let mut slot = CommandSlot::new();
    let other = {
        let wire = wire.clone();
        thread::spawn(move || other(&wire))
    };
    let first = wire.command(&mut slot, 1);
    let second = wire.command(&mut slot, 2);

    other.join().unwrap();
    [first, second]
}

fn a_cancel(wire: &Arc<Wire>) {
    for result in beside(wire, |wire| wire.cancel()) {
        assert!(
            matches!(result, Ok(()) | Err(Failure::Cancelled)),
            "{result:?}"
        );
    }
}

fn an_abort(wire: &Arc<Wire>) {
    let [first, second] = beside(wire, |wire| wire.abort());

    assert!(
        matches!(first, Ok(()) | Err(Failure::NoBackend)),
        "{first:?}"
    );
    assert!(
        matches!(second, Ok(()) | Err(Failure::NoBackend)),
        "{second:?}"
    );
    // Whoever aborted may rely on it.
    assert_eq!(
        wire.command(&mut CommandSlot::new(), 3),
        Err(Failure::NoBackend)
    );
}

fn a_time_out(wire: &Arc<Wire>) {
    for result in beside(wire, Wire::time_is_over) {
        assert!(
            matches!(result, Ok(()) | Err(Failure::TimedOut | Failure::NoBackend)),
            "{result:?}"
        );
    }
}

#[test]
fn responses_belong_to_their_commands_in_all_orders() {
    all_orders(3, two_commands);
}

#[test]
fn a_cancel_at_any_moment() {
    all_orders(1, a_cancel);
}

#[test]
fn an_abort_at_any_moment() {
    all_orders(1, an_abort);
}

#[test]
fn a_time_out_at_any_moment() {
    all_orders(1, a_time_out);
}

/// The accesses of `CommandControl` (src/channel.rs) to the time at which a shutdown began, and to
/// the flag: who sees the flag sees that time.
#[test]
fn a_shutdown_is_seen_with_its_time() {
    loom::model(|| {
        let shared = Arc::new((AtomicU32::new(0), AtomicBool::new(false)));
        let begins = {
            let shared = shared.clone();
            thread::spawn(move || {
                let (start, shutting_down) = &*shared;
                start.store(7, Ordering::Relaxed);
                shutting_down.swap(true, Ordering::SeqCst)
            })
        };
        let (start, shutting_down) = &*shared;

        if shutting_down.load(Ordering::Acquire) {
            assert_eq!(start.load(Ordering::Relaxed), 7);
        }
        begins.join().unwrap();
    });
}

#[test]
#[ignore = "takes minutes: for make test-deep"]
fn with_more_preemptions() {
    all_orders(4, two_commands);
    all_orders(2, a_cancel);
    all_orders(2, an_abort);
    all_orders(2, a_time_out);
}
