// SPDX-License-Identifier: GPL-2.0

//! The ways for a command to end after which the page is looked through for what was in it.

use super::with;
use crate::behaviour::Kind::Secret;
use crate::behaviour::{Behaviour, Step, ANSWER, HONEST, IDLE};
use crate::edits::{self, Edit};

use Step::Node;

/// About what is left in the page when a command is over.
pub(super) const SECRETS: &[Behaviour] = &[
    Behaviour {
        kind: Secret,
        name: "secret-answered",
        expect: "self:more",
        wrong: "nothing: the request is echoed as the answer",
        submit: with!(edits::echo),
        ..HONEST
    },
    Behaviour {
        kind: Secret,
        name: "secret-refused",
        expect: "self:EIO",
        wrong: "the request is echoed as an answer with a wrong length",
        submit: with!(edits::echo_longer),
        ..HONEST
    },
    Behaviour {
        kind: Secret,
        name: "secret-idle",
        expect: "self:ECANCELED",
        wrong: "IDLE for a command",
        submit: IDLE,
        ..HONEST
    },
    Behaviour {
        kind: Secret,
        name: "secret-cancelled",
        expect: "cancel:ECANCELED",
        wrong: "no answer; a cancel is answered",
        submit: &[],
        ..HONEST
    },
    Behaviour {
        kind: Secret,
        name: "secret-wedged",
        expect: "cancel:ECANCELED",
        wrong: "no answer, nor to a cancel; the page stays mapped",
        commands: 1,
        submit: &[],
        later: ANSWER,
        cancel: None,
        keep: true,
        ..HONEST
    },
    Behaviour {
        kind: Secret,
        name: "secret-closing",
        expect: "self:EPIPE",
        wrong: "Closing in the middle of a command; the page stays mapped",
        commands: 1,
        submit: &[Node("state", "5")],
        later: ANSWER,
        cancel: None,
        keep: true,
        ..HONEST
    },
];
