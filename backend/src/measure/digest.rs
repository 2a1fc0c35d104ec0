// SPDX-License-Identifier: GPL-2.0

//! PCR banks, and digests for each of the active ones, made in one pass over the data.

use std::io::{self, Read};

use sha1::Sha1;
use sha2::digest::DynDigest;
use sha2::{Sha256, Sha384, Sha512};

use crate::hex;

/// A bank, by its hash algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Bank {
    /// TPM_ALG_SHA1, the only one of a TPM 1.2.
    Sha1 = 0x4,
    /// TPM_ALG_SHA256.
    Sha256 = 0xb,
    /// TPM_ALG_SHA384.
    Sha384 = 0xc,
    /// TPM_ALG_SHA512.
    Sha512 = 0xd,
}

impl Bank {
    /// Those that libtpms has.
    pub const ALL: [Self; 4] = [Self::Sha1, Self::Sha256, Self::Sha384, Self::Sha512];

    /// The bank of a TPM_ALG_ID.
    pub fn from_id(id: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|bank| bank.id() == id)
    }

    /// The TPM_ALG_ID.
    pub fn id(self) -> u16 {
        self as u16
    }

    fn hasher(self) -> Box<dyn DynDigest> {
        match self {
            Self::Sha1 => Box::new(Sha1::default()),
            Self::Sha256 => Box::new(Sha256::default()),
            Self::Sha384 => Box::new(Sha384::default()),
            Self::Sha512 => Box::new(Sha512::default()),
        }
    }

    /// How long its digests are.
    pub fn size(self) -> u16 {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }
}

/// A digest for each bank.
#[derive(Debug)]
pub struct Digests(Vec<(Bank, Box<[u8]>)>);

impl Digests {
    /// Of bytes.
    pub fn of(banks: &[Bank], data: &[u8]) -> Self {
        let digest = |bank: &Bank| {
            let mut hasher = bank.hasher();
            hasher.update(data);
            (*bank, hasher.finalize())
        };
        Self(banks.iter().map(digest).collect())
    }

    /// Of all that can be read.
    pub fn of_all(banks: &[Bank], mut from: impl Read) -> io::Result<Self> {
        let mut hashers: Vec<_> = banks.iter().map(|bank| (*bank, bank.hasher())).collect();
        let mut bytes = vec![0; 1 << 16];
        loop {
            match from.read(&mut bytes) {
                Ok(0) => break,
                Ok(n) => hashers.iter_mut().for_each(|(_, h)| h.update(&bytes[..n])),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => (),
                Err(e) => return Err(e),
            }
        }
        let done = hashers.into_iter().map(|(bank, h)| (bank, h.finalize()));
        Ok(Self(done.collect()))
    }

    /// TPM_ALG_ID and hex digits, as `4:a9993e36...`, of each bank.
    pub(super) fn to_text(&self) -> String {
        let text = |(bank, digest): (Bank, &[u8])| format!("{}:{}", bank.id(), hex::text(digest));
        self.iter().map(text).collect::<Vec<_>>().join(" ")
    }

    /// From that.
    pub(super) fn from_text(text: &str) -> Option<Self> {
        let digest = |text: &str| {
            let (id, digits) = text.split_once(':')?;
            let bank = Bank::from_id(id.parse().ok()?)?;
            let mut digest = vec![0; usize::from(bank.size())];
            hex::read(digits.as_bytes(), &mut digest).then(|| (bank, digest.into()))
        };
        text.split(' ').map(digest).collect::<Option<_>>().map(Self)
    }

    /// Those of these banks, if all are there.
    pub(super) fn of_banks(&self, banks: &[Bank]) -> Option<Self> {
        let digest = |bank: &Bank| self.0.iter().find(|(own, _)| own == bank).cloned();
        banks.iter().map(digest).collect::<Option<_>>().map(Self)
    }

    /// Bank by bank.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (Bank, &[u8])> {
        self.0.iter().map(|(bank, digest)| (*bank, &digest[..]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_as_the_standards_say() {
        let digests = Digests::of(&Bank::ALL, b"abc");
        let again = Digests::of_all(&Bank::ALL, &b"abc"[..]).unwrap();
        // FIPS 180-4's examples.
        let starts = [0xa999_3e36_u32, 0xba78_16bf, 0xcb00_753f, 0xddaf_35a1];
        for (((bank, digest), start), (_, again)) in digests.iter().zip(starts).zip(again.iter()) {
            assert_eq!(digest[..4], start.to_be_bytes(), "{bank:?}");
            assert_eq!(digest.len(), usize::from(bank.size()));
            assert_eq!(digest, again);
        }
        let text = digests.to_text();
        assert!(text.starts_with("4:a9993e36") && text.contains(" 11:ba7816bf"));
        assert_eq!(Digests::from_text(&text).unwrap().to_text(), text);
        let two = digests.of_banks(&[Bank::Sha256, Bank::Sha1]).unwrap();
        assert_eq!(two.iter().next().unwrap().0, Bank::Sha256);
    }
}
