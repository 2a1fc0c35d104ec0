// SPDX-License-Identifier: GPL-2.0

//! The behaviours. A new one is an entry here; `expect` is what the Rust driver has to make of it.
//!
//! One try is `HOW:WHAT`. HOW is how the command ended: by itself, after a `cancel`, or only when its
//! process was killed. WHAT is `ok` (eight random bytes), `code` (another answer), `made-up`, `more`, or an
//! errno. `|` is between alternatives, a space between tries. For a probe it is `device` or `none`;
//! where the driver is unbound it is `unbound`, and `prompt` where the guest's other watches are looked at.

mod bus;
mod end;
mod life;
mod log;
mod page;
mod probe;
mod secrets;

use crate::behaviour::{Behaviour, Step, HONEST};

/// The control, and all that are wrong.
pub(crate) fn all() -> impl Iterator<Item = &'static Behaviour> {
    [&HONEST]
        .into_iter()
        .chain(page::PAGE)
        .chain(end::END)
        .chain(bus::XENSTORE)
        .chain(secrets::SECRETS)
        .chain(probe::PROBES)
        .chain(life::LIFE)
        .chain(log::LOGS)
}

/// An entry whose answers are edited.
const fn edited(
    name: &'static str,
    expect: &'static str,
    wrong: &'static str,
    steps: &'static [Step],
) -> Behaviour {
    Behaviour {
        name,
        wrong,
        expect,
        submit: steps,
        ..HONEST
    }
}

/// The steps of an answer with an edit.
macro_rules! with {
    ($edit:expr) => {{
        const EDIT: Edit = $edit;
        &[
            Step::Run,
            Step::Edit(EDIT),
            Step::Put,
            Step::State(2),
            Step::Notify(1),
        ]
    }};
}
use with;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::behaviour::Kind::Command;

    #[test]
    fn enough_of_them_with_names_of_their_own() {
        let names: HashSet<&str> = all().map(|behaviour| behaviour.name).collect();

        assert_eq!(names.len(), all().count());
        assert!(names.len() > 30);
        for behaviour in all() {
            assert!(!behaviour.wrong.contains('\t') && !behaviour.wrong.is_empty());
            assert_eq!(
                behaviour.kind == Command,
                behaviour.to_string().contains("\tcommand\t")
            );
        }
    }
}
