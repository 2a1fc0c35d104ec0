// SPDX-License-Identifier: GPL-2.0

//! The tracepoints of `trace.h`. `declare_trace!` finds tracepoints in the kernel's own bindings
//! only, so these are reached through C helpers.

use crate::protocol::state::ConnState;
use core::ptr::from_ref;
use kernel::{
    bindings, device,
    prelude::*,
    time::{
        Instant,
        Monotonic, //
    },
};

fn raw(dev: &device::Device) -> *mut bindings::device {
    // CAST: `device::Device` is a transparent wrapper of it.
    from_ref(dev).cast_mut().cast()
}

/// A command that is traced.
pub(crate) struct Command {
    ordinal: u32,
    start: Instant<Monotonic>,
}

impl Command {
    /// A command begins. `None` if nobody traces commands, for a look at the clock can be a trap.
    #[inline]
    pub(crate) fn begin(packet: &[u8]) -> Option<Self> {
        // SAFETY: There are no requirements.
        if !unsafe { super::rust_helper_trace_command_enabled() } {
            return None;
        }
        let ordinal = packet.get(6..10).and_then(|bytes| bytes.try_into().ok());

        Some(Self {
            ordinal: u32::from_be_bytes(ordinal.unwrap_or_default()),
            start: Instant::now(),
        })
    }

    /// The command has ended.
    pub(crate) fn end(
        self,
        dev: &device::Device,
        locality: u8,
        request: usize,
        result: &Result<usize>,
    ) {
        // CAST: Packets have at most a page, and time does not go back.
        let response = match result {
            Ok(length) => *length as i32,
            Err(e) => e.to_errno(),
        };
        let us = self.start.elapsed().as_micros_ceil() as u64;

        // SAFETY: The device is valid.
        unsafe {
            super::rust_helper_trace_command(
                raw(dev),
                self.ordinal,
                locality,
                request as u32,
                response,
                us,
            )
        };
    }
}

/// The connection's state has changed.
pub(crate) fn connection(dev: &device::Device, state: ConnState) {
    // SAFETY: The device is valid.
    unsafe { super::rust_helper_trace_connection(raw(dev), state as u32) };
}
