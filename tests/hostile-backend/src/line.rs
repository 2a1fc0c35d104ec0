// SPDX-License-Identifier: GPL-2.0

//! A connection to a guest: its page, mapped, and its event channel.

use xen_tpm_protocol::layout::{MAX_PACKET, PAGE_SIZE};
use xen_tpm_protocol::packet::claimed_length;
use xen_tpm_protocol::{layout, Page, State};
use xen_vtpmd::xen::{self, EventChannel, GrantedPage};
use xen_vtpmd::xenbus::{Id, RingParams};

/// Where packets start: no frontend announces extra pages.
const PAYLOAD: usize = layout::payload_offset(0);

/// A page and an event channel.
#[derive(Debug)]
pub(crate) struct Line {
    page: GrantedPage,
    event: EventChannel,
    grant: u32,
}

impl Line {
    /// Maps and binds what a guest has published.
    pub(crate) fn open(id: Id, particulars: RingParams) -> Result<Self, xen::Error> {
        Ok(Self {
            page: GrantedPage::map(id.domid, particulars.ring_ref)?,
            event: EventChannel::bind(id.domid, particulars.port)?,
            grant: particulars.ring_ref,
        })
    }

    /// The page's grant.
    pub(crate) fn grant(&self) -> u32 {
        self.grant
    }

    /// The page.
    pub(crate) fn page(&self) -> &GrantedPage {
        &self.page
    }

    /// The event channel.
    pub(crate) fn event(&self) -> &EventChannel {
        &self.event
    }

    /// The request in the page, as long as the page says; empty when that makes no sense.
    pub(crate) fn request(&self) -> Vec<u8> {
        let length = self.page.length() as usize;
        let mut request = vec![0; if length <= MAX_PACKET { length } else { 0 }];
        match self.page.read(PAYLOAD, &mut request) {
            Ok(()) if claimed_length(&request).is_some() => request,
            _ => Vec::new(),
        }
    }

    /// Writes an answer, and its length. What has no room is left out.
    pub(crate) fn put(&self, answer: &[u8]) {
        let part = &answer[..answer.len().min(MAX_PACKET)];
        if self.page.write(PAYLOAD, part).is_ok() {
            self.page.set_length(answer.len() as u32);
        }
    }

    /// Changes the bytes of an answer behind its header and its first number.
    pub(crate) fn scribble(&self, number: u32) {
        if self.page.state() == State::Finish as u8 {
            // The page is big enough.
            let _ = self.page.write(PAYLOAD + 12, &[number as u8 & 0x7f; 8]);
        }
    }

    /// Sends so many events. The guest may have closed its end.
    pub(crate) fn notify(&self, count: u32) {
        for _ in 0..count {
            if self.event.notify().is_err() {
                break;
            }
        }
    }

    /// Whether there is a command that was not answered.
    pub(crate) fn is_busy(&self) -> bool {
        [State::Submit as u8, State::Cancel as u8].contains(&self.page.state())
    }

    /// How often the pattern is in the payload, and how many of its bytes are not zero.
    pub(crate) fn find(&self, pattern: &[u8]) -> (usize, usize) {
        let mut payload = vec![0; PAGE_SIZE - PAYLOAD];
        // It is what is left of the page.
        let _ = self.page.read(PAYLOAD, &mut payload);
        let hits = payload
            .windows(pattern.len().max(1))
            .filter(|bytes| *bytes == pattern)
            .count();
        (hits, payload.iter().filter(|byte| **byte != 0).count())
    }
}
