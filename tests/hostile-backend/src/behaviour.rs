// SPDX-License-Identifier: GPL-2.0

//! What a behaviour is made of: steps, and the moments at which they are done. A behaviour says only
//! where it differs from the honest one.

use std::fmt;

use xen_tpm_protocol::HeaderField;

use crate::edits::Edit;

/// One thing to do.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    /// Takes the request out of the page and has the TPM answer it.
    Run,
    /// The same, but the response is kept for the next command: it is that one's `Run`. A backend that
    /// does not forget a running command on a reconnect does so.
    Owe,
    /// Changes the answer that goes into the page next.
    Edit(Edit),
    /// Writes the answer into the page, and its length.
    Put,
    /// Writes the page's length.
    Length(u32),
    /// Writes a plain byte of the page's header.
    Poke(HeaderField, u8),
    /// Writes the page's state. 0 and 2 end the command.
    State(u8),
    /// Writes these states one after the other, each with an event.
    States(u8, u8),
    /// Sends so many events.
    Notify(u32),
    /// Lets so many milliseconds pass. In a command's steps a cancel may cut in.
    Wait(u64),
    /// While the page says FINISH: changes its length.
    ScribbleLength,
    /// While the page says FINISH: changes the answer behind its header.
    ScribblePayload,
    /// Writes FINISH and a made-up answer into the pages of former connections, with an event.
    Haunt,
    /// Unmaps the page and closes the event channel without a word.
    Vanish,
    /// Writes a node of the backend's folder, "state" being one.
    Node(&'static str, &'static str),
    /// A feature node of 2,000 bytes.
    HugeFeature,
    /// Removes a node of the backend's folder.
    Remove(&'static str),
    /// Removes the backend's folder; it is put back when the behaviour is changed.
    RemoveFolder,
    /// Does these so many times.
    Repeat(u32, &'static [Step]),
}

/// How the testbed provokes it, and what it looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// By commands of a bound driver.
    Command,
    /// By commands that have a secret in them, which must not be in the page afterwards.
    Secret,
    /// By commands that nobody cancels: takes a minute.
    Deadline,
    /// By binding the driver.
    Probe,
    /// By binding the driver, which may take more than a minute.
    SlowProbe,
    /// By binding the driver, whose registration of the TPM does not end.
    Registration,
    /// By binding the driver, and reading all PCRs.
    Pcrs,
    /// By binding the driver, and reading the log of the guest's boot.
    EventLog,
    /// By what happens in xenstore when it starts; commands follow.
    Bus,
    /// By commands that nobody cancels, the first of which takes a minute and none of the others.
    Timeout,
    /// By commands that are cancelled one after the other, for some time.
    CancelStorm,
    /// By a command whose response comes on the next connection.
    Stale,
    /// By connections that the backend ends as soon as they are there.
    Reconnects,
    /// By unbinding the driver.
    Unbind,
    /// By unbinding the driver while a command runs.
    BusyUnbind,
    /// By detaching the device.
    Detach,
    /// While the guest is saved, as a checkpoint.
    Suspend,
    /// While the guest is restored.
    Restore,
    /// By a connection that comes long after the driver was bound, beside other uses of xenstore.
    Late,
    /// By a command that runs, beside other uses of xenstore.
    Watch,
    /// By a flood of events beside the guest's other work.
    Storm,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Secret => "secret",
            Self::Deadline => "deadline",
            Self::Probe => "probe",
            Self::SlowProbe => "slow-probe",
            Self::Registration => "registration",
            Self::Pcrs => "pcrs",
            Self::EventLog => "event-log",
            Self::Timeout => "timeout",
            Self::CancelStorm => "cancel-storm",
            Self::Stale => "stale",
            Self::Reconnects => "reconnects",
            Self::BusyUnbind => "busy-unbind",
            Self::Detach => "detach",
            Self::Bus => "bus",
            Self::Unbind => "unbind",
            Self::Suspend => "suspend",
            Self::Restore => "restore",
            Self::Late => "late",
            Self::Watch => "watch",
            Self::Storm => "storm",
        }
    }
}

/// One named way to be wrong.
#[derive(Debug)]
pub(crate) struct Behaviour {
    /// Its name.
    pub(crate) name: &'static str,
    /// How it is provoked.
    pub(crate) kind: Kind,
    /// What the driver has to make of it: an alternative for each try, as `tests/guest/hostile.py`
    /// words them.
    pub(crate) expect: &'static str,
    /// What is wrong, in words.
    pub(crate) wrong: &'static str,
    /// Done once, when the behaviour begins.
    pub(crate) start: &'static [Step],
    /// So many commands are answered honestly first.
    pub(crate) honest_first: usize,
    /// Then so many are treated like this,
    pub(crate) commands: usize,
    /// by these steps,
    pub(crate) submit: &'static [Step],
    /// and all that follow by these.
    pub(crate) later: &'static [Step],
    /// What a CANCEL is answered with; `None` if it is ignored.
    pub(crate) cancel: Option<&'static [Step]>,
    /// Done all the time, as fast as it goes.
    pub(crate) always: &'static [Step],
    /// Done to connect, when the page is mapped.
    pub(crate) connect: &'static [Step],
    /// Done right after that.
    pub(crate) connected: &'static [Step],
    /// The frontend's state in xenstore is ignored.
    pub(crate) deaf: bool,
    /// Pages stay mapped when their connection ends.
    pub(crate) keep: bool,
    /// The toolstack's wish that the device goes is ignored.
    pub(crate) stays: bool,
}

/// Runs the command and answers it.
pub(crate) const ANSWER: &[Step] = &[Step::Run, Step::Put, Step::State(2), Step::Notify(1)];
/// Abandons the command.
pub(crate) const IDLE: &[Step] = &[Step::State(0), Step::Notify(1)];
/// Tells the frontend that the connection is there.
pub(crate) const CONNECT: &[Step] = &[
    Step::Node("feature-protocol-v2", "1"),
    Step::Node("state", "4"),
];

/// Nothing is wrong.
pub(crate) const HONEST: Behaviour = Behaviour {
    name: "honest",
    kind: Kind::Command,
    expect: "self:ok",
    wrong: "nothing: the control",
    start: &[],
    honest_first: 0,
    commands: usize::MAX,
    submit: ANSWER,
    later: ANSWER,
    cancel: Some(IDLE),
    always: &[],
    connect: CONNECT,
    connected: &[],
    deaf: false,
    keep: false,
    stays: false,
};

impl Behaviour {
    /// The steps for the command with this number, counted from 0.
    pub(crate) fn steps(&self, number: usize) -> &'static [Step] {
        match number.checked_sub(self.honest_first) {
            None => ANSWER,
            Some(n) if n < self.commands => self.submit,
            Some(_) => self.later,
        }
    }
}

/// A line of the list, its fields apart by tabs.
impl fmt::Display for Behaviour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind.name();
        write!(f, "{}\t{kind}\t{}\t{}", self.name, self.expect, self.wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_commands_are_meant() {
        let behaviour = Behaviour {
            honest_first: 2,
            commands: 1,
            submit: IDLE,
            later: &[],
            ..HONEST
        };
        let lengths: Vec<usize> = (0..5).map(|n| behaviour.steps(n).len()).collect();

        assert_eq!(lengths, [ANSWER.len(), ANSWER.len(), IDLE.len(), 0, 0]);
    }
}
