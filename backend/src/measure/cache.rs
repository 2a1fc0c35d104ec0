// SPDX-License-Identifier: GPL-2.0

//! Digests of files that were hashed before: many guests boot the same kernel. A file with the same inode, size
//! and ctime is the same file; only root in dom0 can make it look so.

use std::fs::{File, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use super::digest::{Bank, Digests};
use crate::files::read_plain;

/// The file in the run directory.
pub const FILE: &str = "digests.json";

/// How many files are remembered, and more than their entries take.
const MAX_FILES: usize = 64;
const MAX_SIZE: u64 = 256 << 10;

/// Which file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Key {
    device: u64,
    inode: u64,
    size: u64,
    ctime: (i64, i64),
}

impl Key {
    fn of(data: &Metadata) -> Self {
        Self {
            device: data.dev(),
            inode: data.ino(),
            size: data.size(),
            ctime: (data.ctime(), data.ctime_nsec()),
        }
    }
}

/// A file's digests, as [`Digests::to_text`] has them.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    key: Key,
    digests: String,
}

/// The digests of a file, of which the caller knows that it does not change meanwhile.
pub fn digests(cache: &Path, banks: &[Bank], file: &File) -> io::Result<Digests> {
    let key = Key::of(&file.metadata()?);
    let known = read_plain(cache, MAX_SIZE).ok();
    let mut entries: Vec<Entry> = known
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default();
    let known = entries.iter().find(|entry| entry.key == key);
    let known = known.and_then(|entry| Digests::from_text(&entry.digests));
    if let Some(digests) = known.and_then(|digests| digests.of_banks(banks)) {
        return Ok(digests);
    }
    let digests = Digests::of_all(banks, file)?;
    if Key::of(&file.metadata()?) == key {
        entries.retain(|entry| entry.key != key);
        entries.push(Entry {
            key,
            digests: digests.to_text(),
        });
        let old = entries.len().saturating_sub(MAX_FILES);
        if let Err(e) = write(cache, &entries[old..]) {
            log::debug!("{}: {e}", cache.display());
        }
    }
    Ok(digests)
}

/// Puts the file in the place of the former one. Workers that do so at the same time each have a whole one.
fn write(cache: &Path, entries: &[Entry]) -> io::Result<()> {
    let mut file = NamedTempFile::new_in(cache.parent().unwrap_or(cache))?;
    file.write_all(&serde_json::to_vec(entries)?)?;
    file.persist(cache)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_file_is_hashed_once_until_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, path) = (dir.path().join(FILE), dir.path().join("vmlinuz"));
        let hash = |banks: &[Bank]| {
            let digests = digests(&cache, banks, &File::open(&path).unwrap()).unwrap();
            let digests: Vec<_> = digests
                .iter()
                .map(|(bank, digest)| (bank, digest[0]))
                .collect();
            digests
        };
        fs::write(&path, b"abc").unwrap();
        assert_eq!(hash(&[Bank::Sha256]), [(Bank::Sha256, 0xba)]);

        // What is remembered is taken.
        let text = fs::read_to_string(&cache).unwrap();
        fs::write(&cache, text.replace(":ba", ":bb")).unwrap();
        assert_eq!(hash(&[Bank::Sha256]), [(Bank::Sha256, 0xbb)]);
        // But not for another bank, nor of another file.
        assert_eq!(
            hash(&[Bank::Sha1, Bank::Sha256]),
            [(Bank::Sha1, 0xa9), (Bank::Sha256, 0xba)]
        );
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::write(&path, b"").unwrap();
        assert_eq!(hash(&[Bank::Sha256]), [(Bank::Sha256, 0xe3)]);

        // Nor one that is no digest.
        for garbage in ["", "[", "[{}]"] {
            fs::write(&cache, garbage).unwrap();
            assert_eq!(hash(&[Bank::Sha256]), [(Bank::Sha256, 0xe3)]);
        }
        let text = fs::read_to_string(&cache).unwrap();
        fs::write(&cache, text.replace(":e3", ":e300")).unwrap();
        assert_eq!(hash(&[Bank::Sha256]), [(Bank::Sha256, 0xe3)]);
    }
}
