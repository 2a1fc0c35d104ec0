// SPDX-License-Identifier: GPL-2.0

//! The file in which standins/faults.c counts calls into Xen's libraries, and finds which one is to
//! fail.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use crate::takeover;

/// The kinds of processes, as faults.c has them.
pub(crate) const KINDS: [&str; 4] = ["run", "serve", "io", "broker"];

/// Bytes of a slot: calls, which call is to fail, with what error, how long each is delayed.
const SLOT: usize = 16;

/// The mapped file, from the test's side.
pub(crate) struct Faults(File);

/// The calls, in the order of their slots.
pub(crate) fn calls() -> Vec<&'static str> {
    include_str!("standins/faults.def")
        .lines()
        .filter(|line| line.starts_with("FAULT"))
        .map(|line| {
            // The name is before the parameters, or all there is.
            let line = line.split(", (").next().unwrap().trim_end_matches(')');
            line.rsplit([' ', '(']).next().unwrap()
        })
        .collect()
}

impl Faults {
    /// Makes the file in the stand-ins' directory, and that of a takeover.
    pub(crate) fn new(directory: &Path) -> Self {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(directory.join("faults"))
            .unwrap();
        let size = KINDS.len() * calls().len() * SLOT;
        file.set_len(size as u64).unwrap();
        std::fs::write(directory.join("takeover"), vec![0; takeover::SIZE]).unwrap();
        Self(file)
    }

    fn at(kind: &str, call: &str) -> u64 {
        let kind = KINDS.iter().position(|known| *known == kind).unwrap();
        let calls = calls();
        let call = calls.iter().position(|known| *known == call).unwrap();
        ((kind * calls.len() + call) * SLOT) as u64
    }

    /// How often processes of this kind have made this call.
    pub(crate) fn count(&self, kind: &str, call: &str) -> u32 {
        let mut bytes = [0; 4];
        self.0
            .read_exact_at(&mut bytes, Self::at(kind, call))
            .unwrap();
        u32::from_ne_bytes(bytes)
    }

    /// Makes the call fail once: the `nth` from now on, 1 being the next.
    pub(crate) fn fail(&self, kind: &str, call: &str, nth: u32, error: rustix::io::Errno) {
        let nth = self.count(kind, call) + nth;
        let at = Self::at(kind, call);
        let error = error.raw_os_error().to_ne_bytes();
        self.0.write_all_at(&error, at + 8).unwrap();
        self.0.write_all_at(&nth.to_ne_bytes(), at + 4).unwrap();
    }

    /// Makes each such call take longer.
    pub(crate) fn delay(&self, kind: &str, call: &str, by: Duration) {
        let ms = u32::try_from(by.as_millis()).unwrap();
        let at = Self::at(kind, call) + 12;
        self.0.write_all_at(&ms.to_ne_bytes(), at).unwrap();
    }

    /// Whether the failure that was asked for has happened.
    pub(crate) fn has_failed(&self, kind: &str, call: &str) -> bool {
        let mut nth = [0; 4];
        self.0
            .read_exact_at(&mut nth, Self::at(kind, call) + 4)
            .unwrap();
        self.count(kind, call) >= u32::from_ne_bytes(nth)
    }

    /// How many calls there were of all.
    pub(crate) fn total(&self) -> u64 {
        all()
            .map(|(kind, call)| u64::from(self.count(kind, call)))
            .sum()
    }

    /// Nothing is to fail any more.
    pub(crate) fn clear(&self) {
        for (kind, call) in all() {
            self.0
                .write_all_at(&[0; 4], Self::at(kind, call) + 4)
                .unwrap();
        }
    }
}

/// Each call of each kind of process.
pub(crate) fn all() -> impl Iterator<Item = (&'static str, &'static str)> {
    KINDS
        .iter()
        .flat_map(|kind| calls().into_iter().map(move |call| (*kind, call)))
}

#[test]
fn names_are_read_from_the_list() {
    let calls = calls();
    assert_eq!(calls[..2], ["xs_open", "xs_directory"]);
    assert!(calls.contains(&"xenevtchn_unmask") && calls.contains(&"xc_domain_getinfo_single"));
}
