// SPDX-License-Identifier: GPL-2.0

//! `xen-vtpmd migrate`: the guest goes to another host, and its TPM with it.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use rustix::process::Signal;

use crate::host::{wait_for, Host, LIMIT};
use crate::hypervisor::Domain;
use crate::toolstack::{uuid, LIBXL};
use crate::tpm::{extend, GET_RANDOM};
use crate::two_hosts::{Elsewhere, Two, HERE, THERE};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_tpm_goes_with_its_guest() {
    let Some(mut two) = Two::new() else { return };
    let guest = two.guest.as_mut().unwrap();
    guest.define_counter();
    let (objects, clock) = (guest.objects(), guest.clock());
    two.start().unwrap();
    assert!(two.listed_there().unwrap()["migration"]
        .as_str()
        .unwrap()
        .contains("expected from"));
    two.suspend();
    assert!(two.attach());
    assert_eq!(two.host.status(HERE).unwrap()["state"], "connected");
    // Nobody reads the page of a suspended guest: what that takes would be downtime.
    assert!(two.host.processes("io", Some(HERE)).is_empty());
    let mut guest = two.run_there();
    assert_eq!(guest.pcr(16), two.pcr);
    assert_eq!(guest.objects(), objects);
    let now = guest.clock();
    assert!(
        now.0 >= clock.0 && now.1 == clock.1,
        "{now:?} after {clock:?}"
    );
    assert_eq!(guest.counter(), 1);
    two.destroy_here();
    let output = two.end(0);
    let said = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(
        said.contains("s of downtime") && said.contains("guest runs on other"),
        "{said}"
    );

    let here = two.listed_here().unwrap();
    assert_eq!(here["migration"], "moved to other");
    assert_eq!(
        two.listed_there().unwrap()["migration"],
        serde_json::Value::Null
    );
    assert!(!two.host.state_dir().join(uuid(7)).exists());
    guest.done(&extend(16));
    // A guest of the same uuid gets no new TPM here.
    two.host.add(8, &uuid(7));
    assert!(wait_for(LIBXL, || two.host.backend_state(8).is_none()));
    assert!(
        two.host.error(8).contains("moved to other"),
        "{}",
        two.host.error(8)
    );
    let output = two.host.cli(&["create-state", &uuid(7)]);
    let said = text(&output.stderr);
    assert!(
        !output.status.success() && said.contains("moved to other"),
        "{said}"
    );
    two.host.cli_ok(&["discard", "--yes", &uuid(7)]);
    assert!(two.listed_here().is_none());
}

/// What there is to refuse is refused before xl starts, and nothing is left there.
#[track_caller]
fn is_refused(two: &mut Two, wanted: &str) {
    let output = two.start().expect_err("it is not refused, and xl starts");
    let said = text(&output.stderr);
    assert!(said.contains(wanted), "{wanted:?} is wanted: {said}");
    assert!(two.xl().is_none());
    assert_eq!(
        (two.mark_here(), two.mark_there()),
        (String::new(), String::new())
    );
    two.guest.as_mut().unwrap().done(&GET_RANDOM);
}

#[test]
fn an_older_swtpm_is_refused() {
    let Some(mut two) = Two::new() else { return };
    two.other.on(|host| {
        let script = "[ \"$1\" = --version ] && echo 'TPM emulator version 0.6.9, C' && exit\n\
                      exec $real \"$@\"";
        host.wrap("/usr/bin/swtpm", script);
    });
    is_refused(&mut two, "swtpm is 0.6.9 here");
}

#[test]
fn a_host_without_a_manager_is_refused() {
    let Some(mut two) = Two::new() else { return };
    let _ = two.other.on(|host| host.end_manager(Signal::Term));
    is_refused(&mut two, "xen-vtpmd");
}

#[test]
fn a_state_that_is_there_is_refused() {
    let Some(mut two) = Two::new() else { return };
    two.other
        .on(|host| drop(host.cli_ok(&["create-state", &uuid(7)])));
    is_refused(&mut two, "has a state there already");
    two.other.on(|host| {
        host.cli_ok(&["remove", "--yes", &uuid(7)]);
        drop(host.boot(30, &uuid(7)));
    });
    is_refused(&mut two, "is in use by another process or host");
}

fn key_file(host: &Host, name: &str, digit: char) -> String {
    let path = host.path(name);
    fs::write(&path, digit.to_string().repeat(64)).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    format!("[tpm]\nkey-file = {:?}\n", path.display().to_string())
}

/// With a key-file here, or there, of this digit.
fn with_keys(here: Option<char>, there: Option<char>) -> Option<Two> {
    let other = Elsewhere::new("")?;
    let host = Host::bare("")?;
    if let Some(digit) = here {
        host.configure(&key_file(&host, "key", digit));
    }
    if let Some(digit) = there {
        other.on(move |host| {
            host.configure(&key_file(host, "key", digit));
            host.end_manager(Signal::Term);
            host.start();
        });
    }
    Two::between(other, host)
}

#[test]
fn an_encrypted_state_does_not_get_open() {
    let Some(mut two) = with_keys(Some('a'), None) else {
        return;
    };
    is_refused(&mut two, "no key-file is configured here");
}

#[test]
fn a_key_that_does_not_open_is_refused() {
    let Some(mut two) = with_keys(Some('a'), Some('b')) else {
        return;
    };
    two.other
        .on(|host| fs::write(host.path("key"), "nonsense").unwrap());
    is_refused(&mut two, "64 hex digits are expected");
}

/// It is encrypted by the destination's key, and opens with that alone.
#[test]
fn a_state_gets_the_destinations_key() {
    for (here, there) in [
        (Some('a'), Some('b')),
        (None, Some('b')),
        (Some('a'), Some('a')),
    ] {
        let Some(mut two) = with_keys(here, there) else {
            return;
        };
        two.guest.as_mut().unwrap().define_counter();
        two.start().unwrap();
        two.suspend();
        assert!(two.attach());
        let mut guest = two.run_there();
        assert_eq!(guest.pcr(16), two.pcr);
        two.destroy_here();
        assert!(two.end(0).status.success());
        let key = two.listed_there().unwrap()["key"].clone();
        assert!(key.as_str().unwrap().len() == 16, "{key}");
        drop(guest);
        two.other.on(|host| {
            assert!(host.destroy(THERE));
            assert_eq!(host.boot(22, &uuid(7)).counter(), 1);
        });
    }
}

/// What is on its way is for the guest that comes with it.
#[test]
fn a_guest_that_boots_gets_nothing() {
    let Some(mut two) = Two::new() else { return };
    two.start().unwrap();
    assert!(
        !two.attach_as(uuid(7), Domain::Booted),
        "before it has arrived"
    );
    two.destroy_there();
    two.suspend();
    assert!(wait_for(LIMIT, || two.mark_there() == "arrived"));
    assert!(
        !two.attach_as(uuid(7), Domain::Booted),
        "after it has arrived"
    );
    two.destroy_there();
    two.resume_here();
    two.end(1);
    assert!(two.listed_there().is_none());
    assert_eq!(two.guest.as_mut().unwrap().pcr(16), two.pcr);
}

/// There and back, and then as a file.
#[test]
fn it_comes_back() {
    let Some(mut two) = Two::new() else { return };
    two.start().unwrap();
    two.suspend();
    assert!(two.attach());
    let guest = two.run_there();
    two.destroy_here();
    assert!(two.end(0).status.success());
    let file = two.host.path("back.vtpm").display().to_string();
    let to = file.clone();
    two.other.on(move |host| {
        assert!(host.save(guest));
        host.cli_ok(&["export", &uuid(7), &to]);
    });
    assert_eq!(two.mark_here(), "moved");
    two.host.cli_ok(&["import", &file]);
    assert_eq!(two.mark_here(), "");
    assert_eq!(two.host.restore(8, &uuid(7)).pcr(16), two.pcr);
}
