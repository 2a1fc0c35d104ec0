// SPDX-License-Identifier: GPL-2.0

//! What to do with a vTPM, given what both ends show in xenstore. Pure: it is asked anew after every
//! change and remembers nothing but the stage, so lost and doubled watch events do not matter.

use crate::xenbus::BusState;

/// How far a vTPM has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Just found.
    New,
    /// The state is this vTPM's to serve, and the TPM is up or on its way: InitWait.
    Waiting,
    /// The guest's page is mapped: Connected.
    Connected,
    /// The guest is closing and we follow: Closing. The page is still mapped.
    Closing,
    /// The TPM is lost while the guest was connected: Closing. Over once the guest has followed.
    Failing,
    /// The toolstack takes the vTPM away, and the guest may finish first. The page is still mapped.
    Leaving,
    /// Over: Closed, or gone from xenstore.
    Closed,
}

/// What xenstore says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Our own state, which the toolstack writes as well; `None` if the vTPM is not in xenstore.
    pub own: Option<BusState>,
    /// Whether the toolstack wants the vTPM to be there.
    pub online: bool,
    /// The guest's state; `None` if its folder is gone or it wrote nonsense.
    pub frontend: Option<BusState>,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Nothing,
    /// Start the TPM.
    Start,
    /// Go on where a former worker stopped.
    TakeOver,
    /// Map the guest's page and go to Connected.
    Connect,
    /// Connect again if the guest has published new particulars; nothing if they are the old ones.
    Recheck,
    /// Show Closing.
    FollowClosing,
    /// Let go of the page and show InitWait.
    WaitAgain,
    /// Give the guest a moment to close.
    Leave,
    /// Let go of the page, show Closed and end the TPM.
    Close,
    /// Let go of everything: there is nothing in xenstore any more.
    Release,
}

/// Decides. [`Stage::Failing`] and [`Stage::Leaving`] are left at the latest after a while; nothing else
/// happens without a step from here.
pub fn decide(stage: Stage, facts: Facts) -> Step {
    use BusState::{Closed, Closing, Connected, InitWait, Initialised, Initialising};

    let Some(own) = facts.own else {
        return Step::Release;
    };
    let connected = matches!(facts.frontend, Some(Initialised | Connected | Closing));
    // Whatever the state says: the toolstack may have written it before somebody else did.
    if !facts.online {
        return match stage {
            Stage::Connected | Stage::Closing if connected => Step::Leave,
            Stage::Leaving if connected => Step::Nothing,
            Stage::Closed if own == Closed => Step::Nothing,
            _ => Step::Close,
        };
    }

    match (stage, facts.frontend) {
        (Stage::New, _) => match own {
            Initialising => Step::Start,
            InitWait | Connected | Closing | Closed => Step::TakeOver,
            _ => Step::Close,
        },

        (Stage::Waiting, Some(Initialised | Connected)) => Step::Connect,
        (Stage::Waiting, Some(Closing)) => Step::FollowClosing,
        (Stage::Waiting, _) => Step::Nothing,

        (Stage::Connected | Stage::Closing, Some(Initialised | Connected)) => Step::Recheck,
        (Stage::Connected, Some(Closing)) => Step::FollowClosing,
        (Stage::Connected | Stage::Closing, None | Some(Initialising | Closed)) => Step::WaitAgain,
        (Stage::Connected | Stage::Closing, _) => Step::Nothing,

        (Stage::Failing, None | Some(Initialising | Closed)) => Step::Close,
        (Stage::Failing | Stage::Leaving, _) => Step::Nothing,

        // Made a second time: the manager starts a worker for that.
        (Stage::Closed, _) => match own {
            Closed | Initialising => Step::Nothing,
            _ => Step::Close,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use BusState::*;

    const STAGES: [Stage; 7] = [
        Stage::New,
        Stage::Waiting,
        Stage::Connected,
        Stage::Closing,
        Stage::Failing,
        Stage::Leaving,
        Stage::Closed,
    ];

    /// Every combination of facts.
    fn all_facts() -> impl Iterator<Item = Facts> {
        let states = || BusState::ALL.into_iter().map(Some).chain([None]);
        states().flat_map(move |own| {
            states().flat_map(move |frontend| {
                [false, true].map(|online| Facts {
                    own,
                    online,
                    frontend,
                })
            })
        })
    }

    fn online(own: BusState, frontend: BusState) -> Facts {
        Facts {
            own: Some(own),
            online: true,
            frontend: Some(frontend),
        }
    }

    fn offline(own: BusState, frontend: BusState) -> Facts {
        Facts {
            online: false,
            ..online(own, frontend)
        }
    }

    #[test]
    fn nothing_in_xenstore_releases_everything() {
        for stage in STAGES {
            for facts in all_facts().filter(|facts| facts.own.is_none()) {
                assert_eq!(decide(stage, facts), Step::Release);
            }
        }
    }

    #[test]
    fn the_toolstacks_closing_is_obeyed_in_every_stage() {
        for stage in STAGES {
            for frontend in BusState::ALL {
                for own in BusState::ALL {
                    let left = matches!((stage, own), (Stage::Closed, Closed));
                    let step = decide(stage, offline(own, frontend));
                    assert!(left || step == decide(stage, offline(Closing, frontend)));
                }
                let step = decide(stage, offline(Closing, frontend));
                match (stage, frontend) {
                    (Stage::Connected | Stage::Closing, Initialised | Connected | Closing) => {
                        assert_eq!(step, Step::Leave);
                    }
                    (Stage::Leaving, Initialised | Connected | Closing) => {
                        assert_eq!(step, Step::Nothing);
                    }
                    _ => assert_eq!(step, Step::Close),
                }
            }
        }
    }

    #[test]
    fn connects_only_to_a_guest_that_has_published() {
        for stage in STAGES {
            for facts in all_facts() {
                if matches!(decide(stage, facts), Step::Connect | Step::Recheck) {
                    assert!(matches!(facts.frontend, Some(Initialised | Connected)));
                    assert!(matches!(
                        stage,
                        Stage::Waiting | Stage::Connected | Stage::Closing
                    ));
                }
            }
        }
    }

    #[test]
    fn no_step_repeats_on_its_own_result() {
        // The stage and our own state after each step. Connect and Recheck may also fail.
        let after = |step, facts: Facts| {
            let shown = |own| Facts {
                own: Some(own),
                ..facts
            };
            match step {
                Step::Start => Some((Stage::Waiting, shown(InitWait))),
                Step::FollowClosing => Some((Stage::Closing, shown(Closing))),
                Step::WaitAgain => Some((Stage::Waiting, shown(InitWait))),
                Step::Leave => Some((Stage::Leaving, facts)),
                Step::Close => Some((Stage::Closed, shown(Closed))),
                _ => None,
            }
        };
        for stage in STAGES {
            for facts in all_facts() {
                let step = decide(stage, facts);
                if let Some((stage, facts)) = after(step, facts) {
                    assert_ne!(decide(stage, facts), step, "{facts:?}");
                }
            }
        }
    }

    #[test]
    fn a_life_without_trouble() {
        assert_eq!(
            decide(Stage::New, online(Initialising, Initialising)),
            Step::Start
        );
        assert_eq!(
            decide(Stage::Waiting, online(InitWait, Initialising)),
            Step::Nothing
        );
        assert_eq!(
            decide(Stage::Waiting, online(InitWait, Initialised)),
            Step::Connect
        );
        // 3 again, then 4: nothing new, unless the particulars are.
        assert_eq!(
            decide(Stage::Connected, online(Connected, Initialised)),
            Step::Recheck
        );
        assert_eq!(
            decide(Stage::Connected, online(Connected, Connected)),
            Step::Recheck
        );
        // xl shutdown: 5, 6 by the guest, then the toolstack.
        assert_eq!(
            decide(Stage::Connected, online(Connected, Closing)),
            Step::FollowClosing
        );
        assert_eq!(
            decide(Stage::Closing, online(Closing, Closing)),
            Step::Nothing
        );
        assert_eq!(
            decide(Stage::Closing, online(Closing, Closed)),
            Step::WaitAgain
        );
        assert_eq!(
            decide(Stage::Waiting, online(InitWait, Closed)),
            Step::Nothing
        );
        assert_eq!(
            decide(Stage::Waiting, offline(Closing, Closed)),
            Step::Close
        );
        assert_eq!(
            decide(Stage::Closed, offline(Closed, Closed)),
            Step::Nothing
        );
    }

    #[test]
    fn what_a_former_worker_left() {
        for frontend in BusState::ALL {
            let found = |facts| decide(Stage::New, facts);

            assert_eq!(found(online(Initialising, frontend)), Step::Start);
            for own in [InitWait, Connected, Closing, Closed] {
                assert_eq!(found(online(own, frontend)), Step::TakeOver);
                assert_eq!(found(offline(own, frontend)), Step::Close);
            }
        }
    }

    #[test]
    fn a_guest_that_is_gone_is_let_go() {
        for stage in [Stage::Connected, Stage::Closing] {
            let mut facts = online(Connected, Closed);
            facts.frontend = None;
            assert_eq!(decide(stage, facts), Step::WaitAgain);
            facts.online = false;
            assert_eq!(decide(stage, facts), Step::Close);
        }
    }

    #[test]
    fn a_lost_tpm_stays_closed() {
        for frontend in [Initialised, Connected, Closing] {
            assert_eq!(
                decide(Stage::Failing, online(Closing, frontend)),
                Step::Nothing
            );
        }
        assert_eq!(decide(Stage::Failing, online(Closing, Closed)), Step::Close);
        for frontend in BusState::ALL {
            assert_eq!(
                decide(Stage::Closed, online(Closed, frontend)),
                Step::Nothing
            );
        }
    }

    #[test]
    fn a_second_making_is_the_next_workers() {
        assert_eq!(
            decide(Stage::Closed, online(Initialising, Initialising)),
            Step::Nothing
        );
        assert_eq!(decide(Stage::New, offline(Closed, Closed)), Step::Close);
    }
}
