// SPDX-License-Identifier: GPL-2.0

//! The certificates of a vTPM's endorsement keys, for who has only the CA's.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::host::Host;
use crate::toolstack::uuid;

const CA: &str = "/var/lib/swtpm-localca";
const BEGIN: &str = "-----BEGIN CERTIFICATE-----";

/// What openssl says of a file.
fn openssl(arguments: &[&str], file: &Path) -> String {
    let output = Command::new("openssl")
        .args(arguments)
        .arg(file)
        .output()
        .unwrap();
    assert!(output.status.success(), "openssl {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn each_endorsement_key_has_a_certificate_of_the_ca() {
    let Some(host) = Host::bare("[tpm]\ncertificates = true") else {
        return;
    };
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
        let root = format!("{CA}/swtpm-localca-rootca-cert.pem");
        let issuer = format!("{CA}/issuercert.pem");
        openssl(&["verify", "-CAfile", &root, "-untrusted", &issuer], &file);
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
