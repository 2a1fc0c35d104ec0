// SPDX-License-Identifier: GPL-2.0

//! The archive as it goes over in a migration: of a TPM that is up, with what it has in memory, for one guest.

use super::*;

/// What came.
#[derive(Debug)]
pub struct Unpacked {
    manifest: Manifest,
    /// Which TPM it is.
    pub version: Version,
    /// swtpm's files.
    pub files: Files,
}

/// Packs the state of a TPM that has just stored what it has in memory, for the guest `vm`.
pub fn pack(state: &State, vm: Option<&str>, path: &Path) -> Result<(), Error> {
    let manifest = Manifest {
        saved_for: vm.map(str::to_owned),
        ..Manifest::of(state, true)?
    };
    write(state, &manifest, path)
}

/// Whose seeds a state has.
pub fn identity(state: &State) -> Result<String, Error> {
    let notes = Notes::read(&state.path).map_err(at(&state.path.with_extension("info")))?;
    Ok(notes.identity.unwrap_or_else(|| state.uuid.to_string()))
}

/// Reads what came as the vTPM `uuid`.
pub fn unpack(uuid: &Uuid, path: &Path) -> Result<Unpacked, Error> {
    let (manifest, files) = read_archive(path)?;
    let bad = |reason: String| Error::Bad {
        path: path.to_owned(),
        reason,
    };
    if manifest.uuid != uuid.to_string() || !manifest.saved {
        return Err(bad(format!("the saved vTPM {uuid} is expected")));
    }
    let version: Version = manifest.version.parse().map_err(bad)?;
    check_files(&manifest, version, &files, path)?;
    Ok(Unpacked {
        manifest,
        version,
        files,
    })
}

/// Makes the state. `own_key` says that it is encrypted as one that is made here. The caller has the lock.
pub fn place(config: &Config, uuid: &Uuid, unpacked: Unpacked, own_key: bool) -> Result<(), Error> {
    let manifest = unpacked.manifest;
    let state = State {
        uuid: uuid.clone(),
        path: config.state_path(uuid),
        version: unpacked.version,
        exists: false,
    };
    let folder = state.make_unfinished()?;
    let made = (|| {
        fill(&folder, unpacked.files)?;
        match own_key {
            true => key::mark(config.policy(uuid).key_file.as_deref(), &state.path),
            false => key::import_mark(manifest.key.as_ref(), uuid, uuid, &state.path),
        }
        .map_err(admin::Error::from)?;
        let identity = manifest.identity.filter(|it| *it != uuid.to_string());
        Notes::new(identity)
            .write(&state.path)
            .map_err(at(&state.path.with_extension("info")))?;
        measure::keep_log(&state.path, manifest.event_log.as_deref())
            .map_err(admin::Error::from)?;
        Ok(state.finish(config, true, manifest.saved_for.as_deref())?)
    })();
    if made.is_err() {
        // The room that it took is wanted by others.
        let _ = fs::remove_dir_all(&folder);
    }
    made
}
