// SPDX-License-Identifier: GPL-2.0

//! The targets over the corpus, and over some inputs that nobody chose. The corpus is what
//! libFuzzer kept of its runs: one input for each way through the code.

use std::fs;
use std::path::PathBuf;

use xen_tpm_fuzz::TARGETS;

/// Small inputs at random: xorshift64.
fn random(state: &mut u64, most: u64) -> Vec<u8> {
    let mut next = || {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    };
    let length = next() % most;

    (0..length).map(|_| next() as u8).collect()
}

#[test]
fn nothing_in_the_corpus_breaks_its_target() {
    for (name, target) in TARGETS {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("corpus")
            .join(name);
        let files = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        let mut count = 0;

        for file in files {
            target(&fs::read(file.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count > 0, "{name} has no corpus");
    }
}

#[test]
fn nor_does_anything_at_random() {
    let mut state = 0x9e37_79b9_7f4a_7c15;

    for (_, target) in TARGETS {
        for _ in 0..20_000 {
            target(&random(&mut state, 200));
        }
    }
}
