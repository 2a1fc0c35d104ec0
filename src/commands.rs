// SPDX-License-Identifier: GPL-2.0

//! The commands on a vTPM's connection: the TPM core's, and the driver's own question of which TPM
//! it is.

use crate::{
    channel::Channel,
    identity::Comparison,
    locality::Locality,
    protocol::{
        command::{
            Failure,
            WaitContext as _, //
        },
        epoch::{
            Epoch,
            EPOCH_CMD_LEN, //
        },
        state::{
            ConnEvent,
            ConnState, //
        },
    },
    tpm::{
        attribute::{
            Attribute,
            RawAttribute, //
        },
        chip::ChipOps, //
    },
    vtpm::{
        Link,
        Vtpm, //
    },
    xen_sys::trace,
};
use kernel::{
    prelude::*,
    sync::Arc,
    time::{
        delay::fsleep,
        Delta,
        Jiffies, //
    },
    ThisModule, //
};

/// Room for a response to [`epoch_command()`](crate::protocol::epoch::Version::epoch_command), and
/// to the other commands whose response may come in its place.
const EPOCH_RESPONSE: usize = 64;

/// How often that command is sent until the response counts.
const EPOCH_TRIES: u32 = 3;

/// How long a command waits that failed behind many others.
const THROTTLE: Delta = Delta::from_millis(1_000);

/// The `cancel` attribute, in place of the core's: that one waits for the running command to
/// complete before it cancels, and a TPM 2.0 has none.
struct Cancel;

impl Attribute for Cancel {
    type Ops = Vtpm;

    const NAME: &'static CStr = c"cancel";
    const MODE: u16 = 0o200;
    const REPLACES: bool = true;

    #[inline]
    fn store(vtpm: &Vtpm, _text: &CStr) -> Result {
        vtpm.cancel();
        Ok(())
    }
}

impl ChipOps for Vtpm {
    const MODULE: &'static ThisModule = crate::xen_sys::compat::THIS_MODULE;

    const ATTRIBUTES: &'static [RawAttribute<Self>] = &[
        RawAttribute::new::<Locality>(),
        RawAttribute::new::<Cancel>(),
    ];

    #[inline]
    fn send(
        self: &Arc<Self>,
        packet: &mut [u8],
        length: usize,
        duration: Jiffies,
    ) -> Result<usize> {
        let traced = trace::Command::begin(packet);
        let locality = self.locality();
        let result = self.connection.wait_connected().and_then(|()| {
            let mut link = self.link.lock();

            // The connection may be another one by now, whose TPM is not verified. Not ETIME for a
            // registration that takes too long: the core would go on asking for the self test.
            if !link.connected || self.registration_expired() {
                return Err(Failure::NoBackend);
            }
            self.transmit_locked(&mut link, packet, length, locality, duration)
        });

        self.control.counters().command(length, &result);
        let result = result.map_err(Error::from);
        if let Some(traced) = traced {
            traced.end((*self.dev).as_ref(), locality, length, &result);
        }
        if let Err(e) = result {
            self.failed(e);
        }
        result
    }

    #[inline]
    fn cancel(&self) {
        self.control.cancel();
        self.connection.cancel();
    }
}

impl Vtpm {
    /// Verifies that the TPM is the one that is registered, before others' commands run. Its
    /// response may take long.
    pub(crate) fn verify(&self) -> Option<Comparison> {
        let mut link = self.link.lock();
        if !matches!(
            self.connection.state(),
            ConnState::Verifying | ConnState::Connected
        ) {
            return None;
        }

        let epoch = self.read_epoch(&mut link)?;
        let comparison = link.tpm.check_and_update(&self.dev, epoch);
        let event = if comparison == Comparison::Other {
            ConnEvent::OtherTpm
        } else {
            ConnEvent::SameTpm
        };
        self.advance(&mut link, event);
        Some(comparison)
    }

    /// Asks the TPM for its epoch. A response that is not the expected one counts only if the next
    /// one is the same: the first may be the response to a command of an earlier connection.
    /// `None` if there is no TPM to compare with, or if the connection ended.
    fn read_epoch(&self, link: &mut Link) -> Option<Epoch> {
        let version = link.tpm.version()?;
        let mut last = None;

        for _ in 0..EPOCH_TRIES {
            let mut packet = [0; EPOCH_RESPONSE];

            packet[..EPOCH_CMD_LEN].copy_from_slice(&version.epoch_command());
            let epoch = match self.transmit_locked(link, &mut packet, EPOCH_CMD_LEN, 0, 0) {
                Ok(length) => version.parse_epoch(packet.get(..length).unwrap_or_default()),
                // The caller that aborted the command handles the connection.
                Err(Failure::NoBackend) => return None,
                Err(_) if self.connection.state() == ConnState::Wedged => return None,
                Err(_) => Epoch::Unknown,
            };
            if link.tpm.is_expected(epoch) || last == Some(epoch) {
                return Some(epoch);
            }
            last = Some(epoch);
        }
        // Commands will tell.
        Some(Epoch::Unknown)
    }

    /// Carries out a command on the channel that there is, and replaces that if it is wedged by it.
    #[inline]
    fn transmit_locked(
        &self,
        link: &mut Link,
        packet: &mut [u8],
        length: usize,
        locality: u8,
        duration: Jiffies,
    ) -> Result<usize, Failure> {
        let Channel { slot, event } = link.channel.as_mut().ok_or(Failure::NoBackend)?;

        let result = slot.transmit(event, packet, length, locality, duration);
        // The caller that aborted a command handles the connection.
        if slot.is_wedged() && result != Err(Failure::NoBackend) {
            self.start_reconnect(link);
        }
        result
    }

    /// A command failed.
    #[cold]
    fn failed(self: &Arc<Self>, error: Error) {
        #[cfg(CONFIG_TCG_TPM2_HMAC)]
        self.check_enabled();
        // The TPM core logs each error but EPIPE, which neither a backend nor a user must be able
        // to fill the log with.
        if error != EPIPE && self.throttle.failed() && !self.is_shutting_down() {
            fsleep(THROTTLE);
        }
    }
}
