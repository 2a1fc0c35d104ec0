// SPDX-License-Identifier: GPL-2.0

//! The log of what was measured before the guest's kernel ran, as the backend has it in xenstore:
//! hexadecimal digits in a few nodes. Its bytes go to user space, which replays it; here is checked
//! that it is a log at all, whose parts are within it.
//!
//! Sources: TCG PC Client Platform Firmware Profile, "Event Logging"; for a TPM 1.2, TCG PC Client
//! Specific Implementation Specification for Conventional BIOS, "TCG_PCClientPCREvent".
//! `Documentation/protocol.rst` has the nodes.

use super::epoch::Version;

/// The type of an event that extends no PCR (EV_NO_ACTION): the header of a TPM 2.0's log is one.
const NO_ACTION: u32 = 3;

/// How that header's data begins.
const SIGNATURE: &[u8] = b"Spec ID Event03\0";

/// The longest list of digests that the TPM core has room for, and the longest digest.
const MAX_ALGORITHMS: usize = 8;
const MAX_DIGEST: usize = 64;

/// Length of a SHA-1 digest.
const SHA1: usize = 20;

/// Decodes a node's value to the start of `into`. Returns the number of bytes, `None` for what is
/// no lower-case hexadecimal text, or too long.
pub fn decode(text: &[u8], into: &mut [u8]) -> Option<usize> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut pairs = text.chunks_exact(2);
    let into = into.get_mut(..pairs.len())?;

    for (byte, pair) in into.iter_mut().zip(&mut pairs) {
        let &[high, low] = pair else {
            return None;
        };
        *byte = (digit(high)? << 4) | digit(low)?;
    }
    pairs.remainder().is_empty().then_some(into.len())
}

/// Whether these bytes are a log of a TPM of this version: whole events, one behind the other.
pub fn is_sound(log: &[u8], version: Version) -> bool {
    let mut rest = Rest(log);

    !log.is_empty()
        && match version {
            Version::V1_2 => rest.events(|rest| rest.event().map(|_| ())),
            Version::V2_0 => rest
                .event()
                .and_then(Algorithms::of)
                .and_then(|algorithms| rest.events(|rest| rest.event2(algorithms))),
        }
        .is_some()
}

/// What is left of the log.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    /// The next `n` bytes.
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;

        self.0 = rest;
        Some(taken)
    }

    /// The next number.
    fn le16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.take(2)?.try_into().ok()?))
    }

    /// The next number.
    fn le32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    /// The data at an event's end.
    fn data(&mut self) -> Option<&'a [u8]> {
        let length = self.le32()?;

        self.take(usize::try_from(length).ok()?)
    }

    /// All events.
    fn events(&mut self, mut event: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        while !self.0.is_empty() {
            event(self)?;
        }
        Some(())
    }

    /// An event with one SHA-1 digest (TCG_PCR_EVENT).
    fn event(&mut self) -> Option<Event<'a>> {
        Some(Event {
            pcr: self.le32()?,
            kind: self.le32()?,
            digest: self.take(SHA1)?,
            data: self.data()?,
        })
    }

    /// An event with a digest of each algorithm (TCG_PCR_EVENT2).
    fn event2(&mut self, algorithms: Algorithms<'_>) -> Option<()> {
        self.take(8)?;
        if usize::try_from(self.le32()?).ok()? != algorithms.count() {
            return None;
        }
        for _ in 0..algorithms.count() {
            let algorithm = self.le16()?;

            self.take(algorithms.length(algorithm)?)?;
        }
        self.data().map(|_| ())
    }
}

/// An event with one SHA-1 digest.
struct Event<'a> {
    pcr: u32,
    kind: u32,
    digest: &'a [u8],
    data: &'a [u8],
}

/// The algorithms of a log's digests: for each its number and its digest's length, two bytes each.
#[derive(Clone, Copy)]
struct Algorithms<'a>(&'a [u8]);

impl<'a> Algorithms<'a> {
    /// Those that the first event of a TPM 2.0's log names (TCG_EfiSpecIdEvent).
    fn of(header: Event<'a>) -> Option<Self> {
        let mut rest = Rest(header.data);

        if (header.pcr, header.kind) != (0, NO_ACTION)
            || header.digest.iter().any(|&byte| byte != 0)
            || rest.take(SIGNATURE.len())? != SIGNATURE
        {
            return None;
        }
        // The platform's class, the version and the size of a UINTN.
        rest.take(8)?;
        let count = usize::try_from(rest.le32()?).ok()?;
        if !(1..=MAX_ALGORITHMS).contains(&count) {
            return None;
        }
        let this = Self(rest.take(4 * count)?);
        // The vendor's information, with its length, is the rest.
        let &[length] = rest.take(1)?.first_chunk()?;
        (rest.0.len() == usize::from(length)).then_some(this)
    }

    fn count(self) -> usize {
        self.0.len() / 4
    }

    /// The length of an algorithm's digest.
    fn length(self, algorithm: u16) -> Option<usize> {
        self.0.chunks_exact(4).find_map(|entry| {
            let mut entry = Rest(entry);
            let (found, length) = (entry.le16()?, usize::from(entry.le16()?));

            (found == algorithm && (1..=MAX_DIGEST).contains(&length)).then_some(length)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHA256: [u8; 4] = [0x0b, 0, 32, 0];

    /// A log that grows in an array.
    struct Log {
        bytes: [u8; 512],
        length: usize,
    }

    impl Log {
        fn new() -> Self {
            Self {
                bytes: [0; 512],
                length: 0,
            }
        }

        fn put(&mut self, bytes: &[u8]) -> &mut Self {
            self.bytes[self.length..self.length + bytes.len()].copy_from_slice(bytes);
            self.length += bytes.len();
            self
        }

        fn le32(&mut self, number: u32) -> &mut Self {
            self.put(&number.to_le_bytes())
        }

        /// An event with a SHA-1 digest.
        fn event(&mut self, pcr: u32, kind: u32, data: &[u8]) -> &mut Self {
            self.le32(pcr).le32(kind).put(&[0; SHA1]);
            self.le32(data.len() as u32).put(data)
        }

        /// The header of a log with SHA-256.
        fn header(&mut self) -> &mut Self {
            let mut data = [0; 33];

            data[..16].copy_from_slice(SIGNATURE);
            data[20..28].copy_from_slice(&[0, 2, 0, 2, 1, 0, 0, 0]);
            data[28..32].copy_from_slice(&SHA256);
            self.event(0, NO_ACTION, &data)
        }

        /// An event with a SHA-256 digest.
        fn event2(&mut self, pcr: u32, kind: u32, data: &[u8]) -> &mut Self {
            self.le32(pcr).le32(kind).le32(1);
            self.put(&SHA256[..2]).put(&[1; 32]);
            self.le32(data.len() as u32).put(data)
        }

        fn bytes(&self) -> &[u8] {
            &self.bytes[..self.length]
        }
    }

    #[test]
    fn text_is_decoded() {
        let mut into = [0; 4];

        assert_eq!(decode(b"", &mut into), Some(0));
        assert_eq!(decode(b"00ff1a", &mut into), Some(3));
        assert_eq!(into, [0, 0xff, 0x1a, 0]);
        assert_eq!(decode(b"01234567", &mut into), Some(4));
        for bad in [
            &b"0"[..],
            b"00f",
            b"0g",
            b"FF",
            b"0 ",
            b"0\n",
            b"0123456789",
        ] {
            assert_eq!(decode(bad, &mut into), None);
        }
    }

    #[test]
    fn whole_logs_are_sound() {
        let mut log = Log::new();
        log.header()
            .event2(4, 13, b"kernel\0")
            .event2(0, 4, &[0; 4]);
        assert!(is_sound(log.bytes(), Version::V2_0));
        assert!(!is_sound(log.bytes(), Version::V1_2));

        let mut log = Log::new();
        log.event(4, 13, b"kernel\0").event(0, 4, &[0; 4]);
        assert!(is_sound(log.bytes(), Version::V1_2));
        assert!(!is_sound(log.bytes(), Version::V2_0));

        let mut log = Log::new();
        assert!(is_sound(log.header().bytes(), Version::V2_0));
        assert!(!is_sound(&[], Version::V1_2));
        assert!(!is_sound(&[], Version::V2_0));
    }

    #[test]
    fn no_part_of_a_log_is_one_but_between_events() {
        let mut log = Log::new();
        let header = log.header().length;
        let first = log.event2(4, 13, b"kernel\0").length;
        let whole = log.event2(0, 4, &[0; 4]).length;
        for end in 0..=whole {
            let sound = is_sound(&log.bytes()[..end], Version::V2_0);
            assert_eq!(sound, [header, first, whole].contains(&end));
        }

        let mut log = Log::new();
        let first = log.event(4, 13, b"kernel\0").length;
        let whole = log.event(0, 4, &[0; 4]).length;
        for end in 0..=whole {
            let sound = is_sound(&log.bytes()[..end], Version::V1_2);
            assert_eq!(sound, [first, whole].contains(&end));
        }
    }

    #[test]
    fn headers_and_lengths_are_checked() {
        let mut good = Log::new();
        good.header().event2(4, 13, b"kernel\0");
        // PCR, type, digest, length, signature, number of algorithms, length of a digest, the
        // vendor's length; the number of digests, the algorithm, the length of the data.
        for at in [
            0, 4, 8, 27, 28, 32, 47, 56, 57, 59, 60, 62, 63, 64, 73, 76, 77, 111, 114,
        ] {
            let mut bad = good.bytes;
            bad[at] ^= 0x80;
            assert!(!is_sound(&bad[..good.length], Version::V2_0));
        }
        for (at, value) in [(56, 0), (56, 9), (62, 0), (62, 65), (73, 0), (73, 2)] {
            let mut bad = good.bytes;
            bad[at] = value;
            assert!(!is_sound(&bad[..good.length], Version::V2_0));
        }
        let mut long = Log::new();
        long.event(4, 13, b"kernel\0");
        long.bytes[28..32].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(!is_sound(long.bytes(), Version::V1_2));
    }
}
