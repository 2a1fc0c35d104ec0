// SPDX-License-Identifier: GPL-2.0

//! Makes the state of a vTPM before there is a guest for it.

use super::messages::Messages;
use super::tpm::{self, Held, Place, Setup};
use super::SETUP_TIMEOUT;
use crate::config::{Config, Uuid};
use crate::record::RunDir;
use crate::swtpm::{self, GiveUp, Version};

/// Why state was not made beforehand.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// It is there.
    #[error("{} has the state of a TPM already", .0.display())]
    Exists(std::path::PathBuf),
    /// It could not be made.
    #[error(transparent)]
    Tpm(#[from] tpm::Error),
}

/// Makes the state of a vTPM beforehand.
pub fn create_state(
    config: &Config,
    uuid: &Uuid,
    version: Option<Version>,
) -> Result<(), CreateError> {
    let held = Held::take(config, uuid, version).map_err(tpm::Error::from)?;
    if held.state.exists {
        return Err(CreateError::Exists(held.state.path));
    }
    let io_error = |e| tpm::Error::Io("run directory", e);
    let folder = config.run_dir.join(format!("create-{uuid}"));
    let run_dir = RunDir::make_at(folder).map_err(io_error)?;
    let done = create(config, held, &run_dir);
    run_dir.remove();
    Ok(done?)
}

fn create(config: &Config, held: Held, run_dir: &RunDir) -> Result<(), tpm::Error> {
    let io_error = |e| tpm::Error::Io("run directory", e);
    let mut messages = Messages::new(run_dir.messages().map_err(io_error)?);
    let place = Place {
        config,
        run: run_dir,
        give_up: GiveUp::never(),
    };
    let mut setup = Setup::start(&place, held, &messages)?;
    swtpm::client::wait_readable(&setup, SETUP_TIMEOUT).map_err(io_error)?;
    match setup.finish(config, &mut messages)? {
        Some(()) => Ok(()),
        None => {
            setup.kill();
            Err(tpm::Error::Setup(format!(
                "not done after {} s",
                SETUP_TIMEOUT.as_secs()
            )))
        }
    }
}
