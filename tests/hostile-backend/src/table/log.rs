// SPDX-License-Identifier: GPL-2.0

//! The behaviours about the log of the guest's boot, which the driver reads when it registers a TPM 2.0.

use super::probe::connecting;
use crate::behaviour::{Behaviour, Kind, Step};

use Step::Node;

/// A header with SHA-256, and one event.
const GOOD: &str =
    "00000000030000000000000000000000000000000000000000000000210000005370656320494420\
    4576656e743033000000000000020002010000000b00200000040000000d000000010000000b0000\
    0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f070000006b65726e65\
    6c00";
/// The same, but the event's data ends 2 GiB behind the log.
const CUT: &str =
    "00000000030000000000000000000000000000000000000000000000210000005370656320494420\
    4576656e743033000000000000020002010000000b00200000040000000d000000010000000b0000\
    0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1fffffff7f6b65726e65\
    6c00";
/// A header that says that there are 2^32 - 1 algorithms.
const ALGORITHMS: &str =
    "00000000030000000000000000000000000000000000000000000000210000005370656320494420\
    4576656e743033000000000000020002ffffffff0b00200000";
/// A log of a TPM 1.2.
const OTHER: &str =
    "040000000d0000000000000000000000000000000000000000000000070000006b65726e656c00";

/// An entry with these nodes.
const fn log(
    name: &'static str,
    expect: &'static str,
    wrong: &'static str,
    steps: &'static [Step],
) -> Behaviour {
    Behaviour {
        kind: Kind::EventLog,
        ..connecting(name, expect, wrong, steps)
    }
}

/// The steps that show one node.
macro_rules! shown {
    ($text:expr) => {
        &[
            Node("feature-protocol-v2", "1"),
            Node("event-log/0", $text),
            Node("state", "4"),
        ]
    };
}

/// What the driver makes of a log that is none.
const REFUSED: &str = "device:none:said";

/// All of them.
pub(super) const LOGS: &[Behaviour] = &[
    log(
        "log-good",
        "device:log:silent",
        "nothing: the control with an event log",
        shown!(GOOD),
    ),
    log(
        "log-no-hex",
        REFUSED,
        "the event log is no hexadecimal text",
        shown!("no digits"),
    ),
    log(
        "log-cut",
        REFUSED,
        "an event of the log ends 2 GiB behind it",
        shown!(CUT),
    ),
    log(
        "log-algorithms",
        REFUSED,
        "the event log has 2^32 - 1 algorithms",
        shown!(ALGORITHMS),
    ),
    log(
        "log-other-version",
        REFUSED,
        "the event log is that of a TPM 1.2",
        shown!(OTHER),
    ),
    log(
        "log-in-pieces",
        REFUSED,
        "the event log's first node is shorter than those before the last may be",
        &[
            Node("feature-protocol-v2", "1"),
            Node("event-log/0", GOOD),
            Node("event-log/1", GOOD),
            Node("state", "4"),
        ],
    ),
];
