// SPDX-License-Identifier: GPL-2.0

//! Detects a TPM of the other version, and a TPM that was reset: one command whose response differs
//! after each reset, in which a TPM loses its PCRs, its sessions and its loaded keys.
//!
//! The response may be a stale one: vtpm-stubdom carries a running command over to the next
//! connection. So it has to have the length and the shape of this command's own.
//!
//! Sources: TPM 2.0 Library, part 3, "TPM2_ReadClock", and part 2, "TPMS_TIME_INFO"; TPM Main
//! Specification 1.2, part 3, "TPM_GetTicks", and part 2, "TPM_CURRENT_TICKS".

use super::be::{
    be16,
    be32, //
};

/// Which commands a TPM understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// TPM 1.2.
    V1_2,
    /// TPM 2.0.
    V2_0,
}

/// Length of the command.
pub const EPOCH_CMD_LEN: usize = 10;

/// Length of a response that is an error.
const ERROR_LEN: usize = 10;

/// The tags of a TPM 1.2's responses, which a TPM 2.0 gives to a TPM 1.2's commands as well; and of
/// a TPM 2.0's own.
const TAG_TPM12: u16 = 0x00c4;
const TAG_TPM20: u16 = 0x8001;

/// Either version's code for a command that has the other's tag (TPM_BADTAG, TPM_RC_BAD_TAG).
const BAD_TAG: u32 = 0x1e;

/// Tag of TPM_CURRENT_TICKS.
const TAG_CURRENT_TICKS: u16 = 0x0014;

/// What a response tells about the TPM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epoch {
    /// The time between two resets: of a TPM 1.2 the first 64 bits of a nonce that it makes at each
    /// start, of a TPM 2.0 the reset count.
    Known(u64),
    /// The TPM is not of this version.
    OtherVersion,
    /// The TPM does not tell, as when it is in failure mode or waits for its Startup.
    Unknown,
    /// This is the response to another command.
    Stale,
}

impl Version {
    /// The version's usual name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V1_2 => "TPM 1.2",
            Self::V2_0 => "TPM 2.0",
        }
    }

    /// The command: TPM_GetTicks or TPM2_ReadClock.
    pub const fn epoch_command(self) -> [u8; EPOCH_CMD_LEN] {
        match self {
            Self::V1_2 => [0x00, 0xc1, 0, 0, 0, 10, 0, 0, 0x00, 0xf1],
            Self::V2_0 => [0x80, 0x01, 0, 0, 0, 10, 0, 0, 0x01, 0x81],
        }
    }

    /// Parses the response.
    pub fn parse_epoch(self, response: &[u8]) -> Epoch {
        let (own, other) = match self {
            Self::V1_2 => (TAG_TPM12, TAG_TPM20),
            Self::V2_0 => (TAG_TPM20, TAG_TPM12),
        };
        let tag = be16(response, 0);

        match be32(response, 6) {
            Some(0) if tag == Some(own) => {
                self.reset_mark(response).map_or(Epoch::Stale, Epoch::Known)
            }
            Some(BAD_TAG) if response.len() == ERROR_LEN => Epoch::OtherVersion,
            Some(code) if code != 0 && response.len() == ERROR_LEN && tag == Some(own) => {
                Epoch::Unknown
            }
            Some(code) if code != 0 && response.len() == ERROR_LEN && tag == Some(other) => {
                Epoch::OtherVersion
            }
            _ => Epoch::Stale,
        }
    }

    /// The part that differs after each reset, if this is a response to the command.
    fn reset_mark(self, response: &[u8]) -> Option<u64> {
        let (is_shaped, mark) = match self {
            // The tag, the ticks and their rate come before the nonce.
            Self::V1_2 => (
                response.len() == 42 && be16(response, 10)? == TAG_CURRENT_TICKS,
                (u64::from(be32(response, 22)?) << 32) | u64::from(be32(response, 26)?),
            ),
            // The time and the clock come before the counts, all in milliseconds: neither has run
            // for 2^48 of them. A flag comes last.
            Self::V2_0 => (
                response.len() == 35
                    && be16(response, 10)? == 0
                    && be16(response, 18)? == 0
                    && *response.get(34)? <= 1,
                be32(response, 26)?.into(),
            ),
        };

        is_shaped.then_some(mark)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a version makes of a response with this code and what follows it.
    fn epoch(version: Version, tag: u16, code: u32, rest: &[u8]) -> Epoch {
        let mut response = [0; 64];
        let length = 10 + rest.len();

        response[..2].copy_from_slice(&tag.to_be_bytes());
        response[2..6].copy_from_slice(&(length as u32).to_be_bytes());
        response[6..10].copy_from_slice(&code.to_be_bytes());
        response[10..length].copy_from_slice(rest);
        version.parse_epoch(&response[..length])
    }

    /// TPMS_TIME_INFO.
    fn time_info() -> [u8; 25] {
        let mut rest = core::array::from_fn(|i| i as u8);

        rest[..2].fill(0);
        rest[8..10].fill(0);
        rest[24] = 1;
        rest
    }

    /// TPM_CURRENT_TICKS.
    fn current_ticks() -> [u8; 32] {
        let mut rest = core::array::from_fn(|i| i as u8);

        rest[..2].copy_from_slice(&TAG_CURRENT_TICKS.to_be_bytes());
        rest
    }

    #[test]
    fn epoch_lasts_until_the_reset_count_changes() {
        let mut rest = time_info();
        let epoch_2 = |rest: &[u8]| epoch(Version::V2_0, TAG_TPM20, 0, rest);
        let before = epoch_2(&rest);

        assert!(matches!(before, Epoch::Known(_)));
        // The clock, and the restart count: TPM Resume keeps the PCRs.
        rest[15] += 1;
        rest[23] += 1;
        rest[24] = 0;
        assert_eq!(epoch_2(&rest), before);
        rest[19] += 1;
        assert_ne!(epoch_2(&rest), before);
        assert!(matches!(epoch_2(&rest), Epoch::Known(_)));

        let mut rest = current_ticks();
        let epoch_1 = |rest: &[u8]| epoch(Version::V1_2, TAG_TPM12, 0, rest);
        let before = epoch_1(&rest);

        assert!(matches!(before, Epoch::Known(_)));
        rest[11] += 1;
        assert_eq!(epoch_1(&rest), before);
        rest[19] += 1;
        assert_ne!(epoch_1(&rest), before);
        assert!(matches!(epoch_1(&rest), Epoch::Known(_)));
    }

    #[test]
    fn response_to_another_command_is_stale() {
        let rest = time_info();
        let long = [0; 54];

        for length in 0..long.len() {
            if length != 25 {
                assert_eq!(
                    epoch(Version::V2_0, TAG_TPM20, 0, &long[..length]),
                    Epoch::Stale
                );
            }
            assert_eq!(
                epoch(Version::V1_2, TAG_TPM12, 0, &long[..length]),
                Epoch::Stale
            );
            assert_eq!(
                epoch(Version::V1_2, TAG_TPM20, 0, &long[..length]),
                Epoch::Stale
            );
        }
        // GetRandom of 23 bytes is as long.
        let mut random = rest;
        random[1] = 23;
        assert_eq!(epoch(Version::V2_0, TAG_TPM20, 0, &random), Epoch::Stale);
        let mut flag = rest;
        flag[24] = 2;
        assert_eq!(epoch(Version::V2_0, TAG_TPM20, 0, &flag), Epoch::Stale);
        assert_eq!(epoch(Version::V2_0, TAG_TPM20, 1, &rest), Epoch::Stale);
        assert_eq!(Version::V2_0.parse_epoch(&[]), Epoch::Stale);
    }

    #[test]
    fn versions_do_not_accept_each_other() {
        for version in [Version::V1_2, Version::V2_0] {
            assert_eq!(epoch(version, TAG_TPM12, 0x1e, &[]), Epoch::OtherVersion);
        }
        assert_eq!(
            epoch(Version::V1_2, TAG_TPM20, 0x101, &[]),
            Epoch::OtherVersion
        );
        assert_eq!(
            epoch(Version::V2_0, TAG_TPM12, 0x0a, &[]),
            Epoch::OtherVersion
        );
        assert_eq!(epoch(Version::V2_0, TAG_TPM20, 0x100, &[]), Epoch::Unknown);
        assert_eq!(epoch(Version::V1_2, TAG_TPM12, 0x0a, &[]), Epoch::Unknown);
    }
}
