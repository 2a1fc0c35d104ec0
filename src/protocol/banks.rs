// SPDX-License-Identifier: GPL-2.0

//! The one answer that Linux's TPM core (as of 7.3, `tpm2_get_pcr_allocation()`) does not survive:
//! a list of PCR banks in which a bank's selection is longer than the three bytes that the core
//! has for it. It reads behind them, and a kernel with FORTIFY_SOURCE ends the process by an oops.
//!
//! Layout: TPM 2.0 Library, part 2, "TPMS_CAPABILITY_DATA", "TPMS_PCR_SELECTION".

use super::packet::HEADER_SIZE;

/// Tag of an answer without sessions, and the code of GetCapability, and its PCR banks.
const NO_SESSIONS: u16 = 0x8001;
const GET_CAPABILITY: u32 = 0x17a;
const CAPABILITY_PCRS: u32 = 5;

/// The longest selection that the core has room for: PCRs 0 to 23.
const LONGEST_SELECTION: usize = 3;

fn be16(packet: &[u8], at: usize) -> Option<u16> {
    let bytes = packet.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}

fn be32(packet: &[u8], at: usize) -> Option<u32> {
    let bytes = packet.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

/// Whether a request asks a TPM 2.0 for its PCR banks.
pub fn asked_for(request: &[u8]) -> bool {
    be32(request, 6) == Some(GET_CAPABILITY) && be32(request, HEADER_SIZE) == Some(CAPABILITY_PCRS)
}

/// Whether the answer to such a request may be given to the core. Lists that end too early it
/// finds out about by itself.
pub fn are_sound(answer: &[u8]) -> bool {
    if be16(answer, 0) != Some(NO_SESSIONS) {
        return true;
    }

    // After the header: whether there is more, the capability, the number of banks, the banks.
    let count = be32(answer, HEADER_SIZE + 5).unwrap_or(0);
    let mut bank = HEADER_SIZE + 9;
    for _ in 0..count {
        let Some(&size) = answer.get(bank + 2) else {
            break;
        };
        let size = usize::from(size);
        if size > LONGEST_SELECTION {
            return false;
        }
        bank += 3 + size;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether an answer is sound that says that it has so many banks, and has these.
    fn sound(count: u32, banks: &[&[u8]]) -> bool {
        let mut answer = [0; 64];
        let mut end = 19;

        answer[..15].copy_from_slice(&[0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5]);
        answer[15..end].copy_from_slice(&count.to_be_bytes());
        for bank in banks {
            answer[end..end + bank.len()].copy_from_slice(bank);
            end += bank.len();
        }
        are_sound(&answer[..end])
    }

    #[test]
    fn requests() {
        let mut request = [
            0x80, 1, 0, 0, 0, 22, 0, 0, 1, 0x7a, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1,
        ];

        assert!(asked_for(&request));
        assert!(!asked_for(&request[..12]));
        request[13] = 6;
        assert!(!asked_for(&request));
    }

    #[test]
    fn banks() {
        let sha1: &[u8] = &[0, 4, 3, 255, 255, 255];
        let short: &[u8] = &[0, 0x0b, 0];
        let long: &[u8] = &[0, 0x0b, 4, 255, 255, 255, 0];

        assert!(sound(0, &[]));
        assert!(sound(2, &[sha1, sha1]));
        assert!(sound(2, &[short, sha1]));
        assert!(!sound(1, &[long]));
        assert!(!sound(3, &[sha1, short, long]));
        // What is not counted is not read, and what is not there ends the list.
        assert!(sound(1, &[sha1, long]));
        assert!(sound(u32::MAX, &[sha1]));
        // Failures, and the answers of a TPM 1.2, have no list.
        assert!(are_sound(&[0x80, 1, 0, 0, 0, 10, 0, 0, 0, 0]));
        assert!(are_sound(&[0, 0xc4, 0, 0, 0, 10, 0, 0, 0, 0x1e]));
    }
}
