// SPDX-License-Identifier: GPL-2.0

//! Which state is found, who may have it, and what a saved guest leaves.

use super::*;
use crate::config::Policy;

const UUID: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";

/// The state of a vTPM in a folder that is gone with the first of the two.
fn state() -> (tempfile::TempDir, Config, Uuid) {
    let folder = tempfile::tempdir().unwrap();
    let config = Config {
        state_dir: folder.path().join("state"),
        ..Config::default()
    };
    (folder, config, UUID.parse().unwrap())
}

#[test]
fn the_state_decides_the_version() {
    let (_folder, mut config, uuid) = state();
    let fresh = config.state(&uuid, None).unwrap();
    assert!(!fresh.exists && fresh.version == Version::Tpm2);

    let policy = Policy {
        version: Some(Version::Tpm12),
        ..Policy::default()
    };
    config.vtpms.insert(uuid.clone(), policy);
    assert_eq!(config.state(&uuid, None).unwrap().version, Version::Tpm12);

    fs::create_dir(&fresh.path).unwrap();
    write_state(&fresh.path.join("tpm-00.permall"), 100);
    assert!(config.state(&uuid, None).unwrap().exists);
    assert!(matches!(
        config.state(&uuid, Some(Version::Tpm2)),
        Err(Error::Version { .. })
    ));
    config.vtpms.clear();
    assert_eq!(config.state(&uuid, None).unwrap().version, Version::Tpm12);
}

#[test]
fn one_user_at_a_time() {
    let (_folder, config, uuid) = state();
    let state = config.state(&uuid, None).unwrap();
    let lock = state.lock().unwrap();
    let refused = state.lock().unwrap_err().to_string();

    assert!(
        refused.contains("is in use by another process"),
        "{refused}"
    );
    assert_eq!(fs::read(state.beside("lock")).unwrap(), b"");
    drop(lock);
    state.lock().unwrap();
}

/// Writes what is whole by its header.
fn write_state(path: &Path, len: u8) {
    let mut bytes = vec![0; len.into()];
    bytes[..10].copy_from_slice(&[2, 1, 0, 10, 0, 0, 0, 0, 0, len]);
    fs::write(path, bytes).unwrap();
}

fn for_vm(vm: Option<&str>) -> Guest<'_> {
    Guest { vm, boots: false }
}

#[test]
fn the_mark_of_a_saved_guest_is_for_that_guest() {
    let (_folder, config, uuid) = state();
    let state = config.state(&uuid, None).unwrap();
    let volatile = state.path.join(state.version.volatile_file());
    let (a, b) = (Some("a"), Some("b"));
    fs::create_dir(&state.path).unwrap();

    state.unmark_saved().unwrap();
    assert!(!state.prepare_volatile(for_vm(a)).unwrap());
    assert!(state.mark_saved(a).is_err(), "there is nothing to mark");
    write_state(&volatile, 20);
    state.mark_saved(a).unwrap();
    assert!(state.prepare_volatile(for_vm(a)).unwrap());
    assert!(
        state.prepare_volatile(for_vm(a)).unwrap(),
        "not used up yet"
    );
    assert!(!state.prepare_volatile(for_vm(b)).unwrap());
    assert!(!volatile.exists() && !state.is_saved().unwrap());

    write_state(&volatile, 20);
    state.mark_saved(a).unwrap();
    let boots = Guest { vm: a, boots: true };
    assert!(!state.prepare_volatile(boots).unwrap());
    assert!(!volatile.exists() && !state.is_saved().unwrap());

    for mark in [None, a] {
        write_state(&volatile, 20);
        state.mark_saved(mark).unwrap();
        assert_eq!(
            state.prepare_volatile(for_vm(None)).unwrap(),
            mark.is_none()
        );
    }
    // As version 0.1.0 made it.
    write_state(&volatile, 20);
    fs::write(state.beside("saved"), b"").unwrap();
    assert!(state.prepare_volatile(for_vm(a)).unwrap());
    fs::remove_file(&volatile).unwrap();
    assert!(matches!(
        state.prepare_volatile(for_vm(a)),
        Err(Error::NotSaved(..))
    ));
    state.unmark_saved().unwrap();
    assert!(!state.is_saved().unwrap());
}

#[test]
fn what_is_not_whole_is_refused_by_name() {
    let (_folder, config, uuid) = state();
    let path = config.state(&uuid, None).unwrap().path;
    fs::create_dir(&path).unwrap();
    let refused = |part: &str| {
        let reason = config.state(&uuid, None).unwrap_err().to_string();
        assert!(reason.contains(part), "{reason}");
    };
    refused("has no state of a TPM");

    let file = path.join("tpm2-00.permall");
    write_state(&file, 100);
    assert!(config.state(&uuid, None).unwrap().exists);
    for len in [0, 9, 10, 99, 101] {
        OpenOptions::new()
            .write(true)
            .open(&file)
            .unwrap()
            .set_len(len)
            .unwrap();
        refused("tpm2-00.permall has ");
    }
    fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &file).unwrap();
    refused("tpm2-00.permall");
}

#[test]
fn each_folder_has_a_user_of_its_own() {
    let (_folder, config, uuid) = state();
    let first = config.state(&uuid, None).unwrap();
    let second = config.state(&UUID.replace('0', "1").parse().unwrap(), None);
    let second = second.unwrap();

    fs::create_dir(&first.path).unwrap();
    fs::create_dir(&second.path).unwrap();
    fs::write(first.path.join("tpm2-00.permall"), b"").unwrap();
    if lchown(&first.path, Some(7_000), None).is_err() {
        return eprintln!("SKIPPED: not root");
    }
    let owner = |path: &Path| fs::symlink_metadata(path).unwrap().uid();

    assert_eq!(first.own(&first.path, 9_000).unwrap(), 9_000);
    assert_eq!(owner(&first.path.join("tpm2-00.permall")), 9_000);
    assert_eq!(second.own(&second.path, 9_000).unwrap(), 9_001);
    assert_eq!(owner(&second.path), 9_001);
    // It stays what it is, even where a smaller one would be free.
    fs::remove_dir_all(&first.path).unwrap();
    assert_eq!(second.own(&second.path, 9_000).unwrap(), 9_001);
    // As after cp -a: two of one user.
    fs::create_dir(&first.path).unwrap();
    lchown(&first.path, Some(9_001), Some(9_001)).unwrap();
    assert_eq!(first.own(&first.path, 9_000).unwrap(), 9_000);

    std::os::unix::fs::symlink("/etc/passwd", first.path.join("link")).unwrap();
    assert!(matches!(first.own(&first.path, 9_000), Err(Error::Odd(_))));
}

#[test]
fn room_is_kept_once_and_replaces_nothing() {
    let (_folder, config, uuid) = state();
    let state = config.state(&uuid, None).unwrap();
    fs::create_dir_all(&state.path).unwrap();
    write_state(&state.path.join(state.version.state_file()), 100);
    let names = || {
        let entries = fs::read_dir(&state.path).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    // What a worker has left that was killed meanwhile is in nobody's way.
    fs::write(state.path.join("room.new"), b"half").unwrap();
    state.reserve(None).unwrap();
    assert_eq!(names(), ["TMP2-00.permall", "tpm2-00.permall"]);
    let room = state.path.join(state.version.temporary_file());
    assert_eq!(fs::metadata(&room).unwrap().len(), 100 + RESERVE);

    fs::write(&room, b"swtpm's").unwrap();
    state.reserve(None).unwrap();
    assert_eq!(fs::read(&room).unwrap(), b"swtpm's");
}
