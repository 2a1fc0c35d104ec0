// SPDX-License-Identifier: GPL-2.0

//! Every backend: all that it can let the frontend see, within bounds, one after the other.

use xen_tpm_model::choice::{explore, Bytes};
use xen_tpm_model::world::{Bounds, World};
use xen_tpm_protocol::command::{CommandSlot, Failure, Jiffies};
use xen_tpm_protocol::layout::MAX_PACKET;
use xen_tpm_protocol::packet::{check_response_length, HEADER_SIZE};

/// Runs `commands` commands in every world that there is within the bounds, and returns how many
/// ended in which way.
fn every_world(commands: usize, bounds: Bounds) -> [u64; 7] {
    let mut seen = [0; 7];
    let mut steps = 0;
    let runs = explore(|choices| {
        let world = World::new(choices, bounds);
        let mut slot = CommandSlot::new();

        for _ in 0..commands {
            world.go_on(&mut slot);
            seen[kind(world.command(&mut slot, 64, 12, 0))] += 1;
        }
        steps += world.steps();
    });

    println!("{runs} worlds, {steps} steps, {commands} commands, {bounds:?}: {seen:?}");
    seen
}

fn kind(result: Result<usize, Failure>) -> usize {
    match result {
        Ok(_) => 0,
        Err(Failure::Request(_)) => 1,
        Err(Failure::NoBackend) => 2,
        Err(Failure::Cancelled) => 3,
        Err(Failure::TimedOut) => 4,
        Err(Failure::Interrupted) => 5,
        Err(Failure::Response(_)) => 6,
        Err(Failure::Restart) => panic!("a signal is none of the protocol's"),
    }
}

#[test]
fn one_command() {
    let seen = every_world(
        1,
        Bounds {
            restlessness: 2,
            ..Bounds::default()
        },
    );
    let more = every_world(
        1,
        Bounds {
            interventions: 1,
            restlessness: 1,
            ..Bounds::default()
        },
    );

    // All but a bad request.
    for kind in 0..7 {
        assert_eq!(seen[kind] + more[kind] > 0, kind != 1, "{kind}");
    }
}

#[test]
fn two_commands() {
    let bounds = Bounds {
        coarse: true,
        ..Bounds::default()
    };
    let seen = every_world(
        2,
        Bounds {
            interventions: 1,
            restlessness: 1,
            ..bounds
        },
    );

    assert_eq!(
        seen.map(|count| count > 0),
        [true, false, true, true, true, true, true]
    );
    every_world(
        2,
        Bounds {
            interventions: 2,
            ..bounds
        },
    );
}

#[test]
fn three_commands() {
    let bounds = Bounds {
        coarse: true,
        ..Bounds::default()
    };

    every_world(
        3,
        Bounds {
            interventions: 1,
            ..bounds
        },
    );
    every_world(
        3,
        Bounds {
            restlessness: 2,
            ..bounds
        },
    );
}

#[test]
#[ignore = "takes minutes: for make test-deep"]
fn with_wide_bounds() {
    let coarse = Bounds {
        coarse: true,
        ..Bounds::default()
    };

    every_world(
        1,
        Bounds {
            restlessness: 3,
            ..Bounds::default()
        },
    );
    every_world(
        1,
        Bounds {
            interventions: 1,
            restlessness: 2,
            ..Bounds::default()
        },
    );
    every_world(
        1,
        Bounds {
            interventions: 2,
            restlessness: 1,
            ..Bounds::default()
        },
    );
    every_world(
        2,
        Bounds {
            restlessness: 1,
            ..Bounds::default()
        },
    );
    every_world(
        2,
        Bounds {
            interventions: 2,
            restlessness: 1,
            ..coarse
        },
    );
    every_world(
        3,
        Bounds {
            interventions: 1,
            restlessness: 1,
            ..coarse
        },
    );
    every_world(
        3,
        Bounds {
            interventions: 2,
            ..coarse
        },
    );
    every_world(
        4,
        Bounds {
            interventions: 1,
            ..coarse
        },
    );
    every_world(
        4,
        Bounds {
            restlessness: 1,
            ..coarse
        },
    );
}

#[test]
fn a_backend_that_lets_nobody_sleep_holds_nobody_up() {
    explore(|choices| {
        let world = World::new(
            choices,
            Bounds {
                flicker: true,
                ..Bounds::default()
            },
        );
        let mut slot = CommandSlot::new();

        assert_eq!(world.command(&mut slot, 64, 12, 0), Err(Failure::TimedOut));
        assert!(slot.is_wedged());
    });
}

#[test]
fn a_silent_backend_costs_the_long_timeout_once() {
    let mut quiet = Bytes(&[]);
    let world = World::new(&mut quiet, Bounds::default());
    let mut slot = CommandSlot::new();

    // The world checks the timeouts: 60 s, and then 5 s until a command has a response.
    for _ in 0..3 {
        assert_eq!(world.command(&mut slot, 64, 12, 0), Err(Failure::TimedOut));
        world.reconnect_to(&mut slot);
    }
    assert_eq!(world.elapsed(), 60 + 5 + 5 + 5 + 5 + 5);
}

#[test]
fn durations_that_make_no_sense() {
    for duration in [
        0,
        1,
        59,
        60,
        61,
        599,
        600,
        601,
        Jiffies::MAX / 2,
        Jiffies::MAX,
    ] {
        explore(|choices| {
            let world = World::new(
                choices,
                Bounds {
                    coarse: true,
                    restlessness: 1,
                    ..Bounds::default()
                },
            );

            let _ = world.command(&mut CommandSlot::new(), 64, 12, duration);
        });
    }
}

#[test]
fn requests_of_all_lengths_in_buffers_of_all_sizes() {
    for room in [0, 1, 9, 10, 11, 4087, 4088, 4089, 4096] {
        for length in 0..=4100 {
            let mut quiet = Bytes(&[]);
            let world = World::new(&mut quiet, Bounds::default());
            let result = world.command(&mut CommandSlot::new(), room, length, 0);
            let fits = length >= HEADER_SIZE && length <= MAX_PACKET.min(room);

            assert_eq!(
                result == Err(Failure::TimedOut),
                fits,
                "{length} of {room}: {result:?}"
            );
        }
    }
}

/// All that the page's `length` can say, in buffers of all sizes: a length that is let pass is
/// within the page, and within the buffer.
fn lengths(lengths: impl Iterator<Item = u32>) {
    for length in lengths {
        for room in [0, 9, 10, 4087, 4088, 4096, usize::MAX] {
            match check_response_length(length, room) {
                Ok(n) => {
                    assert!(n as u64 == u64::from(length) && n >= 10 && n <= room && n <= 4088)
                }
                Err(_) => assert!(!(10..=4088).contains(&length) || room < length as usize),
            }
        }
    }
}

#[test]
fn no_length_leads_out_of_the_page() {
    lengths((0..1 << 20).chain((0..32).flat_map(|bit| (1u32 << bit)..(1 << bit) + 5000)));
}

#[test]
#[ignore = "takes a minute: for make test-deep"]
fn none_of_all_lengths_leads_out_of_the_page() {
    lengths(0..=u32::MAX);
}
