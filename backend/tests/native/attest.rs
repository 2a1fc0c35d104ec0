// SPDX-License-Identifier: GPL-2.0

//! `attest`: evidence of a vTPM that is quoted by the host's TPM, and that no byte of can be changed.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::boots::BOOT;
use crate::host::Host;
use crate::host_tpm::HostTpm;
use crate::toolstack::uuid;

const NONCE: &str = "00112233445566778899aabbccddeeff";
const AK: &str = "0x8101000a";

/// Makes an attestation key as xen-vtpmd(8) says; its public part is the file ak.pem.
fn make_key(host: &Host, tpm: &HostTpm<'_>) -> String {
    let path = |name: &str| host.path(name).display().to_string();
    let (ek, context, pem) = (path("ek.ctx"), path("ak.ctx"), path("ak.pem"));
    tpm.tpm2("tpm2_createek", &["-Q", "-G", "ecc", "-c", &ek]);
    let key = [
        "-Q", "-C", &ek, "-G", "ecc", "-g", "sha256", "-s", "ecdsa", "-c", &context,
    ];
    tpm.tpm2(
        "tpm2_createak",
        &[&key[..], &["-u", &pem, "-f", "pem"]].concat(),
    );
    tpm.tpm2("tpm2_flushcontext", &["-t"]);
    tpm.tpm2("tpm2_evictcontrol", &["-Q", "-C", "o", "-c", &context, AK]);
    pem
}

fn verify(host: &Host, bundle: &[u8], nonce: &str, ak: &str) -> Output {
    let path = host.path("bundle");
    fs::write(&path, bundle).unwrap();
    let path = path.display().to_string();
    // No Xen, and no TPM.
    host.cli(&["verify-attestation", &path, "--nonce", nonce, "--ak", ak])
}

#[test]
fn attest_vouches_for_a_vtpm() {
    let Some(host) = Host::new() else { return };
    let tpm = HostTpm::new(&host);
    let ak = make_key(&host, &tpm);
    tpm.measure(7);
    drop(host.boot_measured(7, BOOT));
    let output = host
        .command(&[
            "attest",
            &uuid(7),
            "--nonce",
            NONCE,
            "--ak",
            AK,
            "--pcrs",
            "7+8",
        ])
        .env("TPM2TOOLS_TCTI", tpm.tcti())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let bundle = output.stdout;

    let said = verify(&host, &bundle, NONCE, &ak);
    assert!(said.status.success(), "{said:?}");
    let said: Value = serde_json::from_slice(&said.stdout).unwrap();
    let evidence = &said["evidence"];
    assert_eq!(evidence["uuid"], uuid(7));
    assert_eq!(evidence["guest"]["domid"], 7);
    assert_eq!(
        evidence["event_log"],
        crate::boots::hex(&host.offered_log(7))
    );
    assert!(evidence["endorsement"]
        .as_str()
        .unwrap()
        .contains("BEGIN PUBLIC KEY"));
    let shown = fs::read_to_string("/sys/class/tpm/tpm0/pcr-sha256/7").unwrap();
    assert_eq!(said["host_pcrs"]["7"], shown.trim().to_lowercase());

    by_hand(&host, &bundle, &ak);
    let other = "00112233445566778899aabbccddee00";
    assert!(
        !verify(&host, &bundle, other, &ak).status.success(),
        "another nonce"
    );
    let pem = host.path("other.pem");
    let made = Command::new("sh")
        .args([
            "-c",
            "openssl ecparam -name prime256v1 -genkey | openssl ec -pubout -out \"$1\"",
            "sh",
        ])
        .arg(&pem)
        .output();
    assert!(made.unwrap().status.success());
    let pem = pem.display().to_string();
    assert!(
        !verify(&host, &bundle, NONCE, &pem).status.success(),
        "another key"
    );
    each_changed_byte_fails(&host, &bundle, &ak);
}

/// By tpm2_checkquote and openssl alone.
fn by_hand(host: &Host, bundle: &[u8], ak: &str) {
    let bundle: Value = serde_json::from_slice(bundle).unwrap();
    let text = |name: &str| bundle[name].as_str().unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(host.path(name), bytes).unwrap();
    let bytes = |hex: &str| -> Vec<u8> {
        let pairs = (0..hex.len()).step_by(2);
        pairs
            .map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap())
            .collect()
    };
    write("evidence", text("evidence").as_bytes());
    for name in ["values", "quote", "signature"] {
        write(name, &bytes(text(name)));
    }
    let script = "hash=$(openssl dgst -sha256 -r evidence | cut -d' ' -f1) && \
                  tpm2_checkquote -Q -u \"$1\" -l sha256:7,8 -q $hash -g sha256 -m quote -s signature -f values";
    let output = Command::new("sh")
        .args(["-c", script, "sh", ak])
        .current_dir(host.path(""))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// A digit of each byte that the TPM has signed and returned, and each 41st byte of the evidence, for the time that
/// it takes.
fn each_changed_byte_fails(host: &Host, bundle: &[u8], ak: &str) {
    let text = String::from_utf8(bundle.to_vec()).unwrap();
    let signed = text.find("\"pcrs\":").unwrap();
    let places = (0..signed)
        .step_by(41)
        .chain((signed..bundle.len()).step_by(2));
    let program = crate::host::binary();
    let path = host.path("changed");
    let fails = |place: usize| {
        let mut changed = bundle.to_vec();
        changed[place] = match changed[place] {
            b'f' => b'0',
            byte => byte + 1,
        };
        fs::write(&path, &changed).unwrap();
        !verify_by(&program, &path, ak)
    };
    for place in places {
        assert!(fails(place), "byte {place}: {:?}", &text[place..=place]);
    }
    for more in [&b" "[..], b"\n", b"{}"] {
        fs::write(&path, [bundle, more].concat()).unwrap();
        assert!(!verify_by(&program, &path, ak), "{more:?} behind it");
    }
    fs::write(&path, bundle).unwrap();
    assert!(verify_by(&program, &path, ak), "as it was");
}

fn verify_by(program: &Path, bundle: &Path, ak: &str) -> bool {
    let output = Command::new(program)
        .arg("verify-attestation")
        .arg(bundle)
        .args(["--nonce", NONCE, "--ak", ak])
        .output();
    output.unwrap().status.success()
}
