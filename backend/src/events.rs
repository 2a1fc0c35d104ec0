// SPDX-License-Identifier: GPL-2.0

//! What a worker tells the manager unasked, as a line of JSON on worker.sock: for the totals of `status` and
//! for the administrator's hooks. Nobody needs to be there: the log has it too.

use serde::{Deserialize, Serialize};

/// Something that happened to a vTPM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// Its TPM is up.
    Started {
        /// Whose state.
        uuid: String,
        /// How long it took, in microseconds.
        us: u64,
        /// Whether it goes on where it stopped when its guest was saved.
        restored: bool,
    },
    /// Its TPM could not be started.
    Failed {
        /// Whose state.
        uuid: String,
        /// Why.
        reason: String,
    },
    /// Its TPM ended under a running guest.
    Lost {
        /// Whose state.
        uuid: String,
        /// How.
        reason: String,
    },
    /// A connection was turned down.
    Refused {
        /// Whose state.
        uuid: String,
        /// Why.
        reason: String,
    },
    /// What its guest boots was to be measured, and could not be. Its TPM is up all the same.
    Unmeasured {
        /// Whose state.
        uuid: String,
        /// Why.
        reason: String,
    },
    /// Its guest boots a kernel that is none of those that are allowed. Its TPM is up all the same.
    NotAllowed {
        /// Whose state.
        uuid: String,
        /// Which kernel.
        reason: String,
    },
    /// Its volatile state is stored for a guest that was saved.
    Saved {
        /// Whose state.
        uuid: String,
    },
}

impl Event {
    /// Its name, as it is sent.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Started { .. } => "started",
            Self::Failed { .. } => "failed",
            Self::Lost { .. } => "lost",
            Self::Refused { .. } => "refused",
            Self::Unmeasured { .. } => "unmeasured",
            Self::NotAllowed { .. } => "not-allowed",
            Self::Saved { .. } => "saved",
        }
    }

    /// Whose state it is about.
    pub fn uuid(&self) -> &str {
        match self {
            Self::Started { uuid, .. }
            | Self::Failed { uuid, .. }
            | Self::Lost { uuid, .. }
            | Self::Refused { uuid, .. }
            | Self::Unmeasured { uuid, .. }
            | Self::NotAllowed { uuid, .. }
            | Self::Saved { uuid } => uuid,
        }
    }

    /// Why, where there is a reason.
    pub fn reason(&self) -> &str {
        match self {
            Self::Failed { reason, .. }
            | Self::Lost { reason, .. }
            | Self::Refused { reason, .. }
            | Self::Unmeasured { reason, .. }
            | Self::NotAllowed { reason, .. } => reason,
            Self::Started { .. } | Self::Saved { .. } => "",
        }
    }

    /// Whether the administrator's hooks are run.
    pub fn is_for_hooks(&self) -> bool {
        !matches!(self, Self::Started { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_they_are_sent() {
        let (uuid, reason) = (String::from("u"), String::from("r"));
        let started = Event::Started {
            uuid: uuid.clone(),
            us: 7,
            restored: false,
        };
        let lost = Event::Lost {
            uuid: uuid.clone(),
            reason,
        };
        for event in [started, lost, Event::Saved { uuid }] {
            let value = serde_json::to_value(&event).unwrap();
            assert_eq!(value["event"], event.name());
            assert_eq!(value["uuid"], event.uuid());
            assert_eq!(serde_json::from_value::<Event>(value).unwrap(), event);
        }
    }
}
