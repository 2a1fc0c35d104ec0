// SPDX-License-Identifier: GPL-2.0

//! Commands and answers: from the guest's page to swtpm and back.

use std::time::Instant;

use log::Level;

use super::{Failure, Host, Vtpm};
use crate::connection::Found;
use crate::counters::Moment;
use crate::swtpm::{self, Event};

impl Vtpm {
    /// The guest has sent an event, perhaps.
    pub(super) fn on_guest(&mut self, host: &mut Host) -> Result<(), Failure> {
        let (woke, refused) = (self.counters.woke(), self.counters.refused);
        match self.connection.as_ref().map(|guest| guest.take_event()) {
            Some(Ok(true)) => (),
            Some(Err(e)) => {
                self.refuse(host, &e.into());
                return Ok(());
            }
            Some(Ok(false)) | None => return Ok(()),
        }
        if self.pump(host, woke)? {
            self.storm.calm();
        } else {
            self.counters.spurious += u64::from(self.counters.refused == refused);
            if let Some(delay) = self.storm.spurious() {
                self.unmask_at = Some(Instant::now() + delay);
                return Ok(());
            }
        }
        self.unmask(host);
        Ok(())
    }

    /// Lets the guest's next event come.
    pub(super) fn unmask(&mut self, host: &mut Host) {
        self.unmask_at = None;
        if let Some(Err(e)) = self.connection.as_ref().map(|guest| guest.unmask()) {
            self.refuse(host, &e.into());
        }
    }

    /// swtpm has something to say.
    pub(super) fn on_swtpm(
        &mut self,
        host: &mut Host,
        source: swtpm::Source,
    ) -> Result<(), Failure> {
        let readable = match source {
            swtpm::Source::Data => self.counters.readable(),
            _ => None,
        };
        let Some(swtpm) = self.machine.swtpm() else {
            return Ok(());
        };
        let bad_locality = swtpm.version().bad_locality();
        let (pid, ending) = (swtpm.id(), swtpm.is_ending());

        let answer = match swtpm.on_ready(source) {
            Ok(None) => return Ok(()),
            Ok(Some(Event::Up)) => return self.up(host),
            Ok(Some(Event::Answer(answer))) => answer,
            Ok(Some(Event::LocalityRefused(_))) => &bad_locality,
            Ok(Some(Event::Undone)) => {
                swtpm.settled()?;
                return self.pump_waiting(host);
            }
            Err(e) => {
                let expected = ending && matches!(e, swtpm::Error::Ended(_));
                if let swtpm::Error::Ended(status) = &e {
                    self.say(Level::Info, format_args!("swtpm {pid} ended ({status})"));
                    self.machine.ended(&mut host.claims, &host.config);
                }
                return if expected { Ok(()) } else { Err(e.into()) };
            }
        };
        let counters = &mut self.counters;
        let delivered = match &mut self.connection {
            Some(connection) => {
                connection.answer(answer, || counters.delivered(answer.len(), readable))
            }
            None => Ok(false),
        };
        if !matches!(delivered, Ok(true)) {
            self.counters.dropped();
        }
        if let Some(swtpm) = self.machine.swtpm() {
            if matches!(delivered, Ok(false)) {
                swtpm.undo()?;
            }
            if swtpm.is_free() {
                swtpm.settled()?;
            }
        }
        if let Err(e) = delivered {
            self.refuse(host, &e.into());
        }
        self.pump_waiting(host)
    }

    /// Takes the command that had to wait for the TPM, if there is one. For any other there is an event, even
    /// if it is in the page already: to take it now would make that event one for nothing.
    fn pump_waiting(&mut self, host: &mut Host) -> Result<(), Failure> {
        match &self.connection {
            Some(connection) if connection.has_waiting() => self.pump(host, None).map(drop),
            _ => Ok(()),
        }
    }

    /// Looks at the page once, and passes on what is there: false if that is nothing that a guest
    /// which behaves would send an event for. `woke` is when the event was noticed, if it is timed.
    pub(super) fn pump(&mut self, host: &mut Host, woke: Option<Moment>) -> Result<bool, Failure> {
        let (Some(connection), Some(swtpm)) = (&mut self.connection, self.machine.swtpm()) else {
            return Ok(false);
        };
        let done = match connection.look(swtpm.is_free() && !host.leaving) {
            Ok(Found::Nothing) => return Ok(false),
            Ok(Found::Cancelled) => {
                self.counters.cancels += 1;
                self.counters.dropped();
                return Ok(true);
            }
            Ok(Found::Refused) => {
                self.counters.refused += 1;
                return Ok(false);
            }
            Ok(Found::Command { locality, packet }) => {
                let allowed = 1u32.checked_shl(locality.into()).unwrap_or(0);
                if u32::from(self.policy.localities) & allowed != 0 {
                    swtpm.submit(locality, packet)?;
                    self.counters.submitted(packet.len(), woke);
                    self.saving.on_command();
                    return Ok(true);
                }
                log::debug!("vtpm {}: locality {locality} refused", self.id);
                self.counters.refused += 1;
                connection.answer(&swtpm.version().bad_locality(), || ())
            }
            Err(e) => Err(e),
        };
        if let Err(e) = done {
            self.refuse(host, &e.into());
        }
        Ok(true)
    }
}
