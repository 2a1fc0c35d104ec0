// SPDX-License-Identifier: GPL-2.0

//! What a cancelled command leaves behind in a TPM 2.0: it ran to its end, and its guest will never
//! learn the handle of what it made. A TPM has room for three such objects, so they are flushed.

use super::Version;

/// TPM2_FlushContext.
const FLUSH_CONTEXT: u32 = 0x165;

/// The commands whose answer starts with the handle of something that takes room in the TPM:
/// CreatePrimary, Load, HMAC_Start, ContextLoad, LoadExternal, StartAuthSession, HashSequenceStart,
/// CreateLoaded.
const MAKERS: [u32; 8] = [0x131, 0x157, 0x15b, 0x161, 0x167, 0x176, 0x186, 0x191];

/// The four bytes from `at` on.
fn be32(packet: &[u8], at: usize) -> Option<u32> {
    let bytes = packet.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

/// The command's code, or the answer's.
pub fn code(packet: &[u8]) -> Option<u32> {
    be32(packet, 6)
}

/// The TPM 2.0 command that undoes the one with this code, now that it was answered thus; `None` if
/// there is nothing to undo.
pub fn undo(version: Version, command: u32, answer: &[u8]) -> Option<[u8; 14]> {
    let handle = match code(answer) {
        Some(0) if version == Version::Tpm2 && MAKERS.contains(&command) => be32(answer, 10)?,
        _ => return None,
    };
    let mut packet = [0x80, 1, 0, 0, 0, 14, 0, 0, 0, 0, 0, 0, 0, 0];

    packet[6..10].copy_from_slice(&FLUSH_CONTEXT.to_be_bytes());
    packet[10..].copy_from_slice(&handle.to_be_bytes());
    Some(packet)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MADE: [u8; 14] = [0x80, 2, 0, 0, 0, 14, 0, 0, 0, 0, 0x80, 0, 0, 1];

    #[test]
    fn flushes_what_was_made() {
        let packet = [0x80, 1, 0, 0, 0, 14, 0, 0, 1, 0x65, 0x80, 0, 0, 1];

        assert_eq!(undo(Version::Tpm2, 0x131, &MADE), Some(packet));
    }

    #[test]
    fn nothing_to_undo() {
        let mut failed = MADE;
        failed[8] = 9;

        assert_eq!(undo(Version::Tpm2, 0x17b, &MADE), None, "GetRandom");
        assert_eq!(undo(Version::Tpm2, 0x131, &failed), None);
        assert_eq!(undo(Version::Tpm2, 0x131, &MADE[..10]), None);
        assert_eq!(undo(Version::Tpm2, 0x131, &[]), None);
        assert_eq!(undo(Version::Tpm12, 0x131, &MADE), None);
    }
}
