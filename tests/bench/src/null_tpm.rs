// SPDX-License-Identifier: GPL-2.0

//! What answers in the place of a TPM: success to everything, and of a TPM 1.2's replies as much as a
//! driver has to see before it takes it for one.

/// TPM_TAG_RSP_COMMAND (TPM Main Specification 1.2, part 2, section 6).
const TAG: u16 = 0x00c4;

/// TPM_BADTAG (part 2, section 16): what a TPM 1.2 says to a command of TPM 2.0.
const BAD_TAG: u32 = 0x1e;

/// Where the body starts.
const HEADER: usize = 10;

/// Commands whose answers have a body (part 2, section 17).
const GET_CAPABILITY: u32 = 0x65;
const PCR_READ: u32 = 0x15;
const GET_RANDOM: u32 = 0x46;

/// TPM_CAP_PROP_TIS_TIMEOUT and TPM_CAP_PROP_TIS_DURATION: four and three times, here of 10 s each.
const TIS_TIMEOUT: u32 = 0x115;
const TIS_DURATION: u32 = 0x120;
const TEN_SECONDS: [u8; 4] = 10_000_000u32.to_be_bytes();

/// A command that no TPM has (bit 29 marks a vendor's own): its answer is as long as the command.
const ECHO: u32 = 0x2000_0000;

fn number(packet: &[u8], at: usize) -> Option<u32> {
    let bytes = packet.get(at..at + 4)?;
    bytes.try_into().ok().map(u32::from_be_bytes)
}

/// Makes the answer to a command.
pub(crate) fn answer(command: &[u8], answer: &mut Vec<u8>) {
    let body = |answer: &mut Vec<u8>, bytes: &[u8]| {
        answer.extend((bytes.len() as u32).to_be_bytes());
        answer.extend_from_slice(bytes);
    };
    let mut code = 0;

    answer.clear();
    answer.resize(HEADER, 0);
    match (command.first(), number(command, 6)) {
        (Some(0x80), _) => code = BAD_TAG,
        (_, Some(GET_CAPABILITY)) => match number(command, 18) {
            Some(TIS_TIMEOUT) => body(answer, &TEN_SECONDS.repeat(4)),
            Some(TIS_DURATION) => body(answer, &TEN_SECONDS.repeat(3)),
            _ => body(answer, &[0; 4]),
        },
        (_, Some(PCR_READ)) => answer.resize(HEADER + 20, 0),
        (_, Some(GET_RANDOM)) => body(answer, &[4; 16]),
        (_, Some(ECHO)) => answer.resize(command.len(), 0),
        _ => (),
    }
    let length = answer.len() as u32;
    answer[..2].copy_from_slice(&TAG.to_be_bytes());
    answer[2..6].copy_from_slice(&length.to_be_bytes());
    answer[6..HEADER].copy_from_slice(&code.to_be_bytes());
}
