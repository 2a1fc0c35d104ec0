// SPDX-License-Identifier: GPL-2.0

//! vTPMs that move.

use std::fs;
use std::os::unix::fs::{symlink, PermissionsExt};
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};
use xen_vtpmd::archive::{export, import, Error};
use xen_vtpmd::state::Error as StateError;
use xen_vtpmd::swtpm::Version;

use crate::bench::{extend_2, pcr_2, Bench};

fn refused(bench: &Bench, path: &Path) -> String {
    let refused = import(&bench.config, path, None).unwrap_err().to_string();
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

    assert_eq!(import(&there.config, &file, None).unwrap(), there.uuid);
    assert!(there.state().is_saved().unwrap());
    let twice = import(&there.config, &file, None).unwrap_err();
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
    import(&there.config, &file, None).unwrap();
    there.start().end();

    let folder = here.state().path;
    let whose = import(&elsewhere.config, &folder, None).unwrap_err();
    assert!(matches!(whose, Error::WhichUuid(_)));
    import(&elsewhere.config, &folder, Some(&elsewhere.uuid)).unwrap();
    elsewhere.start().end();
    here.start().end();
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
        (manifest(2, "2.0", false), "format 2, where 1 is expected"),
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
    import(&bench.config, &file("y.tar"), None).unwrap();

    let folder = file("folder");
    fs::create_dir(&folder).unwrap();
    let other = "1f8fad5b-d9cb-469f-a165-70867728950e".parse().unwrap();
    import(&bench.config, &folder, Some(&other)).unwrap_err();
    symlink("/etc/hostname", folder.join("tpm2-00.permall")).unwrap();
    let said = import(&bench.config, &folder, Some(&other)).unwrap_err();
    assert!(said.to_string().contains("not a plain file"), "{said}");
}
