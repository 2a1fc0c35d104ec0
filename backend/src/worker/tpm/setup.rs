// SPDX-License-Identifier: GPL-2.0

//! How the state of a new TPM is made, by swtpm_setup.

use std::os::fd::{AsFd, BorrowedFd};

use super::{io_error, reason, Error, Held, Place, KILL_TIMEOUT};
use crate::config::Config;
use crate::key;
use crate::launch::{self, Launch, Program};
use crate::swtpm::Process;
use crate::worker::messages::Messages;

/// State that is being made, in a directory of its own, which takes the right name only when it is whole.
#[derive(Debug)]
pub struct Setup {
    process: Process,
    held: Held,
}

impl Setup {
    /// Starts swtpm_setup.
    pub fn start(place: &Place<'_>, held: Held, messages: &Messages) -> Result<Self, Error> {
        let config = place.config;
        let key = held.key(config)?;
        let certificates = config.policy(&held.state.uuid).certificates;
        let folder = held.state.make_unfinished()?;
        if let Some(first) = config.first_uid {
            match certificates {
                true => launch::give_to_ca(&folder).map_err(Error::Certificates)?,
                false => drop(held.state.own(&folder, first)?),
            }
        }
        let key = key.as_ref().map(AsFd::as_fd);
        let program = Program::Setup { certificates };
        let launch = Launch::new(config, &held.state, &folder, key, program);
        let inherited: Vec<_> = held.lock().into_iter().chain(key).collect();
        let process = launch
            .spawn(config, messages.file(), &inherited)
            .map_err(io_error("starting swtpm_setup"))?;

        Ok(Self { process, held })
    }

    /// Puts the state where it belongs, once swtpm_setup has ended well; `None` if it has not ended.
    pub fn finish(
        &mut self,
        config: &Config,
        messages: &mut Messages,
    ) -> Result<Option<()>, Error> {
        let Some(exit) = self.process.exit().map_err(io_error("swtpm_setup"))? else {
            return Ok(None);
        };
        if !exit.success() {
            return Err(Error::Setup(reason(messages, &exit.to_string())));
        }
        let key_file = config.policy(&self.held.state.uuid).key_file.as_deref();
        key::mark(key_file, &self.held.state.path)?;
        self.held.state.finish(config, false, None)?;
        self.held.state.exists = true;
        Ok(Some(()))
    }

    /// The right to the state.
    pub fn into_held(self) -> Held {
        self.held
    }

    /// Ends it. What it made is made anew by the next one.
    pub fn kill(&mut self) {
        if let Err(e) = self.process.kill(KILL_TIMEOUT) {
            log::warn!("swtpm_setup {}: {e}", self.process.id());
        }
    }
}

impl AsFd for Setup {
    /// Readable when swtpm_setup has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }
}
