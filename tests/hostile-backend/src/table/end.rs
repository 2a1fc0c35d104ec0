// SPDX-License-Identifier: GPL-2.0

//! What can be wrong with the end of a command: when it comes, and by what.

use super::edited;
use crate::behaviour::Kind::{CancelStorm, Deadline, Storm, Timeout};
use crate::behaviour::{Behaviour, Step, HONEST, IDLE};
use crate::edits;

use Step::{Node, Notify, Put, Run, State, Wait};

/// About the end of a command.
pub(super) const END: &[Behaviour] = &[
    Behaviour {
        name: "silent",
        expect: "cancel:ECANCELED self:ok",
        wrong: "a command gets no answer, nor does its cancel",
        commands: 1,
        submit: &[],
        cancel: None,
        ..HONEST
    },
    Behaviour {
        name: "cancel-only",
        expect: "cancel:ECANCELED",
        wrong: "no command gets an answer; a cancel does",
        submit: &[],
        ..HONEST
    },
    Behaviour {
        name: "cancel-slow",
        expect: "cancel:ECANCELED self:ok",
        wrong: "a cancel is answered after 4 s, just within the grace",
        commands: 1,
        submit: &[],
        cancel: Some(&[Wait(4000), State(0), Notify(1)]),
        ..HONEST
    },
    Behaviour {
        name: "cancel-finish",
        expect: "cancel:made-up",
        wrong: "a cancel is answered by FINISH with a made-up answer",
        submit: &[],
        cancel: Some(&[Run, Step::Edit(edits::made_up), Put, State(2), Notify(1)]),
        ..HONEST
    },
    Behaviour {
        name: "finish-late",
        expect: "cancel:ECANCELED self:ok self:ok",
        wrong: "FINISH with a made-up answer 5.5 s after CANCEL, and in the old page whenever the next command starts and ends",
        commands: 1,
        submit: &[],
        later: &[Step::Haunt, Run, Put, State(2), Notify(1), Step::Haunt],
        cancel: Some(&[Wait(5500), Step::Edit(edits::made_up), Put, State(2), Notify(1)]),
        keep: true,
        ..HONEST
    },
    Behaviour {
        name: "finish-early",
        expect: "self:ok",
        wrong: "FINISH with a made-up answer while no command runs, before SUBMIT",
        start: &[Step::Edit(edits::made_up), Put, State(2), Notify(1)],
        ..HONEST
    },
    Behaviour {
        name: "finish-twice",
        expect: "self:ok|self:made-up self:ok|self:made-up",
        wrong: "a second FINISH, with a made-up answer and an event, right behind the first",
        submit: &[Run, Put, State(2), Notify(1), Step::Edit(edits::made_up), Put, State(2), Notify(1)],
        ..HONEST
    },
    Behaviour {
        name: "finish-first",
        expect: "self:ok|self:code|self:EIO",
        wrong: "FINISH and the event first, the answer 20 ms later",
        submit: &[State(2), Notify(1), Wait(20), Put],
        ..HONEST
    },
    edited("idle", "self:ECANCELED", "IDLE for every command", IDLE),
    edited(
        "idle-after-finish",
        "self:ok|self:ECANCELED",
        "IDLE right behind FINISH, each with an event",
        &[Run, Put, State(2), Notify(1), State(0), Notify(1)],
    ),
    edited(
        "no-events",
        "cancel:ok",
        "the answer is there, but no event says so",
        &[Run, Wait(300), Put, State(2)],
    ),
    Behaviour {
        name: "vanish",
        expect: "cancel:ECANCELED",
        wrong: "the backend unmaps the page and closes the event channel in the middle of a command, without a word",
        submit: &[Step::Vanish],
        deaf: true,
        ..HONEST
    },
    Behaviour {
        name: "closing",
        expect: "self:EPIPE self:ok",
        wrong: "Closing in the middle of a command",
        commands: 1,
        submit: &[Node("state", "5")],
        cancel: None,
        ..HONEST
    },
    Behaviour {
        name: "closed",
        expect: "self:EPIPE self:ok",
        wrong: "Closed in the middle of a command",
        commands: 1,
        submit: &[Node("state", "6")],
        cancel: None,
        ..HONEST
    },
    Behaviour {
        kind: Deadline,
        name: "slow-58",
        expect: "self:ok",
        wrong: "the answer comes after 58 s, just before the deadline",
        submit: &[Wait(58_000), Run, Put, State(2), Notify(1)],
        ..HONEST
    },
    // The kernel's timer wheel may end a wait of 60 s up to 2 s late, at 250 Hz.
    Behaviour {
        kind: Deadline,
        name: "slow-64",
        expect: "self:ETIME self:ok",
        wrong: "the answer comes after 64 s, when the command was cancelled",
        commands: 1,
        submit: &[Wait(64_000), Run, Step::Edit(edits::made_up), Put, State(2), Notify(1)],
        cancel: None,
        ..HONEST
    },
    Behaviour {
        kind: Deadline,
        name: "silent-66",
        expect: "self:ETIME self:ok",
        wrong: "no answer at all, and nobody cancels",
        commands: 1,
        submit: &[],
        cancel: None,
        ..HONEST
    },
    Behaviour {
        kind: Timeout,
        name: "cancel-only-60",
        expect: "self:ETIME self:ETIME",
        wrong: "no command gets an answer, a cancel does, and nobody cancels: the second command must not take a minute, too",
        submit: &[],
        ..HONEST
    },
    Behaviour {
        kind: CancelStorm,
        name: "cancel-storm",
        expect: "quiet",
        wrong: "no command gets an answer, and each is cancelled at once: the kernel's log must not be filled",
        submit: &[],
        ..HONEST
    },
    Behaviour {
        kind: Deadline,
        name: "no-events-60",
        expect: "self:ok",
        wrong: "the answer is there at once, but no event ever says so",
        submit: &[Run, Wait(300), Put, State(2)],
        ..HONEST
    },
    Behaviour {
        kind: Storm,
        name: "spin",
        expect: "self:ok",
        wrong: "nothing but that the backend's processor is busy all the time: the control for the storm",
        always: &[Notify(0)],
        ..HONEST
    },
    Behaviour {
        kind: Storm,
        name: "storm",
        expect: "self:ok",
        wrong: "events as fast as they go",
        always: &[Notify(64)],
        ..HONEST
    },
];
