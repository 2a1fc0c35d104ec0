// SPDX-License-Identifier: GPL-2.0

//! What a fuzzer may feed: each target takes any bytes and panics when something is not as it has
//! to be. `tests/corpus.rs` runs them over the corpus, `main.rs` is the program for libFuzzer.

#![forbid(unsafe_code)]

mod page;

use std::sync::atomic::{AtomicU64, Ordering};

use xen_tpm_model::choice::{Bytes, Choices};
use xen_tpm_model::world::{Bounds, World};
use xen_tpm_protocol::command::{CommandSlot, Jiffies};
use xen_tpm_protocol::layout::MAX_PACKET;
use xen_tpm_protocol::packet::{
    check_response, check_response_length, claimed_length, Request, HEADER_SIZE,
};

/// Looks at the clock, waits, and accesses to a page so far.
pub static STEPS: AtomicU64 = AtomicU64::new(0);

/// A target.
pub type Target = fn(&[u8]);

/// All of them, by name.
pub const TARGETS: [(&str, Target); 3] = [
    ("exchange", exchange),
    ("page", page::page),
    ("packet", packet),
];

/// A few commands in a world that the input makes.
fn exchange(data: &[u8]) {
    let mut bytes = Bytes(data);
    let bounds = Bounds {
        interventions: bytes.choose(5) as u32,
        restlessness: bytes.choose(64) as u32,
        ..Bounds::default()
    };
    let commands = (0..1 + bytes.choose(6))
        .map(|_| {
            let length = [12, 10, 64, 9, 0, MAX_PACKET, MAX_PACKET + 1][bytes.choose(7)];
            let room = [4096, 64, 12, 10, 0][bytes.choose(5)];
            let duration = [0, 70, 601, Jiffies::MAX][bytes.choose(4)];
            (room, length, duration)
        })
        .collect::<Vec<_>>();
    let world = World::new(&mut bytes, bounds);
    let mut slot = CommandSlot::new();

    for (room, length, duration) in commands {
        world.go_on(&mut slot);
        let _ = world.command(&mut slot, room, length, duration);
    }
    STEPS.fetch_add(world.steps(), Ordering::Relaxed);
}

/// The functions that judge packets, over bytes that are one.
fn packet(data: &[u8]) {
    let fits = (HEADER_SIZE..=MAX_PACKET).contains(&data.len());

    match Request::new(data) {
        Ok(request) => {
            assert!(fits);
            assert_eq!(request.bytes(), data);
            assert_eq!(request.wire_length() as usize, data.len());
            assert_eq!(request.ordinal().to_be_bytes(), data[6..10]);
        }
        Err(_) => assert!(!fits),
    }
    assert_eq!(claimed_length(data).is_some(), data.len() >= HEADER_SIZE);
    if check_response(data).is_ok() {
        assert_eq!((data.len() as u32).to_be_bytes(), data[2..6]);
    }

    let number = |at: usize| {
        let mut bytes = [0; 4];
        for (to, from) in bytes.iter_mut().zip(data.iter().skip(at)) {
            *to = *from;
        }
        u32::from_le_bytes(bytes)
    };
    let (length, room) = (number(0), number(4) as usize);
    if let Ok(n) = check_response_length(length, room) {
        assert!(n == length as usize && n <= room && (HEADER_SIZE..=MAX_PACKET).contains(&n));
    }
    STEPS.fetch_add(4, Ordering::Relaxed);
}
