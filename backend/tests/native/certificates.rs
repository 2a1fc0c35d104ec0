// SPDX-License-Identifier: GPL-2.0

//! The certificates of a vTPM's endorsement keys, for who has only the CA's.

use std::fs;
use std::os::unix::fs::{chown, MetadataExt};
use std::path::Path;
use std::process::Command;

use rustix::mount::{mount, MountFlags};

use crate::host::{stdout_of, Host};
use crate::toolstack::uuid;

const CA: &str = "/var/lib/swtpm-localca";
const BEGIN: &str = "-----BEGIN CERTIFICATE-----";

/// What openssl says of a file.
fn openssl(arguments: &[&str], file: &Path) -> String {
    let output = stdout_of(Command::new("openssl").args(arguments).arg(file));
    String::from_utf8(output).unwrap()
}

#[test]
fn each_endorsement_key_has_a_certificate_of_the_ca() {
    let Some(host) = Host::bare("[tpm]\ncertificates = true") else {
        return;
    };
    verify(
        &host,
        Path::new(&format!("{CA}/swtpm-localca-rootca-cert.pem")),
    );
}

/// A fleet has a CA of its own, and each host an intermediate of that, with which it signs.
#[test]
fn a_fleets_own_ca_signs() {
    let Some(host) = Host::bare("[tpm]\ncertificates = true") else {
        return;
    };
    let owner = fs::metadata(CA).unwrap().uid();
    mount("tmpfs", CA, "tmpfs", MountFlags::empty(), "mode=750").unwrap();
    let make = host.path("make-ca");
    fs::write(&make, MAKE_CA).unwrap();
    stdout_of(Command::new("sh").arg(&make).current_dir(CA));
    for path in [CA, "signkey.pem", "issuercert.pem"] {
        chown(Path::new(CA).join(path), Some(owner), None).unwrap();
    }
    // The fleet's root is not on its hosts.
    let root = Path::new(CA).join("fleet.pem");
    fs::copy(&root, host.path("fleet.pem")).unwrap();
    fs::remove_file(&root).unwrap();
    verify(&host, &host.path("fleet.pem"));
    assert!(!Path::new(CA).join("swtpm-localca-rootca-cert.pem").exists());
}

/// The commands that Documentation/trust.rst refers to.
const MAKE_CA: &str = r#"
set -e
openssl req -x509 -newkey rsa:2048 -nodes -keyout fleet.key -out fleet.pem -subj "/CN=fleet" -days 3650
openssl req -newkey rsa:2048 -nodes -keyout signkey.pem -out host.csr -subj "/CN=host"
printf "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\n" >host.ext
openssl x509 -req -in host.csr -CA fleet.pem -CAkey fleet.key -CAcreateserial -extfile host.ext -days 3650 \
    -out issuercert.pem
rm fleet.key
"#;

/// Each endorsement key of a new vTPM has a certificate that leads to this one.
fn verify(host: &Host, root: &Path) {
    let root = root.to_str().unwrap();
    host.start();
    host.cli_ok(&["create-state", &uuid(7)]);
    let text = host.cli_ok(&["info", &uuid(7)]);
    let keys: Vec<_> = text.split("\nEK (").skip(1).collect();
    assert_eq!(keys.len(), 2, "{text}");
    for key in keys {
        let (public, certificate) = key.split_once("\nEK certificate (").expect(&text);
        let public = &public[public.find("-----BEGIN PUBLIC KEY-----").unwrap()..];
        let file = host.path("ek.pem");
        fs::write(&file, &certificate[certificate.find(BEGIN).unwrap()..]).unwrap();
        let issuer = format!("{CA}/issuercert.pem");
        openssl(&["verify", "-CAfile", root, "-untrusted", &issuer], &file);
        assert_eq!(
            openssl(&["x509", "-noout", "-pubkey", "-in"], &file).trim(),
            public.trim()
        );
        // Whose it is, and what for: TCG EK Credential Profile, 3.2.
        let what = [
            "x509",
            "-noout",
            "-subject",
            "-ext",
            "extendedKeyUsage",
            "-in",
        ];
        let said = openssl(&what, &file);
        assert!(
            said.contains(&uuid(7)) && said.contains("Endorsement Key Certificate"),
            "{said}"
        );
    }
}
