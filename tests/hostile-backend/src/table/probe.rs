// SPDX-License-Identifier: GPL-2.0

//! The behaviours that are met when the driver is bound.

use super::{edited, with};
use crate::behaviour::Kind::{Pcrs, Probe, Registration, SlowProbe};
use crate::behaviour::{Behaviour, Step, HONEST, IDLE};
use crate::edits::{self, Edit};

use Step::{HugeFeature, Node, Notify, Put, Remove, Run, State, Wait};

/// An entry that connects by these steps, which the driver must refuse.
pub(super) const fn connecting(
    name: &'static str,
    expect: &'static str,
    wrong: &'static str,
    steps: &'static [Step],
) -> Behaviour {
    Behaviour {
        name,
        kind: Probe,
        wrong,
        expect,
        connect: steps,
        ..HONEST
    }
}

/// An entry that treats all commands of a probe by these steps.
const fn probe(
    name: &'static str,
    expect: &'static str,
    wrong: &'static str,
    steps: &'static [Step],
) -> Behaviour {
    Behaviour {
        kind: Probe,
        ..edited(name, expect, wrong, steps)
    }
}

/// An entry that leaves a command of a probe without an answer: it takes the command's deadline.
const fn slow_probe(
    name: &'static str,
    wrong: &'static str,
    honest_first: usize,
    steps: &'static [Step],
) -> Behaviour {
    Behaviour {
        kind: SlowProbe,
        honest_first,
        cancel: None,
        ..edited(name, "none", wrong, steps)
    }
}

/// TPM_RC_RETRY.
const RETRY: Edit = edits::retry;

/// All of them.
pub(super) const PROBES: &[Behaviour] = &[
    connecting(
        "feature-missing",
        "none",
        "there is no feature-protocol-v2",
        &[Remove("feature-protocol-v2"), Node("state", "4")],
    ),
    connecting(
        "feature-0",
        "none",
        "feature-protocol-v2 is 0",
        &[Node("feature-protocol-v2", "0"), Node("state", "4")],
    ),
    connecting(
        "feature-2",
        "none",
        "feature-protocol-v2 is 2",
        &[Node("feature-protocol-v2", "2"), Node("state", "4")],
    ),
    connecting(
        "feature-huge",
        "none",
        "feature-protocol-v2 is 2,000 ones",
        &[HugeFeature, Node("state", "4")],
    ),
    connecting(
        "closing-at-once",
        "none",
        "Closing in place of Connected",
        &[Node("state", "5")],
    ),
    connecting(
        "closed-at-once",
        "none",
        "Closed in place of Connected",
        &[Node("state", "6")],
    ),
    connecting(
        "state-garbage-at-once",
        "none",
        "a word in place of Connected",
        &[Node("state", "Connected")],
    ),
    Behaviour {
        name: "never-connects",
        kind: Probe,
        expect: "none",
        wrong: "the backend stays in InitWait",
        deaf: true,
        ..HONEST
    },
    probe("probe-idle", "none", "IDLE for every command", IDLE),
    probe(
        "probe-failure",
        "device|none",
        "every command fails in the TPM",
        with!(edits::failure),
    ),
    probe(
        "probe-other-version",
        "device|none",
        "every answer is that of a TPM of the other version",
        with!(edits::other_version),
    ),
    probe(
        "probe-no-tag",
        "none",
        "every answer has a tag that no TPM has",
        with!(edits::no_tag),
    ),
    probe(
        "probe-short",
        "none",
        "every answer's header says one byte more",
        with!(edits::longer),
    ),
    probe(
        "banks-none",
        "device|none",
        "no PCR bank",
        with!(edits::no_banks),
    ),
    probe(
        "banks-many",
        "device|none",
        "600 PCR banks that nobody knows",
        with!(edits::many_banks),
    ),
    probe(
        "banks-endless",
        "device|none",
        "2^32 - 1 PCR banks, of which one is there",
        with!(edits::endless_banks),
    ),
    probe(
        "banks-long",
        "device|none",
        "a PCR selection of 255 bytes",
        with!(edits::long_bank),
    ),
    probe(
        "properties-absurd",
        "device|none",
        "the numbers of commands and properties are 2^32 - 1",
        with!(edits::absurd_properties),
    ),
    probe(
        "durations-endless",
        "device|none",
        "TPM 1.2: timeouts and durations of more than an hour",
        with!(edits::endless_durations),
    ),
    probe(
        "durations-none",
        "device|none",
        "TPM 1.2: timeouts and durations of a microsecond",
        with!(edits::no_durations),
    ),
    probe(
        "banks-wide",
        "device|none",
        "a PCR selection of four bytes, as a TPM with 32 PCRs has",
        with!(edits::wide_bank),
    ),
    Behaviour {
        kind: Pcrs,
        ..edited(
            "pcrs-many",
            "device|none",
            "TPM 1.2: there are 1,000 PCRs, and each can be read",
            with!(edits::many_pcrs),
        )
    },
    Behaviour {
        kind: Registration,
        ..edited(
            "probe-selftest",
            "none",
            "TPM 1.2: the self test is never done, and long durations are 71 minutes",
            with!(edits::endless_selftest),
        )
    },
    Behaviour {
        kind: Registration,
        ..edited(
            "probe-drip",
            "none",
            "each command is answered after 59 s",
            &[Run, Wait(59_000), Put, State(2), Notify(1)],
        )
    },
    Behaviour {
        kind: Registration,
        honest_first: 1,
        ..edited(
            "register-retry",
            "none",
            "from the second command on the TPM asks for every one again, for ever, after 20 s each time",
            &[
                Run,
                Step::Edit(RETRY),
                Wait(20_000),
                Put,
                State(2),
                Notify(1),
            ],
        )
    },
    slow_probe(
        "probe-silent",
        "connected, but no command gets an answer",
        0,
        &[],
    ),
    slow_probe(
        "probe-closing",
        "Closing at the first command",
        0,
        &[Node("state", "5")],
    ),
    slow_probe(
        "register-closing-early",
        "Closing at the third command, whose failure the TPM core takes for a TPM in failure mode",
        2,
        &[Node("state", "5")],
    ),
    slow_probe(
        "register-closing",
        "Closing at the fifth command",
        4,
        &[Node("state", "5")],
    ),
];
