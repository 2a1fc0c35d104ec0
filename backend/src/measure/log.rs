// SPDX-License-Identifier: GPL-2.0

//! The event log, as the TCG PC Client Platform Firmware Profile has it: crypto-agile for a TPM 2.0, of SHA-1 for
//! a TPM 1.2; and as nodes of xenstore.

use xen_tpm_protocol::layout::{EVENT_LOG_CHUNK, EVENT_LOG_CHUNKS};

use super::digest::{Bank, Digests};
use crate::hex;
use crate::swtpm::Version;

/// The longest log that xenstore's nodes have room for.
pub const MAX: usize = EVENT_LOG_CHUNK * EVENT_LOG_CHUNKS;

/// The type of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// EV_NO_ACTION: nothing is extended.
    NoAction = 3,
    /// EV_SEPARATOR: what the firmware measures ends.
    Separator = 4,
    /// EV_ACTION: a string.
    Action = 5,
    /// EV_EVENT_TAG: a TCG_PCClientTaggedEvent. The types for what a boot loader loads are about EFI images.
    Tag = 6,
}

/// A log in the making.
#[derive(Debug)]
pub struct EventLog {
    version: Version,
    bytes: Vec<u8>,
}

impl EventLog {
    /// With a Spec ID event that names the banks, for a TPM 2.0.
    pub fn new(version: Version, banks: &[Bank]) -> Self {
        let mut log = Self {
            version,
            bytes: Vec::new(),
        };
        if version == Version::Tpm2 {
            let mut spec = b"Spec ID Event03\0".to_vec();
            // A client; version 2.0 without errata; UINTN is 64 bits wide.
            spec.extend_from_slice(&[0, 0, 0, 0, 0, 2, 0, 2]);
            spec.extend_from_slice(&(banks.len() as u32).to_le_bytes());
            for bank in banks {
                spec.extend_from_slice(&bank.id().to_le_bytes());
                spec.extend_from_slice(&bank.size().to_le_bytes());
            }
            // Nothing of a vendor's.
            spec.push(0);
            log.head(0, Kind::NoAction);
            log.bytes.extend_from_slice(&[0; 20]);
            log.data(&spec);
        }
        log
    }

    /// One more event. The digests are of the banks that the log is for.
    pub fn add(&mut self, pcr: u32, kind: Kind, data: &[u8], digests: &Digests) {
        self.head(pcr, kind);
        if self.version == Version::Tpm2 {
            let count = digests.iter().len() as u32;
            self.bytes.extend_from_slice(&count.to_le_bytes());
        }
        for (bank, digest) in digests.iter() {
            if self.version == Version::Tpm2 {
                self.bytes.extend_from_slice(&bank.id().to_le_bytes());
            }
            self.bytes.extend_from_slice(digest);
        }
        self.data(data);
    }

    fn head(&mut self, pcr: u32, kind: Kind) {
        self.bytes.extend_from_slice(&pcr.to_le_bytes());
        self.bytes.extend_from_slice(&(kind as u32).to_le_bytes());
    }

    fn data(&mut self, data: &[u8]) {
        self.bytes
            .extend_from_slice(&(data.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(data);
    }

    /// The log.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// The values of the nodes `0`, `1`, and so on.
pub fn nodes(log: &[u8]) -> Vec<String> {
    log.chunks(EVENT_LOG_CHUNK).map(hex::text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_of_each_form() {
        let digests = Digests::of(&[Bank::Sha1], b"abc");
        let mut log = EventLog::new(Version::Tpm12, &[Bank::Sha1]);
        log.add(4, Kind::Separator, &[0; 4], &digests);
        let log = log.into_bytes();
        assert_eq!(log[..8], [4, 0, 0, 0, 4, 0, 0, 0]);
        assert_eq!((log[8], log.len()), (0xa9, 8 + 20 + 4 + 4));

        let mut log = EventLog::new(Version::Tpm2, &[Bank::Sha1]);
        log.add(4, Kind::Separator, &[0; 4], &digests);
        let log = log.into_bytes();
        let spec = 8 + 20 + 4 + 16 + 8 + 4 + 4 + 1;
        assert_eq!(
            log[spec..][..14],
            [4, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0, 4, 0]
        );
        assert_eq!(log.len(), spec + 14 + 20 + 4 + 4);
    }

    #[test]
    fn nodes_are_full_but_for_the_last() {
        let nodes = nodes(&[0xab; EVENT_LOG_CHUNK + 1]);
        assert_eq!((nodes.len(), nodes[0].len()), (2, 2 * EVENT_LOG_CHUNK));
        assert_eq!(nodes[1], "ab");
    }

    /// With all banks and the longest command line.
    #[test]
    fn the_longest_log_fits() {
        let mut log = EventLog::new(Version::Tpm2, &Bank::ALL);
        let digests = Digests::of(&Bank::ALL, b"");
        for _ in 0..12 {
            log.add(5, Kind::Tag, &[0; 24], &digests);
        }
        assert!(log.into_bytes().len() + super::super::images::MAX_CMDLINE <= MAX);
    }
}
