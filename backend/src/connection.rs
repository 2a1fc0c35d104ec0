// SPDX-License-Identifier: GPL-2.0

//! The connection to one guest: its page, its event channel and the exchange over them. Dropping it
//! gives the guest `Idle` for a running command, unmaps the page and unbinds the channel.

use std::io;

use crate::exchange::{Delivery, Exchange, Look};
use crate::watch::{Registrar, Watched};
use crate::xen::{self, EventChannel, GrantedPage};
use crate::xenbus::{Id, Particulars};

/// The code that a [`Connection`] gives to its [`Registrar`] for the guest's events.
pub const GUEST: u8 = 0;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Xen did not do it.
    #[error(transparent)]
    Xen(#[from] xen::Error),
    /// The events cannot be waited for.
    #[error("waiting for the guest's events: {0}")]
    Wait(#[from] io::Error),
}

/// A mapped page and a bound event channel.
#[derive(Debug)]
pub struct Connection {
    id: Id,
    exchange: Exchange,
    page: GrantedPage,
    event: Watched<EventChannel>,
}

impl Connection {
    /// Maps and binds what the guest has published. A [`look`](Self::look) is due at once: a command
    /// may have been in the page before.
    pub fn open(id: Id, particulars: Particulars, registrar: &Registrar) -> Result<Self, Error> {
        Ok(Self {
            id,
            exchange: Exchange::new(),
            page: GrantedPage::map(id.domid, particulars.ring_ref)?,
            event: registrar.add(GUEST, EventChannel::bind(id.domid, particulars.port)?)?,
        })
    }

    /// Takes an event from the guest: true if there was one.
    pub fn take_event(&self) -> Result<bool, xen::Error> {
        self.event.take_event()
    }

    /// Looks at the page; if there is a command for the TPM, it is returned with its locality.
    pub fn look(&mut self, tpm_is_free: bool) -> Result<Option<(u8, &[u8])>, xen::Error> {
        match self.exchange.look(&self.page, tpm_is_free) {
            Look::Nothing => Ok(None),
            Look::Notify => self.event.notify().map(|()| None),
            Look::Refused(why) => {
                log::debug!("vtpm {}: request refused: {why:?}", self.id);
                self.event.notify().map(|()| None)
            }
            Look::Command { locality } => Ok(Some((locality, self.exchange.command()))),
        }
    }

    /// Hands the guest the TPM's answer. False if the guest has cancelled the command, or left too
    /// little room.
    pub fn answer(&mut self, answer: &[u8]) -> Result<bool, xen::Error> {
        match self.exchange.answer(&self.page, answer) {
            Delivery::Delivered => self.event.notify().map(|()| true),
            Delivery::Dropped => {
                log::debug!("vtpm {}: answer to a cancelled command dropped", self.id);
                Ok(false)
            }
            Delivery::TooLong => {
                let len = answer.len();
                log::debug!("vtpm {}: no room for an answer of {len} bytes", self.id);
                self.event.notify().map(|()| false)
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.exchange.abandon(&self.page) {
            if let Err(e) = self.event.notify() {
                log::debug!("vtpm {}: {e}", self.id);
            }
        }
        let (commands, cancels) = self.exchange.counts();
        log::info!(
            "vtpm {}: disconnected after {commands} commands, {cancels} cancelled",
            self.id
        );
    }
}
