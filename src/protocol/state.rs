// SPDX-License-Identifier: GPL-2.0

//! The connection state machine. All transitions are here, so that what a late or repeated event
//! does is decided in one place. `Documentation/xen-tpmfront.rst` draws it.

use super::command::Failure;

/// The state of the connection to the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnState {
    /// There is no connection.
    Disconnected,
    /// A page and an event channel are published for the backend.
    Initialised,
    /// The backend is connected, and its TPM is compared with the one that is registered.
    Verifying,
    /// Commands can run.
    Connected,
    /// The backend neither responded to a command nor to its cancel, and is asked to close.
    Wedged,
    /// The backend has another TPM than before.
    TpmMismatch,
    /// The backend does not support the protocol, and is not offered another connection.
    Unsupported,
}

/// What happens to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnEvent {
    /// The backend waits for the frontend's details.
    BackendReady,
    /// The backend is connected.
    BackendConnected,
    /// The backend is connected, and does not support the protocol.
    OtherProtocol,
    /// It is the TPM that was there before, or there was none.
    SameTpm,
    /// It is another TPM.
    OtherTpm,
    /// The backend neither responded to a command nor to its cancel.
    BackendTimeout,
    /// The backend is closing, closed or gone.
    BackendClosed,
    /// The domain was restored, maybe on another host and with another backend.
    Resumed,
}

impl ConnState {
    /// The state after an event, or `None` for an event that changes nothing and requires nothing
    /// to be done.
    pub const fn next(self, event: ConnEvent) -> Option<Self> {
        use ConnEvent::*;
        use ConnState::*;

        match (event, self) {
            (BackendReady, Disconnected | Verifying | Connected | Wedged | TpmMismatch) => {
                Some(Initialised)
            }
            // The backend has the frontend's details, or does not get them.
            (BackendReady, Initialised | Unsupported) => None,

            (BackendConnected, Initialised) => Some(Verifying),
            (OtherProtocol, Initialised) => Some(Unsupported),
            // Seen already, or about a page that is no longer shared.
            (
                BackendConnected | OtherProtocol,
                Disconnected | Verifying | Connected | Wedged | TpmMismatch | Unsupported,
            ) => None,

            (SameTpm, Verifying) => Some(Connected),
            (OtherTpm, Verifying | Connected) => Some(TpmMismatch),
            (
                SameTpm,
                Disconnected | Initialised | Connected | Wedged | TpmMismatch | Unsupported,
            ) => None,
            (OtherTpm, Disconnected | Initialised | Wedged | TpmMismatch | Unsupported) => None,

            (BackendTimeout, Verifying | Connected) => Some(Wedged),
            (BackendTimeout, Disconnected | Initialised | Wedged | TpmMismatch | Unsupported) => {
                None
            }

            (
                BackendClosed,
                Disconnected | Initialised | Verifying | Connected | Wedged | TpmMismatch,
            ) => Some(Disconnected),
            // The frontend closes as well, but offers no other connection.
            (BackendClosed, Unsupported) => Some(Unsupported),

            (
                Resumed,
                Disconnected | Initialised | Verifying | Connected | Wedged | TpmMismatch
                | Unsupported,
            ) => Some(Initialised),
        }
    }

    /// Why no command can run.
    pub const fn failure(self) -> Option<Failure> {
        match self {
            Self::Connected => None,
            Self::Disconnected
            | Self::Initialised
            | Self::Verifying
            | Self::Wedged
            | Self::TpmMismatch
            | Self::Unsupported => Some(Failure::NoBackend),
        }
    }

    /// Whether commands will soon be able to run, if the backend does its part.
    pub const fn is_connecting(self) -> bool {
        match self {
            Self::Initialised | Self::Verifying => true,
            Self::Disconnected
            | Self::Connected
            | Self::Wedged
            | Self::TpmMismatch
            | Self::Unsupported => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [ConnState; 7] = [
        ConnState::Disconnected,
        ConnState::Initialised,
        ConnState::Verifying,
        ConnState::Connected,
        ConnState::Wedged,
        ConnState::TpmMismatch,
        ConnState::Unsupported,
    ];

    fn go(from: ConnState, events: &[ConnEvent]) -> ConnState {
        events
            .iter()
            .fold(from, |state, &event| state.next(event).unwrap_or(state))
    }

    #[test]
    fn restarted_backend_is_connected_again_unless_unsupported() {
        use ConnEvent::*;

        for state in STATES {
            let events = [BackendClosed, BackendReady, BackendConnected, SameTpm];
            let unsupported = state == ConnState::Unsupported;
            let end = if unsupported {
                state
            } else {
                ConnState::Connected
            };

            assert_eq!(go(state, &events), end);
        }
    }

    #[test]
    fn every_backend_has_a_chance_after_a_resume() {
        use ConnEvent::*;

        for state in STATES {
            let end = go(state, &[Resumed, BackendConnected, SameTpm]);

            assert_eq!(end, ConnState::Connected);
        }
    }

    #[test]
    fn commands_run_only_after_the_tpm_was_verified() {
        for state in STATES {
            assert_eq!(state.failure().is_none(), state == ConnState::Connected);
            for event in [
                ConnEvent::BackendReady,
                ConnEvent::BackendConnected,
                ConnEvent::OtherProtocol,
                ConnEvent::OtherTpm,
                ConnEvent::BackendTimeout,
                ConnEvent::BackendClosed,
                ConnEvent::Resumed,
            ] {
                assert_ne!(state.next(event), Some(ConnState::Connected));
            }
            assert!(state.next(ConnEvent::SameTpm).is_none() || state == ConnState::Verifying);
        }
        assert_eq!(
            go(
                ConnState::Verifying,
                &[ConnEvent::OtherTpm, ConnEvent::SameTpm]
            ),
            ConnState::TpmMismatch
        );
    }
}
