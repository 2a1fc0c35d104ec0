// SPDX-License-Identifier: GPL-2.0

//! `xen-vtpmd take` and `discard`: a person says who has the TPM, where no host can know.

use std::path::PathBuf;
use std::time::Duration;

use super::mark::{self, Mark, Role};
use super::Error;
use crate::admin;
use crate::config::{Config, Uuid};
use crate::state::{self, version_of_state, Lock, State};
use crate::swtpm::Version;

/// How long a process that only looks at the state is waited for.
pub(super) const LOCK_LIMIT: Duration = Duration::from_secs(3);

fn at(path: PathBuf) -> impl FnOnce(std::io::Error) -> Error {
    |source| Error::File { path, source }
}

/// The mark and where the state is.
pub(super) fn marked(config: &Config, uuid: &Uuid) -> Result<(PathBuf, Option<Mark>), Error> {
    let path = config.state_path(uuid);
    let mark = Mark::read(&path).map_err(at(mark::path(&path)))?;
    Ok((path, mark))
}

/// Writes a mark.
pub(super) fn put(state: &std::path::Path, mark: &Mark) -> Result<(), Error> {
    mark.write(state).map_err(at(mark::path(state)))
}

/// Removes the mark.
pub(super) fn unmark(state: &std::path::Path) -> Result<(), Error> {
    Mark::remove(state).map_err(at(mark::path(state)))
}

/// Removes a state and what is beside it, if it is there, but for the mark. The caller has the lock.
pub(super) fn remove_state(state_path: &std::path::Path, uuid: &Uuid) -> Result<(), Error> {
    let version = version_of_state(state_path).ok().flatten();
    let state = State {
        uuid: uuid.clone(),
        path: state_path.to_owned(),
        version: version.unwrap_or(Version::Tpm2),
        exists: true,
    };
    if state_path.try_exists().map_err(at(state_path.to_owned()))? {
        state.remove()?;
    }
    Ok(admin::forget(&state)?)
}

/// The copy that is here is the TPM.
pub fn take(config: &Config, uuid: &Uuid) -> Result<(), Error> {
    let (path, mark) = marked(config, uuid)?;
    let unfit = |reason: &str| Err(Error::Unfit(uuid.clone(), reason.to_owned()));
    match mark.map(|mark| mark.role) {
        None => unfit("no migration has marked it: there is nothing to take"),
        Some(Role::Arrived | Role::Leaving) => {
            // The worker that has the lock runs it.
            match Lock::wait(config, uuid, LOCK_LIMIT) {
                Ok(_) | Err(state::Error::Locked { .. }) => unmark(&path),
                Err(e) => Err(e.into()),
            }
        }
        Some(Role::Expected | Role::Failed) => unfit("its state has not arrived here"),
        Some(Role::Moved) => unfit("its state is not here any more"),
    }
}

/// What is here is of no use: the TPM is on the other host, or nowhere.
pub fn discard(config: &Config, uuid: &Uuid) -> Result<(), Error> {
    let (path, mark) = marked(config, uuid)?;
    if mark.is_none() {
        let reason = "no migration has marked it: use `xen-vtpmd remove`".to_owned();
        return Err(Error::Unfit(uuid.clone(), reason));
    }
    let _lock = Lock::wait(config, uuid, LOCK_LIMIT)?;
    remove_state(&path, uuid)?;
    unmark(&path)
}
