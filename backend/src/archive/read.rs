// SPDX-License-Identifier: GPL-2.0

//! Reads an archive, or a directory of swtpm's, of which nothing is believed.

use super::*;

/// One entry of an archive.
type NameAndBytes = (Vec<u8>, Vec<u8>);

/// Names and contents.
pub type Files = Vec<(&'static str, Vec<u8>)>;

pub(super) fn read_folder(path: &Path, uuid: &Uuid) -> Result<(Manifest, Files), Error> {
    let version = version_of_state(path).map_err(at(path))?;
    let version = version.ok_or_else(|| Error::Bad {
        path: path.to_owned(),
        reason: "there is no tpm2-00.permall and no tpm-00.permall in it".into(),
    })?;
    let mut files = Vec::new();

    // A volatile state is of use only with a guest that was saved, of whom nothing is known here.
    for name in known(version, false) {
        let from = path.join(name);
        match read_plain(&from, MAX_FILE) {
            Ok(bytes) => files.push((name, bytes)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => (),
            Err(e) => return Err(at(&from)(e)),
        }
    }
    let manifest = Manifest {
        format: FORMAT,
        uuid: uuid.to_string(),
        version: version.to_string(),
        saved: false,
        saved_for: None,
        event_log: None,
        identity: None,
        key: None,
    };
    Ok((manifest, files))
}

pub(super) fn read_archive(path: &Path) -> Result<(Manifest, Files), Error> {
    let bad = |reason: &str| Error::Bad {
        path: path.to_owned(),
        reason: reason.to_owned(),
    };
    let broken = |e: io::Error| bad(&e.to_string());
    let mut archive = Archive::new(File::open(path).map_err(at(path))?);
    // As they are: no extension of tar's gives an entry another name or size.
    let mut entries = archive.entries().map_err(broken)?.raw(true);
    let mut next = || -> Result<Option<NameAndBytes>, Error> {
        let Some(entry) = entries.next() else {
            return Ok(None);
        };
        let mut entry = entry.map_err(broken)?;
        let name = entry.path_bytes().into_owned();
        let shown = String::from_utf8_lossy(&name).into_owned();
        if entry.header().entry_type() != EntryType::Regular {
            return Err(bad(&format!("{shown:?} is not a plain file")));
        }
        if entry.size() > MAX_FILE {
            return Err(bad(&format!("{shown:?} is too large")));
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(broken)?;
        match bytes.len() as u64 == entry.size() {
            true => Ok(Some((name, bytes))),
            false => Err(bad("it is cut short")),
        }
    };

    let manifest: Manifest = match next()? {
        Some((name, bytes)) if name == MANIFEST.as_bytes() => {
            serde_json::from_slice(&bytes).map_err(|e| bad(&format!("{MANIFEST}: {e}")))?
        }
        _ => return Err(bad(&format!("it does not start with {MANIFEST}"))),
    };
    if !(FIRST_FORMAT..=FORMAT).contains(&manifest.format) {
        let reason = format!(
            "format {}, where {FIRST_FORMAT} to {FORMAT} is expected",
            manifest.format
        );
        return Err(bad(&reason));
    }
    let version: Version = manifest.version.parse().map_err(|e: String| bad(&e))?;
    let known = known(version, manifest.saved);
    let mut files: Files = Vec::new();
    while let Some((name, bytes)) = next()? {
        let shown = String::from_utf8_lossy(&name).into_owned();
        match known.iter().find(|known| known.as_bytes() == name) {
            Some(name) if files.iter().any(|(other, _)| other == name) => {
                return Err(bad(&format!("{shown:?} is in it twice")));
            }
            Some(name) => files.push((name, bytes)),
            None => return Err(bad(&format!("{shown:?} is not a TPM {version}'s file"))),
        }
    }
    Ok((manifest, files))
}
