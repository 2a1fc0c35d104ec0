// SPDX-License-Identifier: GPL-2.0

//! Ways to change an answer on its way from the TPM to the guest. Each gets the request and the
//! TPM's own answer; those that are about one command leave the others' answers alone.

#![allow(
    clippy::ptr_arg,
    reason = "all edits have one type, and some change the length"
)]

/// Changes an answer.
pub(crate) type Edit = fn(request: &[u8], answer: &mut Vec<u8>);

/// Bytes of a packet's header.
const HEADER: usize = 10;

/// What made-up random numbers consist of. `tests/guest/hostile.py` knows it.
const MADE_UP: u8 = 0xbb;

fn be32(packet: &[u8], at: usize) -> Option<u32> {
    let bytes = packet.get(at..at + 4)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

fn put32(packet: &mut [u8], at: usize, value: u32) {
    if let Some(bytes) = packet.get_mut(at..at + 4) {
        bytes.copy_from_slice(&value.to_be_bytes());
    }
}

/// Whether a request is for a TPM 1.2: the tags of those are 0x00c1 to 0x00c3.
fn is_12(request: &[u8]) -> bool {
    request.first() == Some(&0)
}

/// A whole answer.
fn packet(tag: u16, code: u32, body: &[u8]) -> Vec<u8> {
    let mut packet = tag.to_be_bytes().to_vec();
    packet.extend(((HEADER + body.len()) as u32).to_be_bytes());
    packet.extend(code.to_be_bytes());
    packet.extend(body);
    packet
}

fn tag_for(request: &[u8]) -> u16 {
    if is_12(request) {
        0xc4
    } else {
        0x8001
    }
}

/// A made-up answer to GetRandom of eight bytes, in the form that the request's TPM has.
pub(crate) fn made_up(request: &[u8], answer: &mut Vec<u8>) {
    let mut body = if is_12(request) {
        vec![0, 0, 0, 8]
    } else {
        vec![0, 8]
    };
    body.extend([MADE_UP; 8]);
    *answer = packet(tag_for(request), 0, &body);
}

/// The request's own bytes as the answer.
pub(crate) fn echo(request: &[u8], answer: &mut Vec<u8>) {
    *answer = packet(tag_for(request), 0, request.get(HEADER..).unwrap_or(&[]));
}

/// The same, but its header's length is one too many.
pub(crate) fn echo_longer(request: &[u8], answer: &mut Vec<u8>) {
    echo(request, answer);
    longer(request, answer);
}

/// The header says one byte more than there is.
pub(crate) fn longer(_request: &[u8], answer: &mut Vec<u8>) {
    let length = answer.len() as u32;
    put32(answer, 2, length + 1);
}

/// The header says one byte less than there is.
pub(crate) fn shorter(_request: &[u8], answer: &mut Vec<u8>) {
    let length = answer.len() as u32;
    put32(answer, 2, length - 1);
}

/// The header says four billion bytes.
pub(crate) fn longest(_request: &[u8], answer: &mut Vec<u8>) {
    put32(answer, 2, u32::MAX);
}

/// The TPM failed: TPM_RC_FAILURE, or TPM_FAIL.
pub(crate) fn failure(request: &[u8], answer: &mut Vec<u8>) {
    let code = if is_12(request) { 9 } else { 0x101 };
    *answer = packet(tag_for(request), code, &[]);
}

/// The TPM is busy, for ever: TPM_RC_RETRY, which the kernel tries again; TPM_RETRY.
pub(crate) fn retry(request: &[u8], answer: &mut Vec<u8>) {
    let code = if is_12(request) { 0x800 } else { 0x922 };
    *answer = packet(tag_for(request), code, &[]);
}

/// What a TPM 1.2 says to a command of TPM 2.0, and the other way round.
pub(crate) fn other_version(request: &[u8], answer: &mut Vec<u8>) {
    *answer = if is_12(request) {
        packet(0x8001, 0x1e, &[])
    } else {
        packet(0xc4, 0x1e, &[])
    };
}

/// A tag that no TPM has.
pub(crate) fn no_tag(_request: &[u8], answer: &mut Vec<u8>) {
    if let Some(tag) = answer.get_mut(..2) {
        tag.fill(0xff);
    }
}

fn is_get_random(request: &[u8]) -> bool {
    be32(request, 6) == Some(if is_12(request) { 0x46 } else { 0x17b })
}

/// GetRandom gives 64 bytes more than were asked for; the packet is in order otherwise.
pub(crate) fn more_random(request: &[u8], answer: &mut Vec<u8>) {
    if !is_get_random(request) || answer.len() <= HEADER {
        return;
    }
    answer.extend([MADE_UP; 64]);
    let length = answer.len() as u32;
    put32(answer, 2, length);
    if is_12(request) {
        put32(answer, HEADER, length - 14);
    } else {
        let size = (length - 12) as u16;
        answer[HEADER..HEADER + 2].copy_from_slice(&size.to_be_bytes());
    }
}

/// GetRandom says that it gives as many bytes as its size field can say.
pub(crate) fn boundless_random(request: &[u8], answer: &mut Vec<u8>) {
    let size = if is_12(request) { 4 } else { 2 };
    if is_get_random(request) && answer.len() > HEADER + size {
        answer[HEADER..HEADER + size].fill(0xff);
    }
}

/// TPM 2.0's GetCapability of this capability.
fn is_capability(request: &[u8], capability: u32) -> bool {
    !is_12(request) && be32(request, 6) == Some(0x17a) && be32(request, HEADER) == Some(capability)
}

/// An answer to GetCapability of PCR banks: `count` is said, and `banks` are there.
fn pcr_banks(request: &[u8], answer: &mut Vec<u8>, count: u32, banks: &[[u8; 6]]) {
    if is_capability(request, 5) {
        let mut body = vec![0, 0, 0, 0, 5];
        body.extend(count.to_be_bytes());
        body.extend(banks.concat());
        *answer = packet(0x8001, 0, &body);
    }
}

/// Four billion PCR banks, of which one is there.
pub(crate) fn endless_banks(request: &[u8], answer: &mut Vec<u8>) {
    pcr_banks(request, answer, u32::MAX, &[[0, 0x0b, 3, 0xff, 0xff, 0xff]]);
}

/// 600 PCR banks of hashes that nobody knows, and as many as there is room for.
pub(crate) fn many_banks(request: &[u8], answer: &mut Vec<u8>) {
    let banks: Vec<[u8; 6]> = (0..600u16)
        .map(|n| {
            let [high, low] = (0x7000 + n).to_be_bytes();
            [high, low, 3, 0xff, 0xff, 0xff]
        })
        .collect();
    pcr_banks(request, answer, 600, &banks);
}

/// No PCR bank at all.
pub(crate) fn no_banks(request: &[u8], answer: &mut Vec<u8>) {
    pcr_banks(request, answer, 0, &[]);
}

/// A bank whose selection is said to be 255 bytes long.
pub(crate) fn long_bank(request: &[u8], answer: &mut Vec<u8>) {
    pcr_banks(request, answer, 1, &[[0, 0x0b, 255, 0xff, 0xff, 0xff]]);
}

/// The list of commands (TPM 2.0) is said to have four billion entries; every other number that
/// GetCapability gives is as big.
pub(crate) fn absurd_properties(request: &[u8], answer: &mut Vec<u8>) {
    if is_capability(request, 6) || is_capability(request, 2) {
        if let Some(body) = answer.get_mut(HEADER + 5..) {
            body.fill(0xff);
        }
    }
}

/// TPM 1.2: the property `sub` of GetCapability, filled with `byte`.
fn property_12(request: &[u8], answer: &mut [u8], sub: u32, byte: u8) {
    let asked = is_12(request)
        && be32(request, 6) == Some(0x65)
        && be32(request, HEADER) == Some(5)
        && be32(request, HEADER + 8) == Some(sub);
    if let (true, Some(body)) = (asked, answer.get_mut(HEADER + 4..)) {
        body.fill(byte);
    }
}

/// TPM 1.2: timeouts (0x115) and durations (0x120) of more than an hour.
pub(crate) fn endless_durations(request: &[u8], answer: &mut Vec<u8>) {
    property_12(request, answer, 0x115, 0xff);
    property_12(request, answer, 0x120, 0xff);
}

/// TPM 1.2: timeouts and durations of one microsecond.
pub(crate) fn no_durations(request: &[u8], answer: &mut Vec<u8>) {
    for sub in [0x115, 0x120] {
        property_12(request, answer, sub, 0);
        let before = answer.len();
        if before >= HEADER + 16 && is_12(request) && be32(request, HEADER + 8) == Some(sub) {
            for at in (HEADER + 4..before).step_by(4) {
                put32(answer, at, 1);
            }
        }
    }
}

/// The ordinal of a TPM 1.2's command.
fn ordinal_12(request: &[u8]) -> Option<u32> {
    be32(request, 6).filter(|_| is_12(request))
}

/// TPM 1.2: long durations are 71 minutes, and the self test is never done: TPM_DOING_SELFTEST.
pub(crate) fn endless_selftest(request: &[u8], answer: &mut Vec<u8>) {
    property_12(request, answer, 0x120, 0);
    match ordinal_12(request) {
        Some(0x65) if be32(request, HEADER + 8) == Some(0x120) && answer.len() >= HEADER + 16 => {
            for (at, microseconds) in [(14, 1_000_000), (18, 2_000_000), (22, 0xffff_0000)] {
                put32(answer, at, microseconds);
            }
        }
        Some(0x53) => *answer = packet(0xc4, 0, &[]),
        Some(0x15) => *answer = packet(0xc4, 0x802, &[]),
        _ => {}
    }
}

/// TPM 1.2: there are 1,000 PCRs, and each can be read.
pub(crate) fn many_pcrs(request: &[u8], answer: &mut Vec<u8>) {
    let asked = be32(request, HEADER) == Some(5) && be32(request, HEADER + 8) == Some(0x101);
    match ordinal_12(request) {
        Some(0x65) if asked => put32(answer, HEADER + 4, 1000),
        Some(0x15) => *answer = packet(0xc4, 0, &[MADE_UP; 20]),
        _ => {}
    }
}

/// The last bank's selection has four bytes, for 32 PCRs: legal, and more than Linux knows.
pub(crate) fn wide_bank(request: &[u8], answer: &mut Vec<u8>) {
    if is_capability(request, 5) {
        let bank = [0, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0x0b, 4, 0xff, 0xff, 0xff, 0];
        *answer = packet(0x8001, 0, &bank);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANDOM_20: [u8; 12] = [0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x7b, 0, 8];
    const RANDOM_12: [u8; 14] = [0, 0xc1, 0, 0, 0, 14, 0, 0, 0, 0x46, 0, 0, 0, 8];
    const PCRS: [u8; 22] = [
        0x80, 1, 0, 0, 0, 22, 0, 0, 1, 0x7a, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1,
    ];
    const DURATION: [u8; 22] = [
        0, 0xc1, 0, 0, 0, 22, 0, 0, 0, 0x65, 0, 0, 0, 5, 0, 0, 0, 4, 0, 0, 1, 0x20,
    ];

    /// An answer by an edit of an honest one.
    fn edited(edit: Edit, request: &[u8]) -> Vec<u8> {
        let body = if is_12(request) {
            [0, 0, 0, 8].to_vec()
        } else {
            [0, 8].to_vec()
        };
        let mut answer = packet(tag_for(request), 0, &[body, vec![1; 8]].concat());
        edit(request, &mut answer);
        answer
    }

    fn claimed(answer: &[u8]) -> u32 {
        be32(answer, 2).unwrap()
    }

    #[test]
    fn whole_packets_claim_their_own_length() {
        let edits: [Edit; 8] = [
            made_up,
            echo,
            failure,
            retry,
            other_version,
            no_tag,
            more_random,
            boundless_random,
        ];
        for edit in edits {
            for request in [&RANDOM_20[..], &RANDOM_12[..]] {
                let answer = edited(edit, request);
                assert_eq!(claimed(&answer) as usize, answer.len());
            }
        }
    }

    #[test]
    fn wrong_lengths() {
        assert_eq!(claimed(&edited(longer, &RANDOM_20)), 21);
        assert_eq!(claimed(&edited(shorter, &RANDOM_20)), 19);
        assert_eq!(claimed(&edited(longest, &RANDOM_20)), u32::MAX);
        assert_eq!(claimed(&edited(echo_longer, &RANDOM_20)), 13);
    }

    #[test]
    fn random_numbers() {
        assert_eq!(
            edited(made_up, &RANDOM_12)[10..],
            [0, 0, 0, 8, 187, 187, 187, 187, 187, 187, 187, 187]
        );
        assert_eq!(edited(more_random, &RANDOM_20)[10..12], [0, 72]);
        assert_eq!(edited(more_random, &RANDOM_12)[10..14], [0, 0, 0, 72]);
        assert_eq!(edited(boundless_random, &RANDOM_20)[10..12], [255, 255]);
        // Other commands' answers are left alone.
        assert_eq!(edited(more_random, &PCRS), edited(no_banks, &RANDOM_20));
    }

    #[test]
    fn capabilities() {
        assert_eq!(edited(endless_banks, &PCRS)[15..19], [255; 4]);
        assert_eq!(edited(many_banks, &PCRS).len(), 19 + 3600);
        assert_eq!(edited(long_bank, &PCRS)[19..22], [0, 0x0b, 255]);
        let mut answer = packet(0xc4, 0, &[[0, 0, 0, 12].to_vec(), vec![7; 12]].concat());
        no_durations(&DURATION, &mut answer);
        assert_eq!(answer[14..], [0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1]);
        endless_durations(&DURATION, &mut answer);
        assert_eq!(answer[14..], [255; 12]);
        endless_selftest(&DURATION, &mut answer);
        assert_eq!(answer[22..], [0xff, 0xff, 0, 0]);
        assert_eq!(edited(wide_bank, &PCRS).len(), 26);
    }

    #[test]
    fn pcrs_and_self_test() {
        let mut count = DURATION;
        count[18..].copy_from_slice(&0x101_u32.to_be_bytes());
        let mut answer = packet(0xc4, 0, &[0, 0, 0, 4, 0, 0, 0, 24]);
        many_pcrs(&count, &mut answer);
        assert_eq!(answer[14..], [0, 0, 3, 232]);

        let read = [0, 0xc1, 0, 0, 0, 14, 0, 0, 0, 0x15, 0, 0, 0, 99];
        assert_eq!(edited(many_pcrs, &read).len(), 30);
        assert_eq!(edited(endless_selftest, &read)[6..], [0, 0, 8, 2]);
        // Other commands' answers are left alone.
        assert_eq!(edited(many_pcrs, &RANDOM_12).len(), 22);
        assert_eq!(edited(endless_selftest, &RANDOM_12).len(), 22);
    }
}
