// SPDX-License-Identifier: GPL-2.0

//! Big-endian numbers in a TPM's packets.

/// The two bytes from `at` on as a number, `None` when the packet ends before.
pub fn be16(packet: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*packet.get(at..)?.first_chunk()?))
}

/// The four bytes from `at` on as a number, `None` when the packet ends before.
pub fn be32(packet: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*packet.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_within_the_packet_only() {
        let packet = [1, 2, 3, 4, 5];

        assert_eq!(be16(&packet, 3), Some(0x0405));
        assert_eq!(be16(&packet, 4), None);
        assert_eq!(be32(&packet, 1), Some(0x0203_0405));
        assert_eq!(be32(&packet, 2), None);
        assert_eq!(be32(&packet, 6), None);
        assert_eq!(be32(&packet, usize::MAX), None);
    }
}
