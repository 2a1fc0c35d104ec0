// SPDX-License-Identifier: GPL-2.0

//! What can be wrong in xenstore and with connections while the driver is bound.

use super::with;
use crate::behaviour::Kind::{Bus, Command, Reconnects, Stale};
use crate::behaviour::{Behaviour, Step, HONEST};
use crate::edits::{self, Edit};

use Step::{Node, Notify, Put, Remove, Repeat, Run, State, Wait};

/// About xenstore and connections.
pub(super) const XENSTORE: &[Behaviour] = &[
    Behaviour {
        kind: Bus,
        name: "restart",
        expect: "self:EPIPE|self:ok self:ok",
        wrong: "nothing: the backend is started anew, and says Closing and InitWait",
        start: &[Node("state", "5"), Wait(300)],
        ..HONEST
    },
    Behaviour {
        kind: Bus,
        name: "state-order",
        expect: "self:ok|self:EPIPE",
        wrong: "the backend's state is every one in an order that makes no sense, with no pause and with pauses",
        start: &[
            Repeat(3, &[
                Node("state", "1"), Node("state", "3"), Node("state", "6"), Node("state", "4"),
                Node("state", "2"), Node("state", "5"), Node("state", "3"), Node("state", "2"),
            ]),
            Node("state", "6"), Wait(200), Node("state", "4"), Wait(200), Node("state", "1"), Wait(200),
            Node("state", "5"), Wait(200), Node("state", "3"), Wait(200),
        ],
        ..HONEST
    },
    Behaviour {
        kind: Bus,
        name: "state-garbage",
        expect: "self:ok|self:EPIPE",
        wrong: "the backend's state is 0, 7, 8, 9, -1, empty, 2^32 + 4, a word",
        start: &[
            Node("state", "0"), Wait(150), Node("state", "7"), Wait(150), Node("state", "8"), Wait(150),
            Node("state", "9"), Wait(150), Node("state", "-1"), Wait(150), Node("state", ""), Wait(150),
            Node("state", "4294967300"), Wait(150), Node("state", "Connected"), Wait(150),
        ],
        ..HONEST
    },
    Behaviour {
        kind: Command,
        name: "state-unknown",
        expect: "self:ok",
        wrong: "the backend's state is 0, 7, 8 and a word while a command runs",
        submit: &[
            Node("state", "0"), Wait(200), Node("state", "7"), Wait(200), Node("state", "8"), Wait(200),
            Node("state", "Connected"), Wait(200), Node("state", "4"), Wait(200),
            Run, Put, State(2), Notify(1),
        ],
        ..HONEST
    },
    Behaviour {
        kind: Stale,
        name: "stale-response",
        expect: "self:ok",
        wrong: "a response that comes only on the next connection, to its first command",
        commands: 1,
        submit: &[Step::Owe],
        cancel: None,
        ..HONEST
    },
    Behaviour {
        kind: Bus,
        name: "folder-removed",
        expect: "self:ok|self:EPIPE",
        wrong: "the backend's folder in xenstore is removed, with all that is in it",
        start: &[Step::RemoveFolder, Wait(300)],
        deaf: true,
        ..HONEST
    },
    Behaviour {
        kind: Bus,
        name: "state-removed",
        expect: "self:ok|self:EPIPE",
        wrong: "the node of the backend's state is removed",
        start: &[Remove("state"), Wait(300)],
        deaf: true,
        ..HONEST
    },
    Behaviour {
        kind: Bus,
        name: "flapping",
        expect: "self:ok|self:EPIPE|self:ECANCELED|cancel:ECANCELED",
        wrong: "InitWait and Connected in turn, 1,000 times, as fast as it goes",
        start: &[Repeat(1000, &[Node("state", "2"), Node("state", "4")])],
        ..HONEST
    },
    Behaviour {
        kind: Reconnects,
        name: "reconnect-storm",
        expect: "self:ok|self:EPIPE|self:ECANCELED",
        wrong: "Closing as soon as a connection is there, for ever",
        start: &[Node("state", "5")],
        connected: &[Node("state", "5")],
        ..HONEST
    },
    Behaviour {
        kind: Bus,
        name: "page-kept",
        expect: "self:EPIPE|self:ok self:ok",
        wrong: "the page stays mapped when its connection has ended, and is written to with every later command",
        start: &[Node("state", "5"), Wait(300)],
        submit: &[Step::Haunt, Run, Put, State(2), Notify(1), Step::Haunt],
        keep: true,
        ..HONEST
    },
    Behaviour {
        kind: Bus,
        name: "pages-kept",
        expect: "self:ok|self:EPIPE|self:ECANCELED",
        wrong: "Closing as soon as a connection is there, for ever, and up to 64 pages stay mapped",
        start: &[Node("state", "5")],
        connected: &[Node("state", "5")],
        keep: true,
        ..HONEST
    },
    Behaviour {
        kind: Bus,
        name: "version-changes",
        expect: "self:EPIPE",
        wrong: "after a reconnect the TPM is of the other version",
        start: &[Node("state", "5"), Wait(300)],
        submit: with!(edits::other_version),
        ..HONEST
    },
    Behaviour {
        kind: Bus,
        name: "protocol-changes",
        expect: "self:EPIPE",
        wrong: "after a reconnect feature-protocol-v2 is 2",
        start: &[Node("state", "5")],
        connect: &[Node("feature-protocol-v2", "2"), Node("state", "4")],
        ..HONEST
    },
];
