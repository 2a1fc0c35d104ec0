// SPDX-License-Identifier: GPL-2.0

//! Bytes as hex digits, in memory of the caller's: of a key nothing is left elsewhere.

/// Writes two lower-case digits for each byte.
///
/// # Panics
///
/// If there is not room for exactly these.
pub fn write(bytes: &[u8], into: &mut [u8]) {
    assert_eq!(into.len(), 2 * bytes.len());
    for (digits, byte) in into.chunks_exact_mut(2).zip(bytes) {
        let digit = |n: u8| b"0123456789abcdef"[usize::from(n)];
        digits[0] = digit(byte >> 4);
        digits[1] = digit(byte & 15);
    }
}

/// The digits as text, of what is no secret.
pub fn text(bytes: &[u8]) -> String {
    let mut text = vec![0; 2 * bytes.len()];
    write(bytes, &mut text);
    text.into_iter().map(char::from).collect()
}

/// Reads digits of either case: false if they are none, or not two for each byte.
#[must_use]
pub fn read(text: &[u8], into: &mut [u8]) -> bool {
    let digit = |b: u8| char::from(b).to_digit(16).map(|n| n as u8);
    text.len() == 2 * into.len()
        && text.chunks_exact(2).zip(into).all(|(pair, byte)| {
            match (digit(pair[0]), digit(pair[1])) {
                (Some(high), Some(low)) => {
                    *byte = (high << 4) | low;
                    true
                }
                _ => false,
            }
        })
}
