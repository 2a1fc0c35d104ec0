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

/// What a look at the page came to. Where the guest had to be notified, it was.
#[derive(Debug)]
pub enum Found<'a> {
    /// Nothing.
    Nothing,
    /// The guest has cancelled a command.
    Cancelled,
    /// A request was turned down.
    Refused,
    /// A command for the TPM.
    Command {
        /// From which locality, unchecked.
        locality: u8,
        /// The command.
        packet: &'a [u8],
    },
}

/// A mapped page and a bound event channel.
#[derive(Debug)]
pub struct Connection {
    id: Id,
    exchange: Exchange,
    page: GrantedPage,
    event: Watched<EventChannel>,
    /// The page is left to the next daemon as it is.
    left: bool,
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
            left: false,
        })
    }

    /// Goes on with a page that a former daemon had. If its command was `interrupted`, it is abandoned.
    /// The guest is notified in any case: an event may have been lost.
    pub fn resume(&mut self, interrupted: bool) -> Result<(), xen::Error> {
        if interrupted {
            self.exchange = Exchange::interrupted(&self.page);
        }
        self.event.notify()
    }

    /// Leaves the guest's page to the next daemon as it is.
    pub fn leave(mut self) {
        self.left = true;
    }

    /// Takes an event from the guest: true if there was one.
    pub fn take_event(&self) -> Result<bool, xen::Error> {
        self.event.take_event()
    }

    /// Lets the next event come.
    pub fn unmask(&self) -> Result<(), xen::Error> {
        self.event.unmask()
    }

    /// Looks at the page.
    pub fn look(&mut self, tpm_is_free: bool) -> Result<Found<'_>, xen::Error> {
        match self.exchange.look(&self.page, tpm_is_free) {
            Look::Nothing => Ok(Found::Nothing),
            Look::Cancelled => self.event.notify().map(|()| Found::Cancelled),
            Look::Refused(why) => {
                log::debug!("vtpm {}: request refused: {why:?}", self.id);
                self.event.notify().map(|()| Found::Refused)
            }
            Look::Command { locality } => Ok(Found::Command {
                locality,
                packet: self.exchange.command(),
            }),
        }
    }

    /// Whether the last look found a command for which the TPM was not free: another look is due when it is.
    pub fn has_waiting(&self) -> bool {
        self.exchange.has_waiting()
    }

    /// Hands the guest the TPM's answer; `delivered` is called when it is in the page, before the guest is
    /// notified. False if the guest has cancelled the command, or left too little room.
    pub fn answer(&mut self, answer: &[u8], delivered: impl FnOnce()) -> Result<bool, xen::Error> {
        match self.exchange.answer(&self.page, answer) {
            Delivery::Delivered => {
                delivered();
                self.event.notify().map(|()| true)
            }
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
        if !self.left && self.exchange.abandon(&self.page) {
            if let Err(e) = self.event.notify() {
                log::debug!("vtpm {}: {e}", self.id);
            }
        }
    }
}
