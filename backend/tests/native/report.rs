// SPDX-License-Identifier: GPL-2.0

//! `report`: it has what somebody who looks into a fault asks for, and no secret.

use std::fs;

use rustix::process::Signal;

use crate::host::Host;
use crate::toolstack::uuid;

#[test]
fn report_has_no_secret() {
    let Some(host) = Host::bare("") else { return };
    let (key, secret) = (host.path("key"), "1f".repeat(32));
    fs::write(&key, &secret).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(&key, mode).unwrap();
    host.configure(&format!("[tpm]\nkey-file = {key:?}"));
    host.start();
    drop(host.boot(7, &uuid(7)));

    let said = host.cli_ok(&["report"]);
    let parts = [
        "[tpm]\nkey-file = ",
        "== status\n{",
        "== list\n",
        &uuid(7),
        "backend/vtpm/7/0/state = \"4\"",
        "device/vtpm/0/state = \"4\"",
    ];
    for part in parts {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    assert!(!said.contains(&secret) && !said.contains("1f1f1f1f"));

    // Without a manager it says that, and all else.
    host.end_manager(Signal::Kill);
    let said = host.cli_ok(&["report"]);
    assert!(
        said.contains("== status\nno ") && said.contains(&uuid(7)),
        "{said}"
    );
}
