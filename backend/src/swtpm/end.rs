// SPDX-License-Identifier: GPL-2.0

//! How an swtpm gets out of use: switched off, saved with its guest, or left to the next daemon.

use std::time::{Duration, Instant};

use rustix::net::{recv, RecvFlags};
use rustix::process::Signal;
use xen_tpm_protocol::layout::MAX_PACKET;

use super::{Capability, Error, Phase, Reply, Request, Source, Swtpm};

/// How long it may take to end after CMD_SHUTDOWN, which it reads when a running command has ended;
/// then the same again after SIGTERM.
const END_LIMIT: Duration = Duration::from_secs(5);

/// How long it may take to store its volatile state, which it does when a running command has ended.
const STORE_LIMIT: Duration = Duration::from_secs(30);

/// How long a process that has closed its sockets may take to be gone.
const LAST_BREATH: Duration = Duration::from_millis(100);

impl Swtpm {
    /// Ends the process: by CMD_SHUTDOWN where that is possible, then by signals. Its end shows as
    /// [`Error::Ended`]; until then its state folder is in use.
    pub fn shut_down(&mut self) {
        let can = self.can_be_asked() && self.capabilities.has(Capability::Shutdown);

        if self.is_ending() {
            return;
        }
        if can && self.request(Request::Shutdown).is_ok() {
            self.phase = Phase::Ending(Signal::Term);
            self.deadline = Some(Instant::now() + END_LIMIT);
        } else {
            self.end_by(Signal::Term);
        }
    }

    /// Stores the volatile state for the next start of this vTPM, then ends as by
    /// [`shut_down`](Self::shut_down). If it cannot be stored, it is lost as it is there.
    pub fn save(&mut self) {
        if matches!(self.phase, Phase::Locality(_)) {
            // One request at a time.
            self.save_next = true;
            self.deadline = Some(Instant::now() + STORE_LIMIT);
            return;
        }
        let can = self.can_be_asked() && self.capabilities.has(Capability::StoreVolatile);

        if self.is_ending() {
            return;
        }
        if can && self.request(Request::StoreVolatile).is_ok() {
            self.phase = Phase::Storing;
            self.deadline = Some(Instant::now() + STORE_LIMIT);
        } else {
            log::warn!("swtpm {}: its volatile state cannot be stored", self.id());
            self.shut_down();
        }
    }

    /// Leaves the process to the next daemon. One that is not up yet is of no use to it and is killed; one
    /// that is ending goes on with that.
    pub fn leave(mut self) {
        if !matches!(self.phase, Phase::Starting(_) | Phase::Startup) {
            self.process.leave();
        }
    }

    /// Whether [`shut_down`](Self::shut_down) or [`save`](Self::save) was called.
    pub fn is_ending(&self) -> bool {
        self.save_next || matches!(self.phase, Phase::Ending(_) | Phase::Storing)
    }

    /// Whether the control channel is free for a request.
    fn can_be_asked(&self) -> bool {
        matches!(
            self.phase,
            Phase::Free | Phase::Running | Phase::Undoing | Phase::Startup | Phase::StaleUndoing
        )
    }

    /// A reply's bytes have arrived on the control socket while the volatile state is stored.
    pub(super) fn on_stored(&mut self) -> Result<(), Error> {
        let Some((reply, _)) = Request::StoreVolatile.decode(self.replies.filled()) else {
            return Ok(());
        };
        let id = self.id();

        self.replies.empty();
        match reply {
            Reply::Done => match self.state.mark_saved() {
                Ok(()) => log::info!("swtpm {id}: volatile state stored for the next start"),
                Err(e) => log::warn!("swtpm {id}: {e}: its volatile state is lost"),
            },
            _ => log::warn!("swtpm {id}: volatile state not stored: {reply:?}"),
        }
        self.phase = Phase::Free;
        self.shut_down();
        Ok(())
    }

    /// What a process says that is being ended is of no interest, but would be readable for ever.
    pub(super) fn overhear(&mut self, source: Source) {
        let socket = match source {
            Source::Control => &self.control,
            _ => &self.data,
        };
        let _ = recv(&**socket, &mut [0; MAX_PACKET], RecvFlags::DONTWAIT);
    }

    pub(super) fn end_by(&mut self, signal: Signal) {
        if let Err(e) = self.process.signal(signal) {
            log::warn!("swtpm {}: {signal:?} could not be sent: {e}", self.id());
        }
        self.phase = Phase::Ending(Signal::Kill);
        self.deadline = Some(Instant::now() + END_LIMIT);
    }

    /// A socket that fails is most often that of a process which is about to be gone, and how it ended says
    /// more.
    pub(super) fn explained(&mut self, e: Error) -> Error {
        if matches!(e, Error::Closed(_) | Error::Socket(..)) {
            if let Ok(Some(exit)) = self.process.wait(LAST_BREATH) {
                return Error::Ended(exit);
            }
        }
        e
    }
}
