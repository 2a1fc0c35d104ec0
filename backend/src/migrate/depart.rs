// SPDX-License-Identifier: GPL-2.0

//! What is done beside the state of a TPM that is to go: it is packed and marked, and the mark is taken back where
//! the guest goes on.

use std::path::Path;

use super::mark::{self, Mark, Role};
use crate::archive::transfer;
use crate::files;
use crate::state::State;
use crate::xen::{Domain, Domains};

/// Packs a TPM that has stored what it has in memory, into `file`, and marks it as sent: durably before anybody
/// has it.
pub fn pack(
    state: &State,
    vm: Option<&str>,
    migration: &str,
    peer: &str,
    file: &Path,
) -> Result<(), String> {
    let packed = (|| {
        files::remove(file).map_err(|e| e.to_string())?;
        transfer::pack(state, vm, file).map_err(|e| e.to_string())?;
        let mark = Mark::new(migration, peer, Role::Leaving);
        let written = mark.write(&state.path);
        written.map_err(|e| format!("{}: {e}", mark::path(&state.path).display()))
    })();
    if packed.is_err() {
        let _ = files::remove(file);
    }
    packed
}

/// Whether it is in doubt still who has a TPM that was sent. A guest that goes on here does not run at the
/// destination: xl resumes it for nothing else.
pub fn is_in_doubt(state: &State, domid: u16) -> Result<bool, String> {
    match Mark::read(&state.path) {
        Ok(Some(mark)) if mark.role == Role::Leaving => (),
        _ => return Ok(false),
    }
    let domain = Domains::open().and_then(|domains| domains.state(domid));
    match domain.map_err(|e| e.to_string())? {
        Domain::Alive => match Mark::remove(&state.path) {
            Ok(()) => Ok(false),
            Err(e) => Err(format!("{}: {e}", mark::path(&state.path).display())),
        },
        _ => Ok(true),
    }
}
