// SPDX-License-Identifier: GPL-2.0

use super::*;

const UUID: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";

fn fixture() -> (tempfile::TempDir, Config, Uuid) {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        state_dir: dir.path().join("state"),
        run_dir: dir.path().join("run"),
        first_uid: None,
        ..Config::default()
    };
    fs::create_dir(&config.state_dir).unwrap();
    fs::create_dir(&config.run_dir).unwrap();
    (dir, config, UUID.parse().unwrap())
}

/// A state as swtpm_setup makes it, where that can be run.
fn made(config: &Config, uuid: &Uuid) -> Option<PathBuf> {
    made_with(config, uuid, None)
}

fn made_with(config: &Config, uuid: &Uuid, key: Option<&Path>) -> Option<PathBuf> {
    let path = config.state_dir.join(uuid.to_string());
    fs::create_dir(&path).unwrap();
    let mut command = Command::new("swtpm_setup");
    if let Some(key) = key {
        command
            .args(["--cipher", "aes-256-cbc", "--keyfile"])
            .arg(key);
    }
    let done = command
        .args(["--tpm2", "--createek", "--tpmstate"])
        .arg(&path)
        .stdout(Stdio::null())
        .status();
    match done {
        Ok(status) if status.success() => {
            let _ = fs::remove_file(path.join(".lock"));
            Some(path)
        }
        _ => {
            eprintln!("SKIPPED: no swtpm_setup");
            None
        }
    }
}

#[test]
fn dates() {
    assert_eq!(date(0), "1970-01-01 00:00");
    assert_eq!(date(951_782_399), "2000-02-28 23:59");
    assert_eq!(date(951_782_400), "2000-02-29 00:00");
    assert_eq!(date(1_795_872_960), "2026-11-28 13:36");
}

#[test]
fn a_list_of_what_is_there() {
    let (_dir, config, uuid) = fixture();
    let none = HashMap::new();
    assert!(list(&config, &none).unwrap().is_empty());

    let path = config.state_dir.join(UUID);
    fs::create_dir(&path).unwrap();
    let mut file = vec![2, 1, 0, 10, 0, 1, 0, 0, 0, 100];
    file.resize(100, 0);
    fs::write(path.join("tpm2-00.permall"), &file).unwrap();
    fs::write(path.with_extension("saved"), "").unwrap();
    let used = Use {
        name: "web\x1b[2J".into(),
        domid: 7,
        host: "h".into(),
        ..Use::default()
    };
    Notes::note_use(&path, used).unwrap();
    // What is beside it, and what is half made, is no state.
    fs::create_dir(path.with_extension("new")).unwrap();

    let entries = list(&config, &none).unwrap();
    assert_eq!(entries.len(), 1);
    let entry = &entries[0];
    assert_eq!(entry.version.as_deref(), Some("2.0"));
    assert_eq!((entry.size, entry.saved), (100, true));
    assert_eq!((entry.key.as_str(), &entry.in_use), ("shared", &None));
    let table = table(&entries);
    assert!(table.contains("by web\u{fffd}[2J (7/0) on h"), "{table}");

    fs::write(path.with_extension("key"), r#"{"version":1,"key":"ab12"}"#).unwrap();
    let users = HashMap::from([(UUID.to_owned(), "7/0".to_owned())]);
    let of = |users| list(&config, users).unwrap().remove(0);
    assert_eq!(of(&users).in_use.as_deref(), Some("vtpm 7/0"));
    assert_eq!(of(&users).key, "ab12");
    file[5] = 0;
    fs::write(path.join("tpm2-00.permall"), &file).unwrap();
    assert_eq!(of(&none).key, "none");

    let lock = config.state(&uuid, None).unwrap().lock().unwrap();
    assert_eq!(of(&none).in_use.as_deref(), Some("locked"));
    assert!(remove(&config, &uuid).is_err(), "it is in use");
    drop(lock);
    remove(&config, &uuid).unwrap();
    assert!(list(&config, &none).unwrap().is_empty());
    for ending in ["saved", "info", "key"] {
        assert!(!path.with_extension(ending).exists(), "{ending}");
    }
    assert!(matches!(remove(&config, &uuid), Err(Error::NoState(_))));
}

#[test]
fn nothing_is_done_without_a_yes() {
    confirm("?", true).unwrap();
    if !io::stdin().is_terminal() {
        assert!(confirm("?", false).is_err());
    }
}

#[test]
fn endorsement_keys_of_a_state_in_use() {
    let (_dir, config, uuid) = fixture();
    let Some(path) = made(&config, &uuid) else {
        return;
    };
    let before = fs::read(path.join("tpm2-00.permall")).unwrap();
    let _lock = config.state(&uuid, None).unwrap().lock().unwrap();
    let text = info(&config, &uuid, &HashMap::new()).unwrap();
    assert_eq!(
        text.matches("-----BEGIN PUBLIC KEY-----").count(),
        2,
        "{text}"
    );
    assert!(text.contains("EK (RSA, 0x81010001)"), "{text}");
    // Looked at as a copy, which is gone.
    assert_eq!(fs::read(path.join("tpm2-00.permall")).unwrap(), before);
    assert_eq!(fs::read_dir(&config.run_dir).unwrap().count(), 0);
}

#[test]
fn states_move_from_key_to_key() {
    let (dir, mut config, uuid) = fixture();
    let Some(path) = made(&config, &uuid) else {
        return;
    };
    let none = HashMap::new();
    let key_file = |name: &str, byte: &str| {
        let path = dir.path().join(name);
        fs::write(&path, byte.repeat(32)).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        path
    };
    let ek = |config: &Config| {
        let text = info(config, &uuid, &none).unwrap();
        text[text.find("EK (RSA").unwrap()..].to_owned()
    };
    let before = ek(&config);
    assert_eq!(rekey(&config, &uuid, None).unwrap(), Rekeyed::NothingToDo);

    let (first, second) = (key_file("first", "0a"), key_file("second", "0b"));
    config.policy.key_file = Some(first.clone());
    assert_eq!(rekey(&config, &uuid, None).unwrap(), Rekeyed::Done);
    assert_eq!(ek(&config), before, "it is the same TPM");
    let id = key::Master::read(&first).unwrap().id();
    assert_eq!(entry(&config, &uuid, &none).key, id);
    assert_eq!(rekey(&config, &uuid, None).unwrap(), Rekeyed::NothingToDo);

    // Another key, of which the old one is known, or not.
    config.policy.key_file = Some(second.clone());
    assert!(rekey(&config, &uuid, None).is_err());
    assert!(info(&config, &uuid, &none).is_err());
    rekey(&config, &uuid, Some(&first)).unwrap();
    assert_eq!(ek(&config), before);
    // As after a crash between the state and its mark.
    key::mark(Some(&first), &path).unwrap();
    assert!(info(&config, &uuid, &none).is_err());
    rekey(&config, &uuid, Some(&first)).unwrap();
    assert_eq!(ek(&config), before);

    config.policy.key_file = None;
    rekey(&config, &uuid, Some(&second)).unwrap();
    assert_eq!(
        (ek(&config), entry(&config, &uuid, &none).key),
        (before, "none".into())
    );
    assert_eq!(
        fs::read_dir(&path).unwrap().count(),
        1,
        "nothing is left there"
    );
    assert_eq!(fs::read_dir(&config.run_dir).unwrap().count(), 0);

    // As version 0.1.0 encrypted it: by the configured key itself.
    remove(&config, &uuid).unwrap();
    config.policy.key_file = Some(first.clone());
    made_with(&config, &uuid, Some(&first)).unwrap();
    assert_eq!(entry(&config, &uuid, &none).key, "shared");
    let before = ek(&config);
    assert_eq!(rekey(&config, &uuid, None).unwrap(), Rekeyed::Done);
    assert_eq!(
        (ek(&config), entry(&config, &uuid, &none).key),
        (before, id)
    );
}

#[test]
fn a_lockout_is_cleared() {
    let (_dir, config, uuid) = fixture();
    let Some(path) = made(&config, &uuid) else {
        return;
    };
    let state = config.state(&uuid, None).unwrap();
    // TPMs that are cut off while something has a password that was used count that as a try.
    let counter = |session: &Session<'_>| {
        let text = session
            .tpm2("tpm2_getcap", &["properties-variable"])
            .unwrap();
        let text = String::from_utf8_lossy(&text).into_owned();
        let line = text
            .lines()
            .find(|line| line.contains("LOCKOUT_COUNTER"))
            .unwrap();
        line.rsplit(' ').next().unwrap().to_owned()
    };
    let place = copy(&config, &state).unwrap();
    let session = place.start(Version::Tpm2, None, Start::Up).unwrap();
    session
        .tpm2(
            "tpm2_nvdefine",
            &[
                "0x1500001",
                "-C",
                "o",
                "-s",
                "8",
                "-p",
                "x",
                "-a",
                "authread|authwrite",
            ],
        )
        .unwrap();
    assert!(session
        .tpm2("tpm2_nvread", &["0x1500001", "-P", "wrong"])
        .is_err());
    assert_ne!(counter(&session), "0x0");
    session.tpm2("tpm2_shutdown", &["--clear"]).unwrap();
    session.end().unwrap();
    replace(&state, &place.take("tpm2-00.permall").unwrap()).unwrap();

    clear_lockout(&config, &uuid).unwrap();
    let place = copy(&config, &state).unwrap();
    let session = place.start(Version::Tpm2, None, Start::Up).unwrap();
    assert_eq!(counter(&session), "0x0");
    // The state is the one it was, and not another.
    session.tpm2("tpm2_nvreadpublic", &["0x1500001"]).unwrap();
    drop(session);
    assert_eq!(
        fs::read_dir(&path).unwrap().count(),
        1,
        "nothing is left there"
    );
    fs::write(path.with_extension("saved"), "").unwrap();
    assert!(matches!(
        clear_lockout(&config, &uuid),
        Err(Error::Saved(_))
    ));
}
