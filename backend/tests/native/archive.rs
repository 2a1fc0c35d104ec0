// SPDX-License-Identifier: GPL-2.0

//! Exports and imports.

use std::fs;
use std::os::unix::fs::{symlink, MetadataExt};

use crate::host::Host;
use crate::toolstack::uuid;
use crate::tpm::GET_RANDOM;

/// With the state of a vTPM that is not running.
fn with_state() -> Option<Host> {
    let host = Host::new()?;
    host.cli_ok(&["create-state", &uuid(7)]);
    Some(host)
}

/// Finding 14: an export wrote into whatever FILE.new was.
#[test]
fn an_export_follows_no_link() {
    let Some(host) = with_state() else { return };
    let (file, target) = (host.path("a.vtpm"), host.path("target"));
    fs::write(&target, "precious").unwrap();
    symlink(&target, host.path("a.vtpm.new")).unwrap();

    let output = host.cli(&["export", "--keep", &uuid(7), &file.display().to_string()]);
    assert_eq!(fs::read(&target).unwrap(), b"precious");
    if output.status.success() {
        let data = fs::symlink_metadata(&file).unwrap();
        assert!(data.is_file() && data.uid() == 0 && data.mode() & 0o077 == 0);
    }
}

#[test]
fn an_export_is_roots_alone() {
    let Some(host) = with_state() else { return };
    let (file, new) = (host.path("a.vtpm"), host.path("a.vtpm.new"));
    fs::write(&new, "").unwrap();
    std::os::unix::fs::chown(&new, Some(1234), Some(1234)).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    fs::set_permissions(&new, mode).unwrap();

    host.cli_ok(&["export", "--keep", &uuid(7), &file.display().to_string()]);
    let data = fs::symlink_metadata(&file).unwrap();
    assert_eq!((data.uid(), data.mode() & 0o7777), (0, 0o600));
}

/// Case C7: a copy under another uuid had the same identity, and nobody said so.
#[test]
fn a_copy_has_to_be_asked_for() {
    let Some(host) = with_state() else { return };
    let file = host.path("a.vtpm").display().to_string();
    host.cli_ok(&["export", "--keep", &uuid(7), &file]);
    let output = host.cli(&["import", "--uuid", &uuid(8), &file]);
    let reason = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "a copy, and nothing is said");
    assert!(
        reason.contains("--copy") && reason.contains("--new-identity"),
        "{reason}"
    );
    host.cli_ok(&["import", "--copy", "--uuid", &uuid(8), &file]);
    host.boot(8, &uuid(8)).done(&GET_RANDOM);
}

/// Finding 27: a running vTPM could not be exported.
#[test]
fn a_running_vtpm_is_backed_up() {
    let Some(host) = Host::new() else { return };
    let file = host.path("a.vtpm").display().to_string();
    let mut guest = host.boot(7, &uuid(7));
    guest.define_counter();
    host.cli_ok(&["export", "--keep", &uuid(7), &file]);
    guest.done(&GET_RANDOM);
    assert_eq!(guest.counter(), 1);
    drop(guest);
    assert!(host.destroy(7));

    fs::remove_dir_all(host.state_dir()).unwrap();
    host.cli_ok(&["import", &file]);
    assert_eq!(host.boot(8, &uuid(7)).counter(), 1);
}

/// Case C6: states that no domain uses were nowhere listed.
#[test]
fn unused_states_are_listed_and_removed() {
    let Some(host) = with_state() else { return };
    let mut guest = host.boot(8, &uuid(8));
    guest.done(&GET_RANDOM);
    let list = host.cli_ok(&["list"]);
    for number in [7, 8] {
        assert!(list.contains(&uuid(number)), "{list}");
    }
    // One that is in use stays.
    let output = host.cli(&["remove", "--yes", &uuid(8)]);
    assert!(!output.status.success());
    host.cli_ok(&["remove", "--yes", &uuid(7)]);
    assert!(!host.cli_ok(&["list"]).contains(&uuid(7)));
    guest.done(&GET_RANDOM);
}
