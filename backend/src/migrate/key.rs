// SPDX-License-Identifier: GPL-2.0

//! A state that comes is encrypted by the destination's key: out of an swtpm that has the source's, and into one
//! that has the destination's. The source gives that vTPM's key alone, over ssh.

use std::path::Path;

use zeroize::Zeroizing;

use super::Error;
use crate::archive::Files;
use crate::config::{Config, Uuid};
use crate::key::{to_fd, Master};
use crate::session::{Place, Start};
use crate::swtpm::Version;

/// What `list` says of a state without a key, and of one that version 0.1.0 encrypted.
const NONE: &str = "none";
const SHARED: &str = "shared";

/// Whether a state that has the key `theirs` has to be encrypted by another one here. An error where it cannot be.
pub fn wants_key(config: &Config, uuid: &Uuid, theirs: &str) -> Result<bool, Error> {
    let unfit = |reason: &str| Err(Error::Unfit(uuid.clone(), reason.to_owned()));
    let Some(key_file) = config.policy(uuid).key_file.as_deref() else {
        return match theirs {
            NONE => Ok(false),
            _ => unfit("it is encrypted, and no key-file is configured here: it would lie open"),
        };
    };
    // Also one that is sealed to a TPM that does not open it.
    let own = Master::read(key_file)?.id();
    match theirs {
        SHARED => unfit("it is encrypted by the key-file itself: `xen-vtpmd rekey` it before"),
        _ => Ok(theirs != own),
    }
}

/// Encrypts the files of a saved TPM by the key that is configured here. `old` is the key that they have.
pub fn encrypt(
    config: &Config,
    uuid: &Uuid,
    version: Version,
    files: &Files,
    old: Option<&str>,
) -> Result<Files, Error> {
    const BLOBS: [(&str, &str); 2] = [("permanent", "p.blob"), ("volatile", "v.blob")];
    let key_file: Option<&Path> = config.policy(uuid).key_file.as_deref();
    let new = match key_file {
        Some(key_file) => Some(Master::read(key_file)?.derive(uuid).to_fd()?),
        None => None,
    };
    let place = Place::new(&config.run_dir, config.first_uid)?;
    for (name, bytes) in files {
        place.put(name, bytes)?;
    }
    let session = place.start(
        version,
        old.map(|key| to_fd(key.as_bytes())).transpose()?,
        Start::Bare,
    )?;
    session.ioctl(&["-i"])?;
    let mut blobs = Vec::new();
    for (kind, name) in BLOBS {
        session.ioctl(&["--save", kind, &format!("state/{name}")])?;
        blobs.push(Zeroizing::new(place.take(name)?));
    }
    session.end()?;
    drop(place);

    let place = Place::new(&config.run_dir, config.first_uid)?;
    for ((_, name), blob) in BLOBS.iter().zip(&blobs) {
        place.put(name, blob)?;
    }
    let session = place.start(version, new, Start::Bare)?;
    for (kind, name) in BLOBS {
        session.ioctl(&["--load", kind, &format!("state/{name}")])?;
    }
    // It has to be able to read both, and writes them only then.
    session.ioctl(&["-i"])?;
    session.ioctl(&["-v"])?;
    session.end()?;
    let mut encrypted = Files::new();
    for name in [version.state_file(), version.volatile_file()] {
        encrypted.push((name, place.take(name)?));
    }
    Ok(encrypted)
}
