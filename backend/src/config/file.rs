// SPDX-License-Identifier: GPL-2.0

//! The administrator's file, `/etc/xen-vtpmd.toml`. Whatever is wrong in it is told with its line.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use log::LevelFilter;
use serde::de::{Deserialize, Deserializer, Error as _};

use super::{Config, OnDeath, PlatformHierarchy, Policy, RestoreWithoutTpm, Sandbox, Uuid};
use crate::cgroup::Limits;
use crate::measure::{KernelDigest, Measure};
use crate::swtpm::Version;

/// The highest locality there is.
const MAX_LOCALITY: u8 = 4;

/// What swtpm can be given, in MiB. Under the least of it, it does not start.
const MEMORY: Range<u32> = 64..65_537;

/// What the first uid may be: no system account's, and with room for 2^16 vTPMs behind it.
const FIRST_UIDS: Range<u32> = 1_000..u32::MAX - 65_536;

/// Why there are no decisions.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// There is no such group.
    #[error("status-group {0:?} is not in /etc/group")]
    NoGroup(String),
    /// There is something wrong in it.
    #[error("{}, line {line}: {text:?}: {message}", path.display())]
    Bad {
        /// The file.
        path: PathBuf,
        /// The line, from 1 on.
        line: usize,
        /// What is in that line.
        text: String,
        /// What is wrong with it.
        message: String,
    },
}

/// Which file it is.
#[derive(Clone, Debug)]
pub struct ConfigFile {
    /// Where it is.
    pub path: PathBuf,
    /// That there is none is fine.
    pub may_be_missing: bool,
}

impl ConfigFile {
    /// Reads it. Returns its text too.
    pub fn load(&self) -> Result<(Config, String), FileError> {
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(e) if self.may_be_missing && e.kind() == io::ErrorKind::NotFound => String::new(),
            Err(source) => {
                return Err(FileError::Read {
                    path: self.path.clone(),
                    source,
                })
            }
        };
        Ok((parse(&self.path, &text)?, text))
    }
}

/// Reads the file. That there is none is fine if it `may_be_missing`.
pub fn load(path: &Path, may_be_missing: bool) -> Result<Config, FileError> {
    let file = ConfigFile {
        path: path.to_owned(),
        may_be_missing,
    };
    file.load().map(|(config, _)| config)
}

/// Takes the text of the file at `path` apart.
pub fn parse(path: &Path, text: &str) -> Result<Config, FileError> {
    toml::from_str(text)
        .map(|file: File| file.decisions())
        .map_err(|e| {
            let start = e.span().map_or(0, |span| span.start.min(text.len()));
            let line = text.as_bytes()[..start]
                .iter()
                .filter(|b| **b == b'\n')
                .count();

            FileError::Bad {
                path: path.to_owned(),
                line: line + 1,
                text: text.lines().nth(line).unwrap_or("").trim().to_owned(),
                message: e.message().trim_end().replace('\n', ", "),
            }
        })
}

/// The file as it is written.
#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct File {
    state_dir: Option<Parsed<Absolute>>,
    first_uid: Option<FirstUid>,
    log_level: Option<Parsed<Level>>,
    sandbox: Option<Parsed<Sandbox>>,
    status_group: Option<String>,
    limits: LimitKeys,
    tpm: Keys,
    vtpm: HashMap<Parsed<Uuid>, Keys>,
}

/// The keys of the table about what a worker with its swtpm may take.
#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct LimitKeys {
    cpu_weight: Option<Number<1, 10_000>>,
    cpu_percent: Option<Number<1, 100_000>>,
    memory: Option<Number<64, 1_048_576>>,
    tasks: Option<Number<16, 4_096>>,
    io_weight: Option<Number<1, 10_000>>,
}

impl LimitKeys {
    /// The limits with these keys, and the default for those that are not there.
    fn limits(self) -> Limits {
        let default = Limits::default();
        Limits {
            cpu_weight: self.cpu_weight.map_or(default.cpu_weight, |n| n.0),
            cpu_percent: self.cpu_percent.map(|n| n.0).or(default.cpu_percent),
            memory: self.memory.map_or(default.memory, |n| n.0),
            tasks: self.tasks.map_or(default.tasks, |n| n.0),
            io_weight: self.io_weight.map_or(default.io_weight, |n| n.0),
        }
    }
}

/// The keys of a table that is about vTPMs.
#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct Keys {
    version: Option<Parsed<Version>>,
    localities: Option<Localities>,
    on_death: Option<Parsed<OnDeath>>,
    restore_without_tpm: Option<Parsed<RestoreWithoutTpm>>,
    platform_hierarchy: Option<Parsed<PlatformHierarchy>>,
    measure: Option<Parsed<Measure>>,
    allowed_kernels: Option<Vec<Parsed<KernelDigest>>>,
    certificates: Option<bool>,
    key_file: Option<Parsed<Absolute>>,
    memory: Option<Memory>,
}

impl File {
    fn decisions(self) -> Config {
        let mut config = Config::default();
        let version = self.tpm.version.as_ref().map(|version| version.0);

        config.policy = self.tpm.policy(&config.policy);
        if let Some(version) = version {
            // For all is what one becomes; what it has to be is said for one only.
            config.policy.default_version = version;
            config.policy.version = None;
        }
        for (uuid, keys) in self.vtpm {
            let policy = keys.policy(&config.policy);
            config.vtpms.insert(uuid.0, policy);
        }
        if let Some(Parsed(Absolute(path))) = self.state_dir {
            config.state_dir = path;
        }
        if let Some(FirstUid(uid)) = self.first_uid {
            config.first_uid = Some(uid);
        }
        if let Some(Parsed(sandbox)) = self.sandbox {
            config.sandbox = sandbox;
        }
        if let Some(Parsed(Level(level))) = self.log_level {
            config.log_level = level;
        }
        config.status_group = self.status_group;
        config.limits = self.limits.limits();
        config
    }
}

impl Keys {
    /// What holds with these keys, and `else_` for those that are not there.
    fn policy(self, else_: &Policy) -> Policy {
        Policy {
            version: self.version.map(|version| version.0).or(else_.version),
            default_version: else_.default_version,
            localities: self.localities.map_or(else_.localities, |bits| bits.0),
            on_death: self.on_death.map_or(else_.on_death, |choice| choice.0),
            restore_without_tpm: self
                .restore_without_tpm
                .map_or(else_.restore_without_tpm, |choice| choice.0),
            platform_hierarchy: self
                .platform_hierarchy
                .map_or(else_.platform_hierarchy, |choice| choice.0),
            measure: self.measure.map_or(else_.measure, |choice| choice.0),
            allowed_kernels: self.allowed_kernels.map_or_else(
                || else_.allowed_kernels.clone(),
                |kernels| kernels.into_iter().map(|kernel| kernel.0).collect(),
            ),
            certificates: self.certificates.unwrap_or(else_.certificates),
            key_file: self
                .key_file
                .map(|path| path.0 .0)
                .or_else(|| else_.key_file.clone()),
            memory: self.memory.map_or(else_.memory, |memory| memory.0),
        }
    }
}

/// A string that stands for something else.
#[derive(PartialEq, Eq, Hash)]
struct Parsed<T>(T);

impl<'de, T: FromStr<Err = String>> Deserialize<'de> for Parsed<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        text.parse().map(Self).map_err(D::Error::custom)
    }
}

struct Absolute(PathBuf);

impl FromStr for Absolute {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s.starts_with('/') {
            true => Ok(Self(PathBuf::from(s))),
            false => Err(format!("{s:?}: a path that starts with / is expected")),
        }
    }
}

struct Level(LevelFilter);

impl FromStr for Level {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        const EXPECTED: &str = "error, warn, info, debug or trace is expected";
        s.parse()
            .map(Self)
            .map_err(|_| format!("{s:?}: {EXPECTED}"))
    }
}

#[derive(serde::Deserialize)]
#[serde(try_from = "Vec<i64>")]
struct Localities(u8);

impl TryFrom<Vec<i64>> for Localities {
    type Error = String;

    fn try_from(numbers: Vec<i64>) -> Result<Self, String> {
        numbers.into_iter().try_fold(Self(0), |bits, number| {
            match u8::try_from(number).ok().filter(|n| *n <= MAX_LOCALITY) {
                Some(n) => Ok(Self(bits.0 | (1 << n))),
                None => Err(format!(
                    "{number} is no locality: 0 to {MAX_LOCALITY} is expected"
                )),
            }
        })
    }
}

#[derive(serde::Deserialize)]
#[serde(try_from = "i64")]
struct Memory(u32);

impl TryFrom<i64> for Memory {
    type Error = String;

    fn try_from(number: i64) -> Result<Self, String> {
        within(number, MEMORY, "MiB").map(Self)
    }
}

/// A number from MIN to MAX.
#[derive(serde::Deserialize)]
#[serde(try_from = "i64")]
struct Number<const MIN: u32, const MAX: u32>(u32);

impl<const MIN: u32, const MAX: u32> TryFrom<i64> for Number<MIN, MAX> {
    type Error = String;

    fn try_from(number: i64) -> Result<Self, String> {
        match u32::try_from(number) {
            Ok(n) if (MIN..=MAX).contains(&n) => Ok(Self(n)),
            _ => Err(format!("{number}: {MIN} to {MAX} is expected")),
        }
    }
}

#[derive(serde::Deserialize)]
#[serde(try_from = "i64")]
struct FirstUid(u32);

impl TryFrom<i64> for FirstUid {
    type Error = String;

    fn try_from(number: i64) -> Result<Self, String> {
        within(number, FIRST_UIDS, "as a user id").map(Self)
    }
}

fn within(number: i64, range: Range<u32>, unit: &str) -> Result<u32, String> {
    match u32::try_from(number) {
        Ok(n) if range.contains(&n) => Ok(n),
        _ => Err(format!(
            "{number}: {} to {} {unit} is expected",
            range.start,
            range.end - 1
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";

    fn config(text: &str) -> Config {
        parse(Path::new("F"), text).unwrap()
    }

    fn message(text: &str) -> String {
        parse(Path::new("F"), text).unwrap_err().to_string()
    }

    #[test]
    fn an_empty_file_is_the_defaults() {
        let (empty, default) = (config(""), Config::default());

        assert_eq!(empty.policy, default.policy);
        assert_eq!(empty.state_dir, default.state_dir);
        assert_eq!(empty.first_uid, default.first_uid);
        assert_eq!(empty.log_level, default.log_level);
        assert!(empty.vtpms.is_empty());
    }

    #[test]
    fn a_vtpms_table_falls_back_key_by_key() {
        let config = config(&format!(
            r#"
            state-dir = "/srv/tpm"
            first-uid = 700000
            log-level = "debug"
            [tpm]
            version = "1.2"
            localities = [0, 2]
            on-death = "restart"
            certificates = true
            key-file = "/etc/key"
            memory = 512
            [vtpm."{}"]
            version = "2.0"
            memory = 128
            "#,
            UUID.to_uppercase()
        ));
        let one = config.policy(&UUID.parse().unwrap());

        assert_eq!(config.state_dir, Path::new("/srv/tpm"));
        assert_eq!(config.first_uid, Some(700_000));
        assert_eq!(config.log_level, LevelFilter::Debug);
        assert_eq!(config.policy.version, None);
        assert_eq!(config.policy.default_version, Version::Tpm12);
        assert_eq!(config.policy.memory, 512);
        assert_eq!(
            *one,
            Policy {
                version: Some(Version::Tpm2),
                memory: 128,
                ..config.policy.clone()
            }
        );
        assert_eq!(one.localities, 0b101);
        assert_eq!(one.on_death, OnDeath::Restart);
        assert!(one.certificates);
        assert_eq!(one.key_file.as_deref(), Some(Path::new("/etc/key")));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for (text, wanted) in [
            (
                "\n[tpm]\nmemmory = 1",
                "F, line 3: \"memmory = 1\": unknown field `memmory`",
            ),
            (
                "state-dir = 'x/y'",
                "line 1: \"state-dir = 'x/y'\": \"x/y\": a path that starts with /",
            ),
            (
                "[tpm]\nlocalities = [0,\n 5]",
                "line 2: \"localities = [0,\": 5 is no locality: 0 to 4",
            ),
            (
                "[tpm]\nversion = '3.0'",
                "\"3.0\" is not a TPM version: 1.2 or 2.0",
            ),
            (
                "[tpm]\nversion = 2.0",
                "line 2: \"version = 2.0\": invalid type: floating point",
            ),
            (
                "[tpm]\nmemory = 0",
                "line 2: \"memory = 0\": 0: 64 to 65536 MiB",
            ),
            (
                "[tpm]\nmemory = '1'",
                "line 2: \"memory = '1'\": invalid type: string",
            ),
            (
                "[tpm]\nrestore-without-tpm = 'x'",
                "\"x\": \"go-on\" or \"refuse\"",
            ),
            ("[tpm]\non-death = 'x'", "\"x\": \"closed\" or \"restart\""),
            (
                "[tpm]\nkey-file = 'key'",
                "line 2: \"key-file = 'key'\": \"key\": a path",
            ),
            (
                "[tpm]\nallowed-kernels = ['12']",
                "\"12\": the SHA-256 of a kernel is expected",
            ),
            ("[tpm]\ncertificates = 1", "expected a boolean"),
            ("first-uid = 0", "line 1: \"first-uid = 0\": 0: 1000 to"),
            (
                "[limits]\ntasks = 1",
                "line 2: \"tasks = 1\": 1: 16 to 4096",
            ),
            ("[limits]\nfiles = 1", "unknown field `files`"),
            ("log-level = 'loud'", "\"loud\": error, warn, info"),
            (
                "\n\n[vtpm.'12']",
                "line 3: \"[vtpm.'12']\": \"12\" is not a uuid",
            ),
            ("x", "line 1: \"x\": "),
        ] {
            let message = message(text);
            assert!(message.contains(wanted), "{text:?}: {message}");
        }
    }

    #[test]
    fn limits_and_the_group() {
        let text = "status-group = 'root'\n[limits]\ncpu-percent = 50\nmemory = 300";
        let config = config(text);
        let wanted = Limits {
            cpu_percent: Some(50),
            memory: 300,
            ..Limits::default()
        };
        assert_eq!(config.limits, wanted);
        assert_eq!(config.status_gid().unwrap(), Some(0));
        let none = Config {
            status_group: Some("no-such-group".into()),
            ..Config::default()
        };
        assert!(none
            .status_gid()
            .unwrap_err()
            .to_string()
            .contains("no-such-group"));
    }

    #[test]
    fn a_missing_file() {
        let path = Path::new("/nowhere/xen-vtpmd.toml");

        assert!(load(path, true).is_ok());
        assert!(load(path, false)
            .unwrap_err()
            .to_string()
            .contains("/nowhere/"));
    }
}
