// SPDX-License-Identifier: GPL-2.0

//! What the backend has of the guest's boot: the log by which user space replays the PCRs.
//! `Documentation/protocol.rst` has the nodes.

use crate::{
    protocol::{
        epoch::Version,
        event_log::{
            decode,
            is_sound, //
        },
        layout::{
            EVENT_LOG_CHUNK,
            EVENT_LOG_CHUNKS, //
        },
    },
    ratelimit::RateLimit,
    tpm::event_log::{
        EventLog,
        MAX_EVENT_LOG, //
    },
    vtpm::Vtpm,
    xen::bus, //
};
use kernel::{
    device::Core,
    prelude::*,
    sync::{
        Arc,
        UniqueArc, //
    }, //
};

const _: () = assert!(EVENT_LOG_CHUNK * EVENT_LOG_CHUNKS == MAX_EVENT_LOG);

/// Reads the log of a backend that is connected, if it has one. The TPM works without.
pub(crate) fn read(dev: &bus::Device<Core<'_>>, limit: &RateLimit) -> Option<Arc<EventLog>> {
    read_nodes(dev).unwrap_or_else(|_| {
        refused(dev, limit);
        None
    })
}

fn read_nodes(dev: &bus::Device<Core<'_>>) -> Result<Option<Arc<EventLog>>> {
    let mut log = None::<UniqueArc<EventLog>>;

    for i in 0..EVENT_LOG_CHUNKS {
        let value = match dev.read_otherend_item(c"event-log", i) {
            Err(ENOENT) => break,
            value => value?,
        };
        let log = match &mut log {
            Some(log) => log,
            None => log.insert(EventLog::new()?),
        };

        // All but the last node are full.
        if log.bytes().len() != i * EVENT_LOG_CHUNK {
            return Err(EINVAL);
        }
        log.extend(|room| decode(value.bytes(), room.get_mut(..EVENT_LOG_CHUNK)?))?;
    }
    Ok(log.map(Arc::from))
}

/// The log that was read, if it is one of a TPM of this version.
pub(crate) fn checked(vtpm: &Vtpm, version: Version) -> Option<Arc<EventLog>> {
    let log = vtpm.link.lock().event_log.take()?;

    if !is_sound(log.bytes(), version) {
        refused(&vtpm.dev, &vtpm.event_log_ratelimit);
        return None;
    }
    Some(log)
}

#[cold]
fn refused(dev: &bus::Device, limit: &RateLimit) {
    limit.warn(
        dev,
        "the backend's event log is refused: it is none, or cannot be read",
    );
}
