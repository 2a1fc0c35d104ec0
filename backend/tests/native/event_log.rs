// SPDX-License-Identifier: GPL-2.0

//! The event log: tpm2_eventlog replays it to the PCRs that the TPM has, in every bank.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::boots::{hex, BOOT};
use crate::guest::Guest;
use crate::host::Host;
use crate::toolstack::uuid;
use crate::tpm::plain;

/// Banks by the names that tpm2_eventlog has for them, their TPM_ALG_ID and the size of their digests.
const BANKS: [(&str, u16, usize); 4] = [
    ("sha1", 0x4, 20),
    ("sha256", 0xb, 32),
    ("sha384", 0xc, 48),
    ("sha512", 0xd, 64),
];

impl Guest {
    /// A PCR of a bank.
    fn pcr_of(&mut self, id: u16, size: usize, pcr: u8) -> String {
        let id = id.to_be_bytes();
        let select = match pcr < 8 {
            true => [1 << pcr, 0, 0],
            false => [0, 1 << (pcr - 8), 0],
        };
        let parameters = [&[0, 0, 0, 1][..], &id, &[3], &select].concat();
        let response = self.done(&plain(0x17e, &parameters));
        hex(&response[response.len() - size..])
    }
}

/// The digest of a file by another program.
fn digest(program: &str, path: &Path) -> String {
    let output = Command::new(program).arg(path).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().next().unwrap().to_owned()
}

#[test]
fn event_log_replays_to_the_pcrs() {
    let Some(host) = Host::new() else { return };
    host.wrap(
        "/usr/bin/swtpm_setup",
        "exec $real \"$@\" --pcr-banks sha1,sha256,sha384,sha512",
    );
    let mut guest = host.boot_measured(7, BOOT);
    let log = host.offered_log(7);
    let (text, replayed) = host.replay(&log);
    for (name, id, size) in BANKS {
        for pcr in 0..8 {
            let own = guest.pcr_of(id, size, pcr);
            let replayed = replayed.get(&(name.to_owned(), pcr));
            assert_eq!(replayed, Some(&own), "{name}, PCR {pcr}:\n{text}");
        }
        assert_eq!(guest.pcr_of(id, size, 8), "0".repeat(2 * size));
        // By coreutils, of the very files.
        for file in ["vmlinuz", "initrd"] {
            assert!(text.contains(&digest(&format!("{name}sum"), &host.path(file))));
        }
    }
    assert!(text.contains(&hex(b"root=/dev/xvda ro")), "{text}");

    let path = host.path("by-cli");
    let output = host.cli(&["eventlog", &uuid(7)]);
    fs::write(&path, &output.stdout).unwrap();
    assert_eq!(output.stdout, log);
}

#[test]
fn event_log_of_a_tpm_12() {
    let Some(host) = Host::bare("[tpm]\nversion = \"1.2\"\n") else {
        return;
    };
    host.start();
    let mut guest = host.boot_measured(7, BOOT);
    let (text, replayed) = host.replay(&host.offered_log(7));
    for pcr in 0..8 {
        let read = [0, 0xc1, 0, 0, 0, 14, 0, 0, 0, 0x15, 0, 0, 0, pcr];
        let response = guest.done(&read);
        let replayed = &replayed[&("sha1".to_owned(), pcr)];
        assert_eq!(*replayed, hex(&response[10..]), "{text}");
    }
}
