// SPDX-License-Identifier: GPL-2.0

//! Which life of which TPM it is: one command whose answer tells whether a TPM is of the version
//! that it was, and whether it has been started anew since. A TPM that was lost its PCRs, its
//! sessions and its loaded keys.
//!
//! Sources: TPM 2.0 Library, part 3, "TPM2_ReadClock", and part 2, "TPMS_TIME_INFO"; TPM Main
//! Specification 1.2, part 3, "TPM_GetTicks", and part 2, "TPM_CURRENT_TICKS".

/// Which commands a TPM understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// TPM 1.2.
    V1_2,
    /// TPM 2.0.
    V2_0,
}

/// Bytes of the question.
pub const QUESTION: usize = 10;

/// What of an answer is the same for all of one life.
const MARK: usize = 20;

/// The tags of a TPM 1.2's answers, which a TPM 2.0 gives to a TPM 1.2's commands as well; and of a
/// TPM 2.0's own.
const TAG_TPM12: [u8; 2] = [0x00, 0xc4];
const TAG_TPM20: [u8; 2] = [0x80, 0x01];

/// Either version's code for a command that has the other's tag.
const BAD_TAG: [u8; 4] = [0, 0, 0, 0x1e];

/// What is told of a TPM's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// This one: a nonce that a TPM 1.2 makes at each start, or a TPM 2.0's counts of its resets
    /// and restarts.
    Mark([u8; MARK]),
    /// None of a TPM of this version.
    OtherVersion,
    /// The TPM does not tell, as when it is in failure mode or waits for its Startup.
    Untold,
}

impl Version {
    /// What people call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V1_2 => "TPM 1.2",
            Self::V2_0 => "TPM 2.0",
        }
    }

    /// The command that asks for it: TPM_GetTicks or TPM2_ReadClock.
    pub const fn question(self) -> [u8; QUESTION] {
        match self {
            Self::V1_2 => [0x00, 0xc1, 0, 0, 0, 10, 0, 0, 0x00, 0xf1],
            Self::V2_0 => [0x80, 0x01, 0, 0, 0, 10, 0, 0, 0x01, 0x81],
        }
    }

    /// What its answer tells.
    pub fn life(self, answer: &[u8]) -> Life {
        let (own, mark) = match self {
            // The tag, the ticks and their rate come before the nonce.
            Self::V1_2 => (TAG_TPM12, answer.get(22..42)),
            // The time and the clock come before the counts.
            Self::V2_0 => (TAG_TPM20, answer.get(26..34)),
        };
        let code = answer.get(6..10);

        if answer.get(..2) != Some(&own) || code == Some(&BAD_TAG) {
            return Life::OtherVersion;
        }
        match (code, mark) {
            (Some([0, 0, 0, 0]), Some(mark)) => {
                let mut all = [0; MARK];

                for (to, from) in all.iter_mut().zip(mark) {
                    *to = *from;
                }
                Life::Mark(all)
            }
            _ => Life::Untold,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a version makes of an answer with this code and what follows it.
    fn life(version: Version, tag: [u8; 2], code: u32, rest: &[u8]) -> Life {
        let mut answer = [0; 64];
        let length = 10 + rest.len();

        answer[..2].copy_from_slice(&tag);
        answer[2..6].copy_from_slice(&(length as u32).to_be_bytes());
        answer[6..10].copy_from_slice(&code.to_be_bytes());
        answer[10..length].copy_from_slice(rest);
        version.life(&answer[..length])
    }

    /// Bytes that all differ.
    fn bytes<const N: usize>() -> [u8; N] {
        core::array::from_fn(|i| i as u8)
    }

    #[test]
    fn time_goes_on_within_a_life() {
        let mut rest: [u8; 25] = bytes();
        let life_2 = |rest: &[u8]| life(Version::V2_0, TAG_TPM20, 0, rest);
        let before = life_2(&rest);

        assert!(matches!(before, Life::Mark(_)));
        rest[15] += 1;
        rest[24] += 1;
        assert_eq!(life_2(&rest), before);
        rest[19] += 1;
        assert_ne!(life_2(&rest), before);
        assert_eq!(life_2(&rest[..23]), Life::Untold);

        let mut rest: [u8; 32] = bytes();
        let life_1 = |rest: &[u8]| life(Version::V1_2, TAG_TPM12, 0, rest);
        let before = life_1(&rest);

        assert!(matches!(before, Life::Mark(_)));
        rest[11] += 1;
        assert_eq!(life_1(&rest), before);
        rest[31] += 1;
        assert_ne!(life_1(&rest), before);
        assert_eq!(life_1(&rest[..31]), Life::Untold);
    }

    #[test]
    fn versions_do_not_take_each_other_for_themselves() {
        for version in [Version::V1_2, Version::V2_0] {
            assert_eq!(life(version, TAG_TPM12, 0x1e, &[]), Life::OtherVersion);
            assert_eq!(version.life(&[]), Life::OtherVersion);
        }
        assert_eq!(life(Version::V2_0, TAG_TPM20, 0x100, &[]), Life::Untold);
        assert_eq!(life(Version::V1_2, TAG_TPM12, 0x0a, &[]), Life::Untold);
        assert_eq!(
            life(Version::V1_2, TAG_TPM20, 0, &[0; 32]),
            Life::OtherVersion
        );
    }
}
