// SPDX-License-Identifier: GPL-2.0

//! Responses that Linux's TPM core (as of 7.3) does not survive, and which of its own commands they
//! come to:
//!
//! - `tpm2_get_pcr_allocation()`: a PCR bank whose selection is longer than the three bytes that
//!   the core has for it. It reads behind them, and a kernel with FORTIFY_SOURCE ends the process by
//!   an oops.
//! - `pcrs_show()`: so many PCRs of a TPM 1.2 that their text is longer than a page.
//!
//! Layouts: TPM 2.0 Library, part 2, "TPMS_CAPABILITY_DATA", "TPMS_PCR_SELECTION"; TPM Main
//! Specification 1.2, part 3, "TPM_GetCapability".

use super::{
    be::{
        be16,
        be32, //
    },
    packet::HEADER_SIZE, //
};

/// GetCapability of TPM_CAP_PCRS, from property 0 on, one property: what
/// `tpm2_get_pcr_allocation()` sends. Others, as user space sends them, are nobody's concern here.
const PCR_ALLOCATION: [u8; 22] = [
    0x80, 0x01, 0, 0, 0, 22, 0, 0, 0x01, 0x7a, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1,
];

/// TPM_GetCapability of TPM_CAP_PROPERTY, TPM_CAP_PROP_PCR: what `pcrs_show()` sends.
const PCR_COUNT: [u8; 22] = [
    0x00, 0xc1, 0, 0, 0, 22, 0, 0, 0, 101, 0, 0, 0, 5, 0, 0, 0, 4, 0, 0, 1, 1,
];

/// The longest selection that the core has room for: PCRs 0 to 23.
const MAX_SELECTION: usize = 3;

/// A PCR is a line of up to 71 bytes there, and a page has room for 57.
const MAX_PCRS: u32 = 57;

/// Tag of a TPM 2.0 response without sessions.
const NO_SESSIONS: u16 = 0x8001;

/// A command whose response has to be checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quirk {
    /// `tpm2_get_pcr_allocation()`
    PcrAllocation,
    /// `pcrs_show()`
    PcrCount,
}

impl Quirk {
    /// Which of the commands a request is, if it is one.
    pub fn of(request: &[u8]) -> Option<Self> {
        if request == PCR_ALLOCATION {
            Some(Self::PcrAllocation)
        } else if request == PCR_COUNT {
            Some(Self::PcrCount)
        } else {
            None
        }
    }

    /// Whether the core survives the response.
    pub fn is_survived(self, response: &[u8]) -> bool {
        match self {
            Self::PcrAllocation => pcr_selections_fit(response),
            // After the header: the length of the number, and the number.
            Self::PcrCount => be32(response, HEADER_SIZE + 4).is_none_or(|count| count <= MAX_PCRS),
        }
    }
}

/// Whether the core has room for all PCR selections. It finds out by itself about a list that ends
/// too early.
fn pcr_selections_fit(response: &[u8]) -> bool {
    if be16(response, 0) != Some(NO_SESSIONS) {
        return true;
    }

    // After the header: whether there is more, the capability, the number of banks, the banks.
    let count = be32(response, HEADER_SIZE + 5).unwrap_or(0);
    let mut bank = HEADER_SIZE + 9;
    for _ in 0..count {
        let Some(&size) = response.get(bank + 2) else {
            break;
        };
        let size = usize::from(size);
        if size > MAX_SELECTION {
            return false;
        }
        bank += 3 + size;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the core survives a list that says that it has so many banks, and has these.
    fn survived(count: u32, banks: &[&[u8]]) -> bool {
        let mut response = [0; 64];
        let mut end = 19;

        response[..15].copy_from_slice(&[0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5]);
        response[15..end].copy_from_slice(&count.to_be_bytes());
        for bank in banks {
            response[end..end + bank.len()].copy_from_slice(bank);
            end += bank.len();
        }
        Quirk::PcrAllocation.is_survived(&response[..end])
    }

    #[test]
    fn requests_of_the_core_alone() {
        let mut request = PCR_ALLOCATION;

        assert_eq!(Quirk::of(&request), Some(Quirk::PcrAllocation));
        assert_eq!(Quirk::of(&request[..12]), None);
        // tpm2_getcap asks for more properties.
        request[21] = 254;
        assert_eq!(Quirk::of(&request), None);
        assert_eq!(Quirk::of(&PCR_COUNT), Some(Quirk::PcrCount));
        assert_eq!(Quirk::of(&[]), None);
    }

    #[test]
    fn pcr_banks() {
        let sha1: &[u8] = &[0, 4, 3, 255, 255, 255];
        let short: &[u8] = &[0, 0x0b, 0];
        let long: &[u8] = &[0, 0x0b, 4, 255, 255, 255, 0];

        assert!(survived(0, &[]));
        assert!(survived(2, &[sha1, sha1]));
        assert!(survived(2, &[short, sha1]));
        assert!(!survived(1, &[long]));
        assert!(!survived(3, &[sha1, short, long]));
        // What is not counted is not read, and what is not there ends the list.
        assert!(survived(1, &[sha1, long]));
        assert!(survived(u32::MAX, &[sha1]));
        // An error, and a response of a TPM 1.2, has no list.
        assert!(Quirk::PcrAllocation.is_survived(&[0x80, 1, 0, 0, 0, 10, 0, 0, 0, 0]));
        assert!(Quirk::PcrAllocation.is_survived(&[0, 0xc4, 0, 0, 0, 10, 0, 0, 0, 0x1e]));
    }

    #[test]
    fn pcr_counts() {
        let response = |count: u32| {
            let mut response = [0; 18];

            response[..10].copy_from_slice(&[0, 0xc4, 0, 0, 0, 18, 0, 0, 0, 0]);
            response[13] = 4;
            response[14..].copy_from_slice(&count.to_be_bytes());
            response
        };

        for (count, survived) in [
            (0, true),
            (24, true),
            (57, true),
            (58, false),
            (1000, false),
        ] {
            assert_eq!(Quirk::PcrCount.is_survived(&response(count)), survived);
        }
        assert!(!Quirk::PcrCount.is_survived(&response(u32::MAX)));
        assert!(Quirk::PcrCount.is_survived(&response(1000)[..10]));
    }
}
