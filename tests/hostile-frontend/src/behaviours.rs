// SPDX-License-Identifier: GPL-2.0

//! The ways to be a bad frontend. Each goes on until its time is over, and returns how often it did
//! what it does.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use xen_tpm_protocol::layout::{
    payload_offset, GRANT_REF_SIZE, HEADER_SIZE, LENGTH, MAX_PACKET, NODE_EVENT_CHANNEL,
    NODE_FEATURE, NODE_RING_REF, PAGE_SIZE,
};

use crate::frontend::{Frontend, Result};
use crate::random::Random;
use crate::sys::{Port, SharedPage};

/// How many reconnections there are at most.
const RECONNECTS: u64 = 1000;

/// A good TPM 2.0 command, for garbage to be near to: GetRandom of eight bytes.
const GOOD: [u8; 12] = [0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x7b, 0, 8];

/// Values that are wrong in a node that should have a number.
const NONSENSE: [&[u8]; 12] = [
    b"",
    b"-1",
    b"+4",
    b" 4",
    b"4 ",
    b"04",
    b"4\n",
    b"99999999999999999999",
    b"4294967296",
    b"\xff\xfe\x80",
    b"4\x004",
    b"/local/domain/0/backend",
];

/// A behaviour: until when, and by which numbers.
type Behaviour = fn(&mut Frontend, Instant, &mut Random) -> Result<u64>;

/// All of them, by name.
const ALL: [(&str, Behaviour); 8] = [
    ("page", page),
    ("extra", extra),
    ("events", events),
    ("garbage", garbage),
    ("grants", grants),
    ("states", states),
    ("reconnects", reconnects),
    ("removal", removal),
];

/// Behaves as `name` says; `random` takes them in turn, for a second or two each.
pub(crate) fn behave(name: &str, seconds: u64, seed: u64) -> Result<()> {
    let mut frontend = Frontend::new()?;
    let mut random = Random::new(seed);
    let end = Instant::now() + Duration::from_secs(seconds);
    let turn = |behaviour: Behaviour, name, until, frontend: &mut Frontend, random: &mut Random| {
        let count = behaviour(frontend, until, random).map_err(|e| format!("{name}: {e}"))?;
        println!("{name}: {count}");
        Result::Ok(())
    };

    if name == "random" {
        while Instant::now() < end {
            let (name, behaviour) = random.one_of(&ALL);
            let span = Duration::from_millis(500 + random.next() % 1500);
            let until = end.min(Instant::now() + span);
            turn(behaviour, name, until, &mut frontend, &mut random)?;
        }
    } else {
        let known = ALL.iter().find(|(known, _)| *known == name);
        let (name, behaviour) = *known.ok_or_else(|| {
            let names: Vec<&str> = ALL.iter().map(|(name, _)| *name).collect();
            format!(
                "no behaviour {name}: there are random, {}",
                names.join(", ")
            )
        })?;
        turn(behaviour, name, end, &mut frontend, &mut random)?;
    }
    // A backend that still serves a good frontend has taken no harm.
    frontend.connect()?;
    frontend.set_state(0);
    frontend.submit(&GOOD, GOOD.len() as u32, 0, 0);
    match frontend.wait(Duration::from_secs(20)) {
        true => println!("then a good command was answered"),
        false => return Err(format!("a good command ended in state {}", frontend.state()).into()),
    }
    Ok(())
}

/// Changes the page's header while the backend reads it, by one thread, and sends events by another.
fn page(frontend: &mut Frontend, until: Instant, random: &mut Random) -> Result<u64> {
    frontend.connect()?;
    let over = AtomicBool::new(false);
    let mut count = 0;

    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                frontend.port.notify();
                thread::yield_now();
            }
        });
        while Instant::now() < until {
            // Good lengths as well, so that some requests get to the TPM and change on the way.
            let packet = match random.below(3) {
                0 => GOOD.to_vec(),
                1 => with_header(random, 64),
                _ => random.bytes(10),
            };
            let extra = random.one_of(&[0, 0, 1, 255, 254]);
            frontend.submit(&packet, packet.len() as u32, random.next() as u8, extra);
            for _ in 0..random.below(50) {
                frontend.poke(LENGTH + random.below(8), random.next() as u8);
            }
            frontend.set_state(random.one_of(&[0, 1, 1, 1, 2, 3, 4, 255]));
            frontend.poke(8 + random.below(10), random.next() as u8);
            count += 1;
        }
        over.store(true, Ordering::Relaxed);
    });
    settle(frontend);
    frontend.disconnect()?;
    Ok(count)
}

/// Announces extra pages by references that lead nowhere. As odd as that is, it is allowed: the packet is
/// behind the references, and so is the answer.
fn extra(frontend: &mut Frontend, until: Instant, random: &mut Random) -> Result<u64> {
    const PATIENCE: Duration = Duration::from_secs(20);
    frontend.connect()?;
    let mut count = 0;
    while Instant::now() < until {
        let extra = random.one_of(&[0, 1, 2, 100, 254, 255]);
        let references = random.bytes(GRANT_REF_SIZE * usize::from(extra));
        for (i, byte) in references.iter().enumerate() {
            frontend.poke(HEADER_SIZE + i, *byte);
        }
        let wrong = |what: String| Err(format!("with {extra} extra pages {what}").into());

        frontend.submit(&GOOD, GOOD.len() as u32, 0, extra);
        if !frontend.wait(PATIENCE) {
            return wrong(format!("there is no answer: state {}", frontend.state()));
        }
        let answer = frontend.answer(extra);
        if answer.len() != 20 || answer[..10] != [0x80, 1, 0, 0, 0, 20, 0, 0, 0, 0] {
            return wrong(format!("the answer is {answer:02x?}"));
        }
        if frontend.bytes(HEADER_SIZE, references.len()) != references {
            return wrong("the references were changed".into());
        }
        // The longest request that fits is answered, if only by an error; one that is longer is not.
        let room = PAGE_SIZE - payload_offset(extra);
        for (length, answered) in [(room, true), (room + 1, false)] {
            let mut packet = GOOD.to_vec();
            packet.resize(length, 0);
            packet[2..6].copy_from_slice(&(length as u32).to_be_bytes());
            frontend.submit(&packet, length as u32, 0, extra);
            if frontend.wait(PATIENCE) != answered {
                let state = frontend.state();
                return wrong(format!("{length} bytes end in state {state}"));
            }
        }
        count += 1;
    }
    frontend.disconnect()?;
    Ok(count)
}

/// Sends events as fast as it can, and no command.
fn events(frontend: &mut Frontend, until: Instant, _: &mut Random) -> Result<u64> {
    frontend.connect()?;
    let mut count = 0;
    while Instant::now() < until {
        for _ in 0..1000 {
            frontend.port.notify();
        }
        count += 1000;
    }
    frontend.disconnect()?;
    Ok(count)
}

/// Sends requests of all lengths that no TPM knows, one after the other.
fn garbage(frontend: &mut Frontend, until: Instant, random: &mut Random) -> Result<u64> {
    frontend.connect()?;
    let mut count = 0;
    while Instant::now() < until {
        let packet = match random.below(4) {
            0 => {
                let length = random.below(PAGE_SIZE);
                random.bytes(length)
            }
            _ => with_header(random, MAX_PACKET),
        };
        let length = match random.below(4) {
            0 => random.next() as u32,
            _ => packet.len() as u32,
        };
        frontend.submit(&packet, length, random.one_of(&[0, 0, 0, 4, 5, 255]), 0);
        if random.below(8) == 0 {
            frontend.set_state(3);
            frontend.port.notify();
        } else {
            frontend.wait(Duration::from_millis(50));
        }
        count += 1;
    }
    settle(frontend);
    frontend.disconnect()?;
    Ok(count)
}

/// Publishes grants and ports that are wrong, another's, or no more there.
fn grants(frontend: &mut Frontend, until: Instant, random: &mut Random) -> Result<u64> {
    let mut count = 0;
    while Instant::now() < until {
        let good = (
            frontend.page.grant.to_string(),
            frontend.port.number.to_string(),
        );
        let number = |random: &mut Random| match random.below(4) {
            0 => (random.next() as u32).to_string(),
            1 => u32::MAX.to_string(),
            _ => random.below(64).to_string(),
        };
        let (grant, port) = match random.below(6) {
            0 => (number(random), good.1),
            1 => (good.0, number(random)),
            2 => (number(random), number(random)),
            // Granted to a domain that is not the backend's, and a port for it.
            3 => {
                let other = frontend.domid + 7;
                let page = SharedPage::new(other).map(|page| page.grant).unwrap_or(8);
                let port = Port::new(other).map(|port| port.number).unwrap_or(8);
                (page.to_string(), port.to_string())
            }
            // Taken back before, or while, the backend looks.
            _ => {
                let page = SharedPage::new(frontend.domid)?;
                let port = Port::new(frontend.domid)?;
                let names = (page.grant.to_string(), port.number.to_string());
                if random.below(2) == 0 {
                    frontend.publish(names.0.as_bytes(), names.1.as_bytes());
                    frontend.show(3);
                    thread::sleep(Duration::from_millis(random.next() % 20));
                }
                names
            }
        };
        frontend.publish(grant.as_bytes(), port.as_bytes());
        frontend.show(3);
        thread::sleep(Duration::from_millis(random.next() % 20));
        if random.below(2) == 0 {
            frontend.show(5);
            frontend.show(6);
        }
        count += 1;
    }
    Ok(count)
}

/// Shows states in any order, and values that are none.
fn states(frontend: &mut Frontend, until: Instant, random: &mut Random) -> Result<u64> {
    let mut count = 0;
    while Instant::now() < until {
        let node = match random.below(8) {
            0 => NODE_RING_REF,
            1 => NODE_EVENT_CHANNEL,
            2 => NODE_FEATURE,
            _ => "state",
        };
        match random.below(3) {
            0 => frontend.write(node, random.one_of(&NONSENSE)),
            1 => {
                let length = random.below(2048);
                frontend.write(node, &random.bytes(length))
            }
            _ => frontend.show(random.below(9) as u8),
        };
        count += 1;
    }
    Ok(count)
}

/// Connects and disconnects, with new pages and ports now and then, and not always in order.
fn reconnects(frontend: &mut Frontend, until: Instant, random: &mut Random) -> Result<u64> {
    let mut count = 0;
    while Instant::now() < until && count < RECONNECTS {
        frontend.connect()?;
        if random.below(4) == 0 {
            let packet = with_header(random, 64);
            frontend.submit(&packet, packet.len() as u32, 0, 0);
        }
        if random.below(8) == 0 {
            frontend.page = SharedPage::new(frontend.domid)?;
            frontend.port = Port::new(frontend.domid)?;
        }
        match random.below(3) {
            0 => frontend.disconnect()?,
            // Closed without Closing.
            1 => drop(frontend.show(6)),
            // New particulars while connected are taken by `connect` in the next round.
            _ => (),
        }
        count += 1;
    }
    Ok(count)
}

/// Removes its nodes while the backend looks at them, and puts them back. Not the folder itself: only
/// the toolstack could make it again.
fn removal(frontend: &mut Frontend, until: Instant, random: &mut Random) -> Result<u64> {
    let nodes = [
        NODE_RING_REF,
        NODE_EVENT_CHANNEL,
        NODE_FEATURE,
        "state",
        "backend",
        "backend-id",
    ];
    let mut count = 0;
    while Instant::now() < until {
        let node = random.one_of(&nodes);
        if random.below(4) == 0 {
            frontend.connect()?;
        }
        let value = frontend.value(node);
        frontend.remove(node);
        thread::sleep(Duration::from_millis(random.next() % 5));
        if let Some(value) = value {
            frontend.write(node, value.as_bytes());
        }
        count += 1;
    }
    Ok(count)
}

/// A request with a header that fits it, and garbage behind.
fn with_header(random: &mut Random, limit: usize) -> Vec<u8> {
    let length = 10 + random.below(limit - 9);
    let mut packet = random.bytes(length);
    packet[..2].copy_from_slice(&random.one_of(&[[0x80, 1], [0x80, 2], [0, 0xc1]]));
    packet[2..6].copy_from_slice(&(length as u32).to_be_bytes());
    // The first two bytes of a known command are zero.
    packet[6..8].copy_from_slice(&[0, 0]);
    packet[8] &= 1;
    packet
}

/// Gives the backend what it may still wait for.
fn settle(frontend: &Frontend) {
    frontend.set_state(3);
    frontend.port.notify();
    thread::sleep(Duration::from_millis(50));
    frontend.set_state(0);
}
