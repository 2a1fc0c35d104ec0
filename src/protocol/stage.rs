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
    /// Commands can run.
    Up,
    /// The backend stopped answering, and was told that the connection ends.
    Wedged,
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
    BackendForeign,
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
        match (event, self) {
            (Event::BackendReady, Self::Down | Self::Up | Self::Wedged) => Some(Self::Offered),
            // It had its offer, or gets none.
            (Event::BackendReady, Self::Offered | Self::Refused) => None,

            (Event::BackendConnected, Self::Offered) => Some(Self::Up),
            (Event::BackendForeign, Self::Offered) => Some(Self::Refused),
            // Old news, or about a page that is not ours any more.
            (
                Event::BackendConnected | Event::BackendForeign,
                Self::Down | Self::Up | Self::Wedged | Self::Refused,
            ) => None,

            (Event::BackendSilent, Self::Up) => Some(Self::Wedged),
            (Event::BackendSilent, Self::Down | Self::Offered | Self::Wedged | Self::Refused) => {
                None
            }

            (Event::BackendClosed, Self::Down | Self::Offered | Self::Up | Self::Wedged) => {
                Some(Self::Down)
            }
            // It gets its answer, that we close as well, but no other offer.
            (Event::BackendClosed, Self::Refused) => Some(Self::Refused),

            (
                Event::Resumed,
                Self::Down | Self::Offered | Self::Up | Self::Wedged | Self::Refused,
            ) => Some(Self::Offered),
        }
    }

    /// Why no command can run.
    pub const fn failure(self) -> Option<Failure> {
        match self {
            Self::Up => None,
            Self::Wedged => Some(Failure::Wedged),
            Self::Down | Self::Offered | Self::Refused => Some(Failure::NoBackend),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAGES: [Stage; 5] = [
        Stage::Down,
        Stage::Offered,
        Stage::Up,
        Stage::Wedged,
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
            let end = go(stage, &[BackendClosed, BackendReady, BackendConnected]);
            let refused = stage == Stage::Refused;

            assert_eq!(end, if refused { stage } else { Stage::Up });
        }
    }

    #[test]
    fn after_a_resume_every_backend_has_a_chance() {
        for stage in STAGES {
            let end = go(stage, &[Event::Resumed, Event::BackendConnected]);

            assert_eq!(end, Stage::Up);
        }
    }

    #[test]
    fn commands_run_on_a_page_that_was_offered_and_taken() {
        for stage in STAGES {
            assert_eq!(stage.failure().is_none(), stage == Stage::Up);
            for event in [
                Event::BackendReady,
                Event::BackendForeign,
                Event::BackendSilent,
                Event::BackendClosed,
                Event::Resumed,
            ] {
                assert_ne!(stage.after(event), Some(Stage::Up));
            }
        }
        assert_eq!(Stage::Wedged.after(Event::BackendConnected), None);
    }
}
