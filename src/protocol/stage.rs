// SPDX-License-Identifier: GPL-2.0

//! Where a frontend's connection stands, and what moves it on: all of it, so that what a late or
//! a repeated event does is decided here and nowhere else. `Documentation/xen-tpmfront.rst` has
//! it as a picture.

use super::exchange::Failure;

/// Where the connection to the backend stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// There is none.
    Down,
    /// The backend was offered a page and an event channel.
    Offered,
    /// The backend took them, and is asked whether it has the TPM that it had before.
    Asked,
    /// Commands can run.
    Up,
    /// The backend stopped answering, and was told that the connection ends.
    Wedged,
    /// The backend has another TPM than before.
    Foreign,
    /// The backend speaks another protocol, and gets no other offer.
    Refused,
}

/// What happens to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The backend waits for an offer.
    BackendReady,
    /// The backend took the offer.
    BackendConnected,
    /// The backend took the offer, and speaks another protocol.
    OtherProtocol,
    /// It is the TPM that was there before, or there was none.
    SameTpm,
    /// It is another TPM.
    OtherTpm,
    /// The backend answered neither a command nor its cancelling.
    BackendSilent,
    /// The backend is closing, closed or gone.
    BackendClosed,
    /// The domain runs again after a save, maybe elsewhere and with another backend.
    Resumed,
}

impl Stage {
    /// Where the connection stands after an event, or `None` for an event that changes nothing
    /// and asks for nothing to be done.
    pub const fn after(self, event: Event) -> Option<Self> {
        use Stage::*;

        match (event, self) {
            (Event::BackendReady, Down | Asked | Up | Wedged | Foreign) => Some(Offered),
            // It had its offer, or gets none.
            (Event::BackendReady, Offered | Refused) => None,

            (Event::BackendConnected, Offered) => Some(Asked),
            (Event::OtherProtocol, Offered) => Some(Refused),
            // Old news, or about a page that is not ours any more.
            (
                Event::BackendConnected | Event::OtherProtocol,
                Down | Asked | Up | Wedged | Foreign | Refused,
            ) => None,

            (Event::SameTpm, Asked) => Some(Up),
            (Event::OtherTpm, Asked | Up) => Some(Foreign),
            (Event::SameTpm, Down | Offered | Up | Wedged | Foreign | Refused) => None,
            (Event::OtherTpm, Down | Offered | Wedged | Foreign | Refused) => None,

            (Event::BackendSilent, Asked | Up) => Some(Wedged),
            (Event::BackendSilent, Down | Offered | Wedged | Foreign | Refused) => None,

            (Event::BackendClosed, Down | Offered | Asked | Up | Wedged | Foreign) => Some(Down),
            // It gets its answer, that we close as well, but no other offer.
            (Event::BackendClosed, Refused) => Some(Refused),

            (Event::Resumed, Down | Offered | Asked | Up | Wedged | Foreign | Refused) => {
                Some(Offered)
            }
        }
    }

    /// Why no command can run.
    pub const fn failure(self) -> Option<Failure> {
        match self {
            Self::Up => None,
            Self::Wedged => Some(Failure::Wedged),
            Self::Down | Self::Offered | Self::Asked | Self::Foreign | Self::Refused => {
                Some(Failure::NoBackend)
            }
        }
    }

    /// Whether commands will soon be able to run, if the backend does its part.
    pub const fn is_promising(self) -> bool {
        match self {
            Self::Offered | Self::Asked => true,
            Self::Down | Self::Up | Self::Wedged | Self::Foreign | Self::Refused => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAGES: [Stage; 7] = [
        Stage::Down,
        Stage::Offered,
        Stage::Asked,
        Stage::Up,
        Stage::Wedged,
        Stage::Foreign,
        Stage::Refused,
    ];

    fn go(from: Stage, events: &[Event]) -> Stage {
        events
            .iter()
            .fold(from, |stage, &event| stage.after(event).unwrap_or(stage))
    }

    #[test]
    fn a_backend_that_starts_anew_is_up_again_unless_it_was_refused() {
        use Event::*;

        for stage in STAGES {
            let events = [BackendClosed, BackendReady, BackendConnected, SameTpm];
            let refused = stage == Stage::Refused;

            assert_eq!(go(stage, &events), if refused { stage } else { Stage::Up });
        }
    }

    #[test]
    fn after_a_resume_every_backend_has_a_chance() {
        use Event::*;

        for stage in STAGES {
            let end = go(stage, &[Resumed, BackendConnected, SameTpm]);

            assert_eq!(end, Stage::Up);
        }
    }

    #[test]
    fn commands_run_only_after_the_tpm_was_found_to_be_the_same() {
        for stage in STAGES {
            assert_eq!(stage.failure().is_none(), stage == Stage::Up);
            for event in [
                Event::BackendReady,
                Event::BackendConnected,
                Event::OtherProtocol,
                Event::OtherTpm,
                Event::BackendSilent,
                Event::BackendClosed,
                Event::Resumed,
            ] {
                assert_ne!(stage.after(event), Some(Stage::Up));
            }
            assert!(stage.after(Event::SameTpm).is_none() || stage == Stage::Asked);
        }
        assert_eq!(
            go(Stage::Asked, &[Event::OtherTpm, Event::SameTpm]),
            Stage::Foreign
        );
    }
}
