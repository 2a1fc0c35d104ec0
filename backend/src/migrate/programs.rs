// SPDX-License-Identifier: GPL-2.0

//! Which swtpm and libtpms a host has: an older one does not read the state of a newer one.

use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

/// The program.
const SWTPM: &str = "/usr/bin/swtpm";

/// The versions; empty where one is not known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// As `swtpm --version` says.
    pub swtpm: String,
    /// As the library's file is called.
    pub libtpms: String,
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new("timeout")
        .args(["10", program])
        .args(arguments)
        .output();
    output.map_or_else(
        |_| String::new(),
        |output| String::from_utf8_lossy(&output.stdout).into_owned(),
    )
}

impl Versions {
    /// Of this host.
    pub fn here() -> Self {
        let swtpm = output(SWTPM, &["--version"]);
        let swtpm = swtpm.split_once("version ").map_or("", |(_, rest)| rest);
        let libraries = output("ldd", &[SWTPM]);
        let library = libraries.lines().find_map(|line| {
            let (name, path) = line.split_once(" => ")?;
            let path = path.split_ascii_whitespace().next()?;
            name.trim().starts_with("libtpms.so").then_some(path)
        });
        let file = library.and_then(|path| Path::new(path).canonicalize().ok());
        let file = file.as_deref().and_then(|path| path.file_name()?.to_str());
        let libtpms = file.and_then(|name| name.strip_prefix("libtpms.so."));
        Self {
            swtpm: swtpm.split([',', ' ']).next().unwrap_or("").to_owned(),
            libtpms: libtpms.unwrap_or("").to_owned(),
        }
    }

    /// Why what `other` has written may not be read here. Releases that differ in the last number only have one
    /// form of the state.
    pub fn obstacle(&self, other: &Self) -> Option<String> {
        let pairs = [
            ("swtpm", &self.swtpm, &other.swtpm),
            ("libtpms", &self.libtpms, &other.libtpms),
        ];
        pairs.into_iter().find_map(|(name, own, others)| {
            let older = release(own)? < release(others)?;
            older.then(|| {
                format!(
                    "{name} is {own} here and {others} there: an older one does not read the state"
                )
            })
        })
    }
}

fn release(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_ones() {
        let of = |swtpm: &str, libtpms: &str| Versions {
            swtpm: swtpm.into(),
            libtpms: libtpms.into(),
        };
        let here = of("0.7.3", "0.9.2");
        assert_eq!(here.obstacle(&of("0.7.9", "0.9.6")), None);
        assert_eq!(here.obstacle(&of("0.6.0", "")), None);
        assert!(here
            .obstacle(&of("0.8.0", "0.9.2"))
            .unwrap()
            .contains("swtpm is 0.7.3"));
        assert!(here
            .obstacle(&of("0.7.3", "0.10.0"))
            .unwrap()
            .contains("libtpms"));
    }
}
