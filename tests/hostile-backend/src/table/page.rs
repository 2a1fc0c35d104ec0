// SPDX-License-Identifier: GPL-2.0

//! What can be wrong with an answer, and with the page while a command runs.

use xen_tpm_protocol::HeaderField;

use super::{edited, with};
use crate::behaviour::{Behaviour, Step, HONEST};
use crate::edits::{self, Edit};

use Step::{Length, Notify, Poke, Put, Repeat, Run, State, States};

/// An entry whose answers have this length in the page.
const fn length(name: &'static str, wrong: &'static str, steps: &'static [Step]) -> Behaviour {
    Behaviour {
        name,
        wrong,
        expect: "self:EIO",
        submit: steps,
        ..HONEST
    }
}

/// The steps of an answer with a length.
macro_rules! sized {
    ($length:expr) => {
        &[Run, Put, Length($length), State(2), Notify(1)]
    };
}

/// About the page while a command runs.
pub(super) const PAGE: &[Behaviour] = &[
    length("length-0", "FINISH with length 0", sized!(0)),
    length("length-1", "FINISH with length 1", sized!(1)),
    length(
        "length-9",
        "FINISH with length 9, one less than a header",
        sized!(9),
    ),
    length(
        "length-4088",
        "FINISH with length 4,088, which is not the packet's own",
        sized!(4088),
    ),
    length(
        "length-4089",
        "FINISH with length 4,089, one more than there is room for",
        sized!(4089),
    ),
    length("length-2e31", "FINISH with length 2^31", sized!(1 << 31)),
    length(
        "length-max",
        "FINISH with length 2^32 - 1",
        sized!(u32::MAX),
    ),
    Behaviour {
        name: "length-changes",
        expect: "self:ok|self:EIO",
        wrong: "the length changes as fast as it goes after FINISH",
        always: &[Step::ScribbleLength],
        ..HONEST
    },
    Behaviour {
        name: "payload-changes",
        expect: "self:ok|self:more|self:code",
        wrong: "the answer's bytes change as fast as it goes after FINISH",
        always: &[Step::ScribblePayload],
        ..HONEST
    },
    Behaviour {
        name: "header-fields",
        expect: "self:ok",
        wrong: "locality, pad and nr_extra_pages are set to 255 all the time",
        always: &[
            Poke(HeaderField::Locality, 255),
            Poke(HeaderField::Pad, 255),
            Poke(HeaderField::NrExtraPages, 255),
        ],
        ..HONEST
    },
    Behaviour {
        name: "extra-pages",
        expect: "self:ok",
        wrong: "nr_extra_pages says 200 when the answer is there",
        submit: &[
            Run,
            Put,
            Poke(HeaderField::NrExtraPages, 200),
            State(2),
            Notify(1),
        ],
        ..HONEST
    },
    Behaviour {
        name: "states-4-to-255",
        expect: "cancel:ECANCELED",
        wrong: "the states 4 to 255 in turn, each with an event, and no answer",
        submit: &[States(4, 255)],
        ..HONEST
    },
    Behaviour {
        name: "submit-back",
        expect: "cancel:ECANCELED",
        wrong: "SUBMIT is written back again and again, with events, and no answer",
        submit: &[Repeat(50, &[State(1), Notify(1)])],
        ..HONEST
    },
    Behaviour {
        name: "cancel-back",
        expect: "cancel:ECANCELED self:ok",
        wrong: "CANCEL is written back, with events; the guest's own is ignored",
        commands: 1,
        submit: &[Repeat(50, &[State(3), Notify(1)])],
        cancel: None,
        ..HONEST
    },
    edited(
        "header-longer",
        "self:EIO",
        "the packet's header says one byte more than the page",
        with!(edits::longer),
    ),
    edited(
        "header-shorter",
        "self:EIO",
        "the packet's header says one byte less than the page",
        with!(edits::shorter),
    ),
    edited(
        "header-max",
        "self:EIO",
        "the packet's header says 2^32 - 1 bytes",
        with!(edits::longest),
    ),
    edited(
        "tpm-failure",
        "self:code",
        "every command fails in the TPM",
        with!(edits::failure),
    ),
    edited(
        "tpm-retry",
        "self:code|cancel:code",
        "the TPM asks for every command again, for ever",
        with!(edits::retry),
    ),
    edited(
        "random-more",
        "self:more",
        "GetRandom returns 64 bytes more than asked",
        with!(edits::more_random),
    ),
    edited(
        "random-boundless",
        "self:more|self:code",
        "GetRandom's size field says 2^16 - 1 (1.2: 2^32 - 1)",
        with!(edits::boundless_random),
    ),
];
