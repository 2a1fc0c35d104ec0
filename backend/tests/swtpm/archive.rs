// SPDX-License-Identifier: GPL-2.0

//! vTPMs that move.

use std::fs;
use std::os::unix::fs::{symlink, PermissionsExt};
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};
use xen_vtpmd::archive::{export, import, Error, Identity, Import};
use xen_vtpmd::config::Uuid;
use xen_vtpmd::state::Error as StateError;
use xen_vtpmd::swtpm::Version;

use crate::bench::{extend_2, pcr_2, Bench};

fn as_uuid(uuid: &Uuid) -> Import {
    Import {
        uuid: Some(uuid.clone()),
        ..Import::default()
    }
}

fn refused(bench: &Bench, path: &Path) -> String {
    let refused = import(&bench.config, path, &Import::default())
        .unwrap_err()
        .to_string();
    assert!(!bench.state().path.exists());
    refused
}

#[test]
fn a_saved_tpm_goes_on_elsewhere() {
    let Some(here) = Bench::with_tpm(Version::Tpm2) else {
        return;
    };
    let there = Bench::new(None);
    let file = here.folder.path().join("vtpm.tar");
    let mut swtpm = here.start();
    swtpm.done(&extend_2(16));
    let extended = pcr_2(&mut swtpm, 16);

    let in_use = export(&here.config, &here.uuid, &file, false).unwrap_err();
    assert!(
        matches!(in_use, Error::State(StateError::Locked { .. })),
        "{in_use}"
    );
    assert!(!file.exists());
    std::thread::scope(|scope| {
        // The TPM that was saved with its guest may end a little later than that.
        let export = scope.spawn(|| export(&here.config, &here.uuid, &file, false));
        swtpm.end_saved();
        export.join().unwrap().unwrap();
    });
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert!(!here.state().path.exists() && !here.state().is_saved().unwrap());
    let gone = export(&here.config, &here.uuid, &file, false).unwrap_err();
    assert!(matches!(gone, Error::NoState(_)));

    assert_eq!(
        import(&there.config, &file, &Import::default())
            .unwrap()
            .uuid,
        there.uuid
    );
    assert!(there.state().is_saved().unwrap());
    let twice = import(&there.config, &file, &Import::default()).unwrap_err();
    assert!(
        matches!(twice, Error::State(_) | Error::Exists(_)),
        "{twice}"
    );
    let mut swtpm = there.start();
    assert_eq!(pcr_2(&mut swtpm, 16), extended);
    swtpm.end();
}

#[test]
fn a_copy_and_a_folder_of_swtpms() {
    let Some(here) = Bench::with_tpm(Version::Tpm12) else {
        return;
    };
    let (there, elsewhere) = (Bench::new(None), Bench::new(None));
    let file = here.folder.path().join("vtpm.tar");

    here.start().end();
    export(&here.config, &here.uuid, &file, true).unwrap();
    let exists = export(&here.config, &here.uuid, &file, true).unwrap_err();
    assert!(matches!(exists, Error::File { .. }), "{exists}");
    import(&there.config, &file, &Import::default()).unwrap();
    there.start().end();

    let folder = here.state().path;
    let whose = import(&elsewhere.config, &folder, &Import::default()).unwrap_err();
    assert!(matches!(whose, Error::WhichUuid(_)));
    import(&elsewhere.config, &folder, &as_uuid(&elsewhere.uuid)).unwrap();
    elsewhere.start().end();
    here.start().end();
}

#[test]
fn a_running_vtpm_is_backed_up() {
    let Some(here) = Bench::with_tpm(Version::Tpm2) else {
        return;
    };
    let there = Bench::new(None);
    let file = here.folder.path().join("vtpm.tar");
    let swtpm = here.start();

    assert!(
        export(&here.config, &here.uuid, &file, true).unwrap(),
        "it is in use"
    );
    swtpm.end();
    import(&there.config, &file, &Import::default()).unwrap();
    assert!(!there.state().is_saved().unwrap());
    there.start().end();
}

#[test]
fn an_identity_is_there_once_unless_that_is_wanted() {
    let Some(here) = Bench::with_tpm(Version::Tpm2) else {
        return;
    };
    let file = here.folder.path().join("vtpm.tar");
    let other: Uuid = "1f8fad5b-d9cb-469f-a165-70867728950e".parse().unwrap();
    let third: Uuid = "2f8fad5b-d9cb-469f-a165-70867728950e".parse().unwrap();
    let how = |uuid: &Uuid, identity| Import {
        uuid: Some(uuid.clone()),
        identity,
    };
    here.start().end();
    export(&here.config, &here.uuid, &file, true).unwrap();
    let refused = import(&here.config, &file, &as_uuid(&other)).unwrap_err();
    assert!(matches!(refused, Error::SameIdentity { .. }), "{refused}");
    assert!(refused.to_string().contains("--new-identity"), "{refused}");

    let copy = import(&here.config, &file, &how(&other, Identity::Copied)).unwrap();
    assert!(copy.remarks[0].contains("is a COPY"), "{:?}", copy.remarks);
    // The copy has the identity too: it is there although the original is gone.
    xen_vtpmd::admin::remove(&here.config, &here.uuid).unwrap();
    let refused = import(&here.config, &file, &as_uuid(&third)).unwrap_err();
    assert!(matches!(refused, Error::SameIdentity { .. }), "{refused}");

    let new = import(&here.config, &file, &how(&third, Identity::New)).unwrap();
    assert!(new.remarks[0].contains("new seeds"), "{:?}", new.remarks);
    let none = std::collections::HashMap::new();
    let key = |uuid| {
        let text = xen_vtpmd::admin::info(&here.config, uuid, &none).unwrap();
        text[text.find("EK (RSA").unwrap()..].to_owned()
    };
    assert_ne!(key(&third), key(&other));
    // It is an identity of its own from now on.
    let twice = here.folder.path().join("third.tar");
    export(&here.config, &third, &twice, false).unwrap();
    let moved = import(&here.config, &twice, &Import::default()).unwrap();
    assert_eq!(moved.uuid, third);
    assert!(moved.remarks.is_empty(), "{:?}", moved.remarks);
}

#[test]
fn an_export_follows_no_link() {
    let Some(here) = Bench::with_tpm(Version::Tpm2) else {
        return;
    };
    let path = |name: &str| here.folder.path().join(name);
    fs::write(path("victim"), "precious").unwrap();
    symlink(path("victim"), path("vtpm.tar")).unwrap();
    symlink(path("victim"), path("vtpm.tar.new")).unwrap();

    let refused = export(&here.config, &here.uuid, &path("vtpm.tar"), true).unwrap_err();
    assert!(matches!(refused, Error::File { .. }), "{refused}");
    fs::remove_file(path("vtpm.tar")).unwrap();
    export(&here.config, &here.uuid, &path("vtpm.tar"), true).unwrap();
    assert_eq!(fs::read(path("victim")).unwrap(), b"precious");
    let data = fs::symlink_metadata(path("vtpm.tar")).unwrap();
    assert!(data.is_file() && data.permissions().mode() & 0o777 == 0o600);
}

/// An archive of these entries.
fn archive(path: PathBuf, entries: &[(&str, EntryType, &[u8])]) -> PathBuf {
    let mut builder = Builder::new(fs::File::create(&path).unwrap());
    for (name, kind, bytes) in entries {
        let mut header = Header::new_ustar();
        // The builder would refuse some of these names.
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        builder.append(&header, *bytes).unwrap();
    }
    builder.finish().unwrap();
    path
}

#[test]
fn what_is_no_vtpm_is_refused() {
    let bench = Bench::new(None);
    let file = |name: &str| bench.folder.path().join(name);
    let manifest = |format: u32, version: &str, saved: bool| {
        let uuid = &bench.uuid;
        format!(
            "{{\"format\":{format},\"uuid\":\"{uuid}\",\"version\":\"{version}\",\"saved\":{saved}}}"
        )
    };
    let good = manifest(1, "2.0", false);
    let good = ("manifest.json", EntryType::Regular, good.as_bytes());
    let state = ("tpm2-00.permall", EntryType::Regular, &b"x"[..]);
    let large = vec![0; (1 << 20) + 1];
    let check = |entries: &[(&str, EntryType, &[u8])], reason: &str| {
        let said = refused(&bench, &archive(file("x.tar"), entries));
        assert!(said.contains(reason), "{said:?}, not {reason:?}");
    };
    let regular = EntryType::Regular;

    check(&[], "does not start with manifest.json");
    check(&[state, good], "does not start with manifest.json");
    check(&[good], "tpm2-00.permall is not in it");
    check(&[good, state, state], "twice");
    check(
        &[good, ("../tpm2-00.permall", regular, b"x")],
        "is not a TPM 2.0's file",
    );
    check(
        &[good, ("/etc/tpm2-00.permall", regular, b"x")],
        "is not a TPM 2.0's file",
    );
    check(
        &[good, ("tpm-00.permall", regular, b"x")],
        "is not a TPM 2.0's file",
    );
    check(
        &[good, ("tpm2-00.volatilestate", regular, b"x")],
        "is not a TPM 2.0's file",
    );
    check(
        &[good, ("tpm2-00.permall", EntryType::Symlink, b"")],
        "is not a plain file",
    );
    check(
        &[good, ("tpm2-00.permall", EntryType::Link, b"")],
        "is not a plain file",
    );
    check(
        &[good, ("tpm2-00.permall", EntryType::GNULongName, b"x")],
        "is not a plain file",
    );
    check(
        &[good, ("tpm2-00.permall", regular, &large)],
        "is too large",
    );
    for (text, reason) in [
        (
            manifest(3, "2.0", false),
            "format 3, where 1 to 2 is expected",
        ),
        (manifest(1, "3.0", false), "is not a TPM version"),
        (
            manifest(1, "2.0", true),
            "tpm2-00.volatilestate is not in it",
        ),
        ("{}".into(), "missing field"),
    ] {
        check(
            &[("manifest.json", regular, text.as_bytes()), state],
            reason,
        );
    }

    let whole = fs::read(archive(file("y.tar"), &[good, state])).unwrap();
    fs::write(file("cut.tar"), &whole[..600]).unwrap();
    refused(&bench, &file("cut.tar"));
    fs::write(file("text"), "x".repeat(2_000)).unwrap();
    refused(&bench, &file("text"));
    // What they all were measured against.
    import(&bench.config, &file("y.tar"), &Import::default()).unwrap();

    let folder = file("folder");
    fs::create_dir(&folder).unwrap();
    let other = "1f8fad5b-d9cb-469f-a165-70867728950e".parse().unwrap();
    import(&bench.config, &folder, &as_uuid(&other)).unwrap_err();
    symlink("/etc/hostname", folder.join("tpm2-00.permall")).unwrap();
    let said = import(&bench.config, &folder, &as_uuid(&other)).unwrap_err();
    assert!(said.to_string().contains("not a plain file"), "{said}");
}
