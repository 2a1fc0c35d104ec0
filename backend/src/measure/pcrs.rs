// SPDX-License-Identifier: GPL-2.0

//! The two commands of a measured start: which banks are active, and extending a PCR. Their form is fixed, as that
//! of TPM2_Startup, so that no TSS is needed in each worker.

use super::digest::{Bank, Digests};
use crate::swtpm::{Client, Error, Version};

/// TPM2_GetCapability of TPM_CAP_PCRS.
const GET_BANKS: [u8; 22] = [
    0x80, 1, 0, 0, 0, 22, 0, 0, 1, 0x7a, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1,
];

/// Which banks of a TPM 2.0 have PCRs 0 to 7. One that cannot be extended is an error: the guest could.
pub(super) fn active_banks(client: &mut Client) -> Result<Vec<Bank>, Error> {
    let response = client.own("TPM2_GetCapability", &GET_BANKS)?;
    let garbage = |what: String| Error::Garbage("data", what);
    let ids = active_ids(response.packet());
    let ids = ids.ok_or_else(|| garbage(format!("no PCR banks: {:02x?}", response.packet())))?;
    ids.into_iter()
        .map(|id| Bank::from_id(id).ok_or_else(|| garbage(format!("PCR bank {id:#x} is active"))))
        .collect()
}

/// Takes the response apart: TPMI_YES_NO, TPM_CAP, and TPML_PCR_SELECTION.
fn active_ids(response: &[u8]) -> Option<Vec<u16>> {
    let mut rest = response.get(10..)?;
    let mut take = |n: usize| -> Option<&[u8]> {
        let taken = rest.get(..n)?;
        rest = &rest[n..];
        Some(taken)
    };
    take(5)?;
    let count = u32::from_be_bytes(take(4)?.try_into().ok()?);
    let mut ids = Vec::new();
    for _ in 0..count {
        let id = u16::from_be_bytes(take(2)?.try_into().ok()?);
        let len = usize::from(*take(1)?.first()?);
        if take(len)?.first() == Some(&0xff) {
            ids.push(id);
        }
    }
    Some(ids)
}

/// TPM2_PCR_Extend, or TPM_Extend.
pub(super) fn extend(
    client: &mut Client,
    version: Version,
    pcr: u32,
    digests: &Digests,
) -> Result<(), Error> {
    let packet = extension(version, pcr, digests);
    client.own("extending a PCR", &packet).map(drop)
}

fn extension(version: Version, pcr: u32, digests: &Digests) -> Vec<u8> {
    let pcr = pcr.to_be_bytes();
    let mut packet = match version {
        Version::Tpm12 => [&[0, 0xc1, 0, 0, 0, 0, 0, 0, 0, 0x14][..], &pcr].concat(),
        Version::Tpm2 => {
            let head = [0x80, 2, 0, 0, 0, 0, 0, 0, 1, 0x82];
            // TPM_RS_PW with an empty password.
            let auth = [0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0];
            let count = (digests.iter().len() as u32).to_be_bytes();
            [&head[..], &pcr, &auth, &count].concat()
        }
    };
    for (bank, digest) in digests.iter() {
        if version == Version::Tpm2 {
            packet.extend_from_slice(&bank.id().to_be_bytes());
        }
        packet.extend_from_slice(digest);
    }
    let len = packet.len() as u32;
    packet[2..6].copy_from_slice(&len.to_be_bytes());
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn banks_of_a_response() {
        let head = [0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5];
        let banks = [
            0, 0, 0, 3, 0, 4, 3, 0, 0, 0, 0, 11, 3, 255, 255, 255, 0, 12, 0,
        ];
        let whole = [&head[..], &banks].concat();

        assert_eq!(active_ids(&whole), Some(vec![11]));
        for len in 0..whole.len() {
            assert_eq!(active_ids(&whole[..len]), None, "{len} bytes");
        }
        let endless = [&head[..], &[255; 4]].concat();
        assert_eq!(active_ids(&endless), None);
    }

    #[test]
    fn extensions_have_their_length() {
        for (version, len) in [(Version::Tpm12, 34), (Version::Tpm2, 53)] {
            let packet = extension(version, 4, &Digests::of(&[Bank::Sha1], b""));
            assert_eq!((packet.len(), packet[5]), (len, len as u8));
        }
    }
}
