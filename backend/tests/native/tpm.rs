// SPDX-License-Identifier: GPL-2.0

//! TPM commands as bytes, and what of the responses the tests look at.

use crate::guest::Guest;

/// An empty password.
const PASSWORD: [u8; 13] = [0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0];

/// The handles of the hierarchies.
pub(crate) const OWNER: u32 = 0x4000_0001;
pub(crate) const PLATFORM: u32 = 0x4000_000c;

/// TPM_RC_RETRY.
const RETRY: u32 = 0x922;

/// The NV counter that the tests count in.
const COUNTER: u32 = 0x0150_0001;

/// Eight random bytes.
pub(crate) const GET_RANDOM: [u8; 12] = [0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x7b, 0, 8];

/// TPM2_ReadClock.
pub(crate) const READ_CLOCK: [u8; 10] = [0x80, 1, 0, 0, 0, 10, 0, 0, 1, 0x81];

/// A command on handles with an empty password.
pub(crate) fn command(code: u16, handles: &[u32], parameters: &[u8]) -> Vec<u8> {
    let mut command = vec![0x80, 2, 0, 0, 0, 0, 0, 0];
    command.extend_from_slice(&code.to_be_bytes());
    for handle in handles {
        command.extend_from_slice(&handle.to_be_bytes());
    }
    command.extend_from_slice(&PASSWORD);
    command.extend_from_slice(parameters);
    with_length(command)
}

/// A command without authorization.
pub(crate) fn plain(code: u16, parameters: &[u8]) -> Vec<u8> {
    let mut command = vec![0x80, 1, 0, 0, 0, 0, 0, 0];
    command.extend_from_slice(&code.to_be_bytes());
    command.extend_from_slice(parameters);
    with_length(command)
}

fn with_length(mut command: Vec<u8>) -> Vec<u8> {
    let length = u32::try_from(command.len()).unwrap();
    command[2..6].copy_from_slice(&length.to_be_bytes());
    command
}

/// The response code.
pub(crate) fn code(response: &[u8]) -> u32 {
    u32::from_be_bytes(response[6..10].try_into().unwrap())
}

/// TPM2_PCR_Extend by 32 ones.
pub(crate) fn extend(pcr: u8) -> Vec<u8> {
    let mut parameters = vec![0, 0, 0, 1, 0, 0x0b];
    parameters.extend_from_slice(&[1; 32]);
    command(0x182, &[u32::from(pcr)], &parameters)
}

/// TPM2_CreatePrimary of an RSA key: slow, and takes one of three places for objects.
pub(crate) fn create_primary() -> Vec<u8> {
    // No secrets; a 2048-bit RSA storage key with AES-128-CFB.
    let mut parameters = vec![0, 4, 0, 0, 0, 0];
    parameters.extend_from_slice(&[0, 26, 0, 1, 0, 0x0b, 0, 3, 0, 0x72, 0, 0]);
    parameters.extend_from_slice(&[0, 6, 0, 128, 0, 0x43, 0, 0x10, 8, 0, 0, 0, 0, 0, 0, 0]);
    parameters.extend_from_slice(&[0, 0, 0, 0, 0, 0]);
    command(0x131, &[OWNER], &parameters)
}

/// TPM2_NV_DefineSpace of an index of ordinary bytes.
pub(crate) fn nv_define(index: u32, size: u16) -> Vec<u8> {
    define(index, 0x0004_0004, size)
}

/// TPM2_NV_DefineSpace of an index with a password, whose wrong guesses are counted.
pub(crate) fn nv_define_secret(index: u32) -> Vec<u8> {
    let mut define = define(index, 0x0004_0004, 8);
    // The password is the first parameter.
    let at = 14 + PASSWORD.len();
    define.splice(at..at + 2, [0, 1, b'x']);
    with_length(define)
}

fn define(index: u32, attributes: u32, size: u16) -> Vec<u8> {
    let mut public = index.to_be_bytes().to_vec();
    public.extend_from_slice(&[0, 0x0b]);
    public.extend_from_slice(&attributes.to_be_bytes());
    public.extend_from_slice(&[0, 0]);
    public.extend_from_slice(&size.to_be_bytes());
    let length = u16::try_from(public.len()).unwrap();
    let mut parameters = vec![0, 0];
    parameters.extend_from_slice(&length.to_be_bytes());
    parameters.extend_from_slice(&public);
    command(0x12a, &[OWNER], &parameters)
}

/// TPM2_NV_Write from the start of the index.
pub(crate) fn nv_write(index: u32, data: &[u8]) -> Vec<u8> {
    let mut parameters = u16::try_from(data.len()).unwrap().to_be_bytes().to_vec();
    parameters.extend_from_slice(data);
    parameters.extend_from_slice(&[0, 0]);
    command(0x137, &[index, index], &parameters)
}

/// TPM2_NV_Increment of the tests' counter.
pub(crate) fn increment() -> Vec<u8> {
    command(0x134, &[COUNTER; 2], &[])
}

/// TPM2_NV_Read of it.
pub(crate) fn counter_read() -> Vec<u8> {
    command(0x14e, &[COUNTER; 2], &[0, 8, 0, 0])
}

/// What is in the response to that.
pub(crate) fn counter_in(response: &[u8]) -> u64 {
    u64::from_be_bytes(response[16..24].try_into().unwrap())
}

impl Guest {
    /// Runs a command that succeeds, if not before the TPM is done with something else.
    pub(crate) fn done(&mut self, command: &[u8]) -> Vec<u8> {
        let mut response = self.run(command);
        while code(&response) == RETRY {
            response = self.run(command);
        }
        assert_eq!(
            code(&response),
            0,
            "domain {}: {response:02x?} to {command:02x?}",
            self.domid
        );
        response
    }

    /// The SHA-256 PCR.
    pub(crate) fn pcr(&mut self, pcr: u8) -> Vec<u8> {
        let mut select = [0; 3];
        select[usize::from(pcr / 8)] = 1 << (pcr % 8);
        let mut parameters = vec![0, 0, 0, 1, 0, 0x0b, 3];
        parameters.extend_from_slice(&select);
        let response = self.done(&plain(0x17e, &parameters));
        response[response.len() - 32..].to_vec()
    }

    /// The clock in milliseconds, and the reset count.
    pub(crate) fn clock(&mut self) -> (u64, u32) {
        let response = self.done(&READ_CLOCK);
        let clock = u64::from_be_bytes(response[18..26].try_into().unwrap());
        (
            clock,
            u32::from_be_bytes(response[26..30].try_into().unwrap()),
        )
    }

    /// A property of TPM2_GetCapability.
    pub(crate) fn property(&mut self, property: u32) -> u32 {
        let mut parameters = vec![0, 0, 0, 6];
        parameters.extend_from_slice(&property.to_be_bytes());
        parameters.extend_from_slice(&[0, 0, 0, 1]);
        let response = self.done(&plain(0x17a, &parameters));
        u32::from_be_bytes(response[23..27].try_into().unwrap())
    }

    /// How many transient objects there are.
    pub(crate) fn objects(&mut self) -> u32 {
        let response = self.done(&plain(0x17a, &[0, 0, 0, 1, 0x80, 0, 0, 0, 0, 0, 0, 9]));
        u32::from_be_bytes(response[15..19].try_into().unwrap())
    }

    /// Makes the counter, and counts to one.
    pub(crate) fn define_counter(&mut self) {
        self.done(&define(COUNTER, 0x0004_0014, 8));
        self.done(&increment());
    }

    /// How far it counted.
    pub(crate) fn counter(&mut self) -> u64 {
        counter_in(&self.done(&counter_read()))
    }
}
