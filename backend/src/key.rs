// SPDX-License-Identifier: GPL-2.0

//! The keys that states are encrypted with. Each vTPM has its own, derived from the configured one and its uuid,
//! so that no swtpm has another's. The file UUID.key beside the state says that, and by which key; state that
//! is without it was made by version 0.1.0, with the configured key itself.

pub mod sealed;

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use hkdf::Hkdf;
use rustix::fs::{memfd_create, MemfdFlags};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::config::Uuid;
use crate::files::{self, write_durably};
use crate::hex;

/// What the keys are bound to.
const PURPOSE: &[u8] = b"xen-vtpmd state encryption, version 1, ";

/// How long a key is.
const LEN: usize = 32;

/// More than a key-file has that is sealed.
const MAX_FILE: usize = 1 << 16;

/// What is wrong with a key.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Others could read it.
    #[error("key-file {} has the mode {mode:04o} and the owner {owner}: root and 0600 are expected", path.display())]
    Open {
        /// Which file.
        path: PathBuf,
        /// What it is now.
        mode: u32,
        /// Whose it is.
        owner: u32,
    },
    /// It is no key.
    #[error("key-file {}: 64 hex digits are expected, as `openssl rand -hex 32` makes them", .0.display())]
    Bad(PathBuf),
    /// It is sealed, and this host's TPM does not open it.
    #[error(
        "key-file {} is sealed to this host's TPM, which does not open it: {reason}. If that is as it should be: \
         xen-vtpmd recover",
        path.display()
    )]
    Sealed {
        /// Which file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// It is a command, which did not give the key.
    #[error("key-file {} is a command, which gave no key: {reason}", path.display())]
    Command {
        /// Which file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// It could not be sealed, and is as it was.
    #[error("sealing the key-file {}: {reason}", path.display())]
    NotSealed {
        /// Which file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// It is not the key that was sealed.
    #[error("this is the key {found}, and the key-file {} had the key {wanted}", path.display())]
    NotTheKey {
        /// Which file.
        path: PathBuf,
        /// What it was.
        wanted: String,
        /// What was given.
        found: String,
    },
    /// The state was encrypted by another key.
    #[error("{} says that the state is encrypted by the key {found}, and the key-file has the key {own}", path.display())]
    Other {
        /// The mark.
        path: PathBuf,
        /// Whose key it names.
        found: String,
        /// The configured one.
        own: String,
    },
    /// The state is encrypted, and there is no key.
    #[error("{} says that the state is encrypted by the key {key}, and no key-file is configured", path.display())]
    Missing {
        /// The mark.
        path: PathBuf,
        /// Whose key it names.
        key: String,
    },
}

/// The configured key.
pub struct Master(Zeroizing<[u8; LEN]>);

/// A key that one swtpm gets.
pub struct Key(Zeroizing<[u8; LEN]>);

/// UUID.key.
#[derive(Debug, Serialize, Deserialize)]
struct Mark {
    version: u32,
    kdf: String,
    key: String,
    /// The vTPM that the key was derived for, if the state was imported under another uuid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    uuid: Option<String>,
}

impl Master {
    /// Reads a key-file, or has the TPM open it, or runs it.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let mut file = File::open(path).map_err(at(path))?;
        let data = file.metadata().map_err(at(path))?;
        let owner = data.uid();
        let own = rustix::process::geteuid().as_raw();
        if data.mode() & 0o077 != 0 || (owner != 0 && owner != own) {
            return Err(Error::Open {
                path: path.to_owned(),
                mode: data.mode() & 0o7777,
                owner,
            });
        }
        // As automount(8) takes a map that is executable: it is run.
        if data.mode() & 0o100 != 0 {
            let text = sealed::run(Command::new(path), None).map_err(|reason| Error::Command {
                path: path.to_owned(),
                reason,
            })?;
            return Self::from_hex(&text).ok_or_else(|| Error::Bad(path.to_owned()));
        }
        // As large as it gets, so that nothing is left behind where it was before it grew.
        let mut text = Zeroizing::new(Vec::with_capacity(MAX_FILE + 1));
        Read::by_ref(&mut file)
            .take(MAX_FILE as u64)
            .read_to_end(&mut text)
            .map_err(at(path))?;
        let text = match sealed::is_sealed(text.trim_ascii_end()) {
            true => sealed::open(path, path)?,
            false => text,
        };
        Self::from_hex(&text).ok_or_else(|| Error::Bad(path.to_owned()))
    }

    /// From 64 hex digits, with space behind them.
    pub fn from_hex(text: &[u8]) -> Option<Self> {
        let mut key = Zeroizing::new([0; LEN]);
        hex::read(text.trim_ascii_end(), &mut key[..]).then_some(Self(key))
    }

    /// A new one.
    pub fn random() -> io::Result<Self> {
        let mut key = Zeroizing::new([0; LEN]);
        File::open("/dev/urandom")?.read_exact(&mut key[..])?;
        Ok(Self(key))
    }

    /// As hex digits.
    pub fn hex(&self) -> Zeroizing<[u8; 2 * LEN]> {
        digits(&self.0)
    }

    /// A name for it that does not give it away.
    pub fn id(&self) -> String {
        let digest = Sha256::new()
            .chain_update(b"xen-vtpmd key id, version 1, ")
            .chain_update(&self.0[..])
            .finalize();
        let mut start = [0; 8];
        start.copy_from_slice(&digest[..8]);
        format!("{:016x}", u64::from_be_bytes(start))
    }

    /// The key of one vTPM.
    pub fn derive(&self, uuid: &Uuid) -> Key {
        let mut key = Zeroizing::new([0; LEN]);
        let info = [PURPOSE, uuid.to_string().as_bytes()].concat();
        Hkdf::<Sha256>::new(None, &self.0[..])
            .expand(&info, &mut key[..])
            .expect("32 bytes are few enough");
        Key(key)
    }

    /// As version 0.1.0 used it, for every vTPM.
    pub fn legacy(&self) -> Key {
        Key(self.0.clone())
    }
}

impl Key {
    /// As hex digits.
    pub fn hex(&self) -> Zeroizing<[u8; 2 * LEN]> {
        digits(&self.0)
    }

    /// The key as hex digits in memory that a process inherits.
    pub fn to_fd(&self) -> io::Result<OwnedFd> {
        to_fd(&self.hex()[..])
    }
}

/// The file that says how the state at `state` is encrypted.
pub fn mark_path(state: &Path) -> PathBuf {
    state.with_extension("key")
}

/// The key of a state: the one that it is encrypted with if it `exists`, else the one that it is to be. `None`
/// where no key is configured.
pub fn of_state(
    key_file: Option<&Path>,
    uuid: &Uuid,
    state: &Path,
    exists: bool,
) -> Result<Option<Key>, Error> {
    let path = mark_path(state);
    let mark = Mark::read(&path)?;
    let Some(key_file) = key_file else {
        return match mark {
            Some(mark) if exists => Err(Error::Missing {
                path,
                key: mark.key,
            }),
            _ => Ok(None),
        };
    };
    let master = Master::read(key_file)?;

    match mark {
        _ if !exists => Ok(Some(master.derive(uuid))),
        None => Ok(Some(master.legacy())),
        Some(mark) if mark.key == master.id() => match mark.uuid.map(|other| other.parse()) {
            None => Ok(Some(master.derive(uuid))),
            Some(Ok(other)) => Ok(Some(master.derive(&other))),
            Some(Err(e)) => Err(at(&path)(io::Error::new(io::ErrorKind::InvalidData, e))),
        },
        Some(mark) => Err(Error::Other {
            path,
            found: mark.key,
            own: master.id(),
        }),
    }
}

impl Mark {
    fn read(path: &Path) -> Result<Option<Self>, Error> {
        let text = match fs::read(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(at(path))?,
        };
        let mark = serde_json::from_slice(&text).map_err(|e| at(path)(e.into()))?;
        Ok(Some(mark))
    }
}

/// Takes the mark over that came with an exported state of the vTPM `of`, before the state gets its name; `None` if
/// there was none.
pub fn import_mark(
    mark: Option<&serde_json::Value>,
    of: &Uuid,
    uuid: &Uuid,
    state: &Path,
) -> Result<(), Error> {
    let Some(mark) = mark else {
        // One that was left by a former state.
        return self::mark(None, state);
    };
    let path = mark_path(state);
    let write = || -> io::Result<()> {
        let mut mark: Mark = serde_json::from_value(mark.clone())?;
        if mark.uuid.is_none() && of != uuid {
            mark.uuid = Some(of.to_string());
        }
        write_durably(&path, &serde_json::to_vec(&mark)?)
    };
    write().map_err(at(&path))
}

/// Whether a state is encrypted as it would be if it were made now.
pub fn is_current(key_file: Option<&Path>, state: &Path) -> Result<bool, Error> {
    let mark = Mark::read(&mark_path(state))?;
    match (key_file, mark) {
        (None, None) => Ok(true),
        (Some(key_file), Some(mark)) => Ok(mark.uuid.is_none() && mark.key == id_of(key_file)?),
        _ => Ok(false),
    }
}

/// The name of the key in a file. That of a sealed one is beside it, and the TPM need not be asked.
fn id_of(key_file: &Path) -> Result<String, Error> {
    match sealed::is_sealed_file(key_file).map_err(at(key_file))? {
        true => match sealed::Seal::read(key_file)? {
            Some(seal) => Ok(seal.key),
            None => Ok(Master::read(key_file)?.id()),
        },
        false => Ok(Master::read(key_file)?.id()),
    }
}

/// Says that a state is encrypted by the vTPM's own key, or takes that back: before the state gets its name.
pub fn mark(key_file: Option<&Path>, state: &Path) -> Result<(), Error> {
    let path = mark_path(state);
    let done = match key_file {
        None => files::remove(&path),
        Some(key_file) => {
            let mark = Mark {
                version: 1,
                kdf: "HKDF-SHA256".into(),
                key: id_of(key_file)?,
                uuid: None,
            };
            let text = serde_json::to_vec(&mark).map_err(|e| at(&path)(e.into()))?;
            write_durably(&path, &text)
        }
    };
    done.map_err(at(&path))
}

fn digits(key: &[u8; LEN]) -> Zeroizing<[u8; 2 * LEN]> {
    let mut text = Zeroizing::new([0; 2 * LEN]);
    hex::write(key, &mut text[..]);
    text
}

/// A key's hex digits in memory that a process inherits.
pub fn to_fd(digits: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create("key", MemfdFlags::CLOEXEC)?);
    file.write_all(digits)?;
    file.rewind()?;
    Ok(file.into())
}

fn at(path: &Path) -> impl Fn(io::Error) -> Error + '_ {
    |source| Error::File {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const UUID: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";

    fn key_file(folder: &Path, byte: &str) -> PathBuf {
        let path = folder.join(byte);
        fs::write(&path, byte.repeat(LEN) + "\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    fn hex(key: &Key) -> String {
        let mut text = String::new();
        File::from(key.to_fd().unwrap())
            .read_to_string(&mut text)
            .unwrap();
        text
    }

    #[test]
    fn each_vtpm_has_a_key_of_its_own_that_does_not_change() {
        let folder = tempfile::tempdir().unwrap();
        let master = Master::read(&key_file(folder.path(), "0b")).unwrap();
        let uuid: Uuid = UUID.parse().unwrap();
        let other: Uuid = UUID.replace('0', "1").parse().unwrap();

        // By Python's hmac and RFC 5869.
        assert_eq!(
            hex(&master.derive(&uuid)),
            "04650108646ba6f481851992a5015da136fa96076fef9c83fb17ce1347ec61d3"
        );
        assert_ne!(hex(&master.derive(&other)), hex(&master.derive(&uuid)));
        assert_eq!(hex(&master.legacy()), "0b".repeat(LEN));
    }

    #[test]
    fn a_mark_says_which_key_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let (ours, other) = (key_file(folder.path(), "0b"), key_file(folder.path(), "0c"));
        let state = folder.path().join(UUID);
        let uuid: Uuid = UUID.parse().unwrap();
        let derived = hex(&Master::read(&ours).unwrap().derive(&uuid));
        let key = |key_file: Option<&Path>, exists| {
            of_state(key_file, &uuid, &state, exists).map(|key| key.map(|key| hex(&key)))
        };

        assert_eq!(key(None, true).unwrap(), None);
        assert_eq!(key(Some(&ours), true).unwrap(), Some("0b".repeat(LEN)));
        assert_eq!(key(Some(&ours), false).unwrap(), Some(derived.clone()));
        mark(Some(&ours), &state).unwrap();
        assert_eq!(key(Some(&ours), true).unwrap(), Some(derived));
        assert!(matches!(key(Some(&other), true), Err(Error::Other { .. })));
        assert!(matches!(key(None, true), Err(Error::Missing { .. })));
        mark(None, &state).unwrap();
        assert_eq!(key(Some(&ours), true).unwrap(), Some("0b".repeat(LEN)));
    }

    #[test]
    fn what_others_can_read_is_no_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = key_file(folder.path(), "0b");
        for mode in [0o640, 0o604, 0o660] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert!(matches!(Master::read(&path), Err(Error::Open { .. })));
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        for text in ["", "0b", &"0b".repeat(33), &"0g".repeat(32)] {
            fs::write(&path, text).unwrap();
            assert!(matches!(Master::read(&path), Err(Error::Bad(_))));
        }
    }
}
