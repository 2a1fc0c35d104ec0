// SPDX-License-Identifier: GPL-2.0

//! What can be wrong while the driver is unbound, the guest saved or restored, or a connection comes late.

use crate::behaviour::Kind::{BusyUnbind, Detach, Late, Restore, Suspend, Unbind, Watch};
use crate::behaviour::{Behaviour, Step, HONEST, IDLE};

use Step::{Node, Notify, State, Wait};

/// All of them.
pub(super) const LIFE: &[Behaviour] = &[
    Behaviour {
        kind: Unbind,
        name: "unbind-idle",
        expect: "unbound",
        wrong: "IDLE for every command while the driver is unbound",
        submit: IDLE,
        ..HONEST
    },
    Behaviour {
        kind: Unbind,
        name: "unbind-deaf",
        expect: "unbound",
        wrong: "the backend takes no notice of Closing and Closed, and keeps the page, while the driver is unbound",
        deaf: true,
        ..HONEST
    },
    Behaviour {
        kind: Unbind,
        name: "unbind-silent",
        expect: "unbound",
        wrong: "no command gets an answer, nor does a cancel, while the driver is unbound",
        submit: &[],
        cancel: None,
        ..HONEST
    },
    Behaviour {
        kind: Unbind,
        name: "unbind-dead",
        expect: "unbound",
        wrong: "neither a command nor a cancel, nor Closing and Closed, gets an answer, while the driver is unbound",
        submit: &[],
        cancel: None,
        deaf: true,
        ..HONEST
    },
    Behaviour {
        kind: BusyUnbind,
        name: "unbind-busy",
        expect: "unbound",
        wrong: "a command is abandoned only 4 s after its cancel, while the driver is unbound: a page that is closed \
                before that faults in mini-os",
        commands: 1,
        submit: &[],
        cancel: Some(&[Wait(4000), State(0), Notify(1)]),
        ..HONEST
    },
    Behaviour {
        kind: Detach,
        name: "detach-stays",
        expect: "gone",
        wrong: "the backend goes to InitWait where the toolstack has said that the device is to go",
        stays: true,
        ..HONEST
    },
    Behaviour {
        kind: Suspend,
        name: "suspend-closing",
        expect: "self:EPIPE|self:ok self:ok",
        wrong: "Closing while the guest is being saved",
        start: &[Node("state", "5"), Wait(500)],
        ..HONEST
    },
    Behaviour {
        kind: Restore,
        name: "restore-deaf",
        expect: "cancel:ECANCELED",
        wrong: "the backend of a restored guest stays in InitWait",
        deaf: true,
        ..HONEST
    },
    Behaviour {
        kind: Late,
        name: "late-silent",
        expect: "prompt",
        wrong: "a TPM that is not registered yet connects, and gives no command an answer",
        submit: &[],
        cancel: None,
        ..HONEST
    },
    Behaviour {
        kind: Watch,
        name: "connected-again",
        expect: "prompt",
        wrong: "Connected is shown again while a command runs that gets no answer",
        submit: &[Node("state", "4")],
        cancel: None,
        ..HONEST
    },
    Behaviour {
        kind: Watch,
        name: "initwait-again",
        expect: "prompt",
        wrong: "InitWait is shown while a command runs that gets no answer",
        submit: &[Node("state", "2")],
        cancel: None,
        ..HONEST
    },
];
