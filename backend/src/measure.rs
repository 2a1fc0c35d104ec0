// SPDX-License-Identifier: GPL-2.0

//! The measured start: before a guest's first command, what the toolstack boots is extended into PCR 4 (kernel)
//! and PCR 5 (command line, initrd) of a fresh TPM, with separators in PCRs 0 to 7; and the event log of it.
//!
//! A worker that dies halfway leaves a TPM that is not up (`Entry::Starting`), which its successor ends: so each
//! start is measured once or not used.

pub mod cache;
pub mod digest;
pub mod for_driver_domain;
pub mod images;
pub mod log;
mod pcrs;

use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::config::Policy;
use crate::files::{self, read_plain, write_durably};
use crate::hex;
use crate::swtpm::{self, Client, GiveUp, Version};

use digest::{Bank, Digests};
pub use images::{Boot, Images};
use log::{EventLog, Kind};

/// The PCRs that the firmware of a physical machine measures into, which are closed by separators.
const FIRMWARE: std::ops::Range<u32> = 0..8;

/// PCRs by what is in them.
const KERNEL: u32 = 4;
const CONFIG: u32 = 5;

/// What is measured where the kernel cannot be: no guest can make PCR 4 look as if it had booted another one.
const UNMEASURED: &[u8] = b"Xen: kernel not measured";

/// Whether guests are measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Measure {
    /// Where that can be; what cannot be measured starts, and is told apart by its PCR 4.
    #[default]
    Try,
    /// What cannot be measured has no TPM.
    Required,
    /// No: PCRs are zero when a guest starts.
    Off,
}

impl FromStr for Measure {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "try" => Ok(Self::Try),
            "required" => Ok(Self::Required),
            "off" => Ok(Self::Off),
            _ => Err(format!(
                "{s:?}: \"try\", \"required\" or \"off\" is expected"
            )),
        }
    }
}

/// The SHA-256 of a kernel's file, as sha256sum(1) prints it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelDigest([u8; 32]);

impl FromStr for KernelDigest {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let mut digest = [0; 32];
        match hex::read(s.as_bytes(), &mut digest) {
            true => Ok(Self(digest)),
            false => Err(format!(
                "{s:?}: the SHA-256 of a kernel is expected, 64 hexadecimal digits"
            )),
        }
    }
}

/// Why a start was not measured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The TPM did not do it.
    #[error(transparent)]
    Swtpm(#[from] swtpm::Error),
    /// The administrator wants it to be, and it cannot be.
    #[error("measure = \"required\", and what the guest boots cannot be measured: {0}")]
    Required(String),
    /// The administrator wants another one, and nothing else.
    #[error("measure = \"required\", and the guest does not boot one of allowed-kernels: {0}")]
    NotAllowed(String),
    /// The log cannot be kept.
    #[error("event log {}: {source}", path.display())]
    Log {
        /// Where it is to be.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Measured {
    /// The event log, if anything was measured.
    pub log: Option<Vec<u8>>,
    /// What the administrator is told.
    pub objection: Option<Objection>,
}

/// What is not as the administrator wants it, in a start that was measured all the same.
#[derive(Clone, Debug)]
pub enum Objection {
    /// The kernel was to be measured, and was not.
    Unmeasured(String),
    /// The kernel is none of those that are allowed.
    NotAllowed(String),
}

/// Measures the guest that a TPM starts for. `run_dir` has the digests of files that were measured before;
/// `give_up` ends a wait for the toolstack.
pub fn measure(
    client: &mut Client,
    version: Version,
    boot: Boot,
    policy: &Policy,
    run_dir: &Path,
    give_up: &GiveUp,
) -> Result<Measured, Error> {
    let required = policy.measure == Measure::Required;
    if policy.measure == Measure::Off {
        return Ok(Measured::default());
    }
    let banks = match version {
        Version::Tpm12 => vec![Bank::Sha1],
        Version::Tpm2 => pcrs::active_banks(client)?,
    };
    let cache = run_dir.join(cache::FILE);
    let found = boot.images(give_up).and_then(|images| {
        let strange = images.strange_kernel(&policy.allowed_kernels, &cache)?;
        Ok((images.digests(&banks, &cache)?, images, strange))
    });
    let mut run = Run {
        client,
        version,
        log: EventLog::new(version, &banks),
    };
    let objection = match found {
        Ok((_, _, Some(kernel))) if required => return Err(Error::NotAllowed(kernel)),
        Ok((digests, images, strange)) => {
            let (kernel, cmdline) = (b"kernel", images.cmdline.as_bytes());
            run.event(KERNEL, Kind::Tag, &tagged(1, kernel), &digests.kernel)?;
            run.event(CONFIG, Kind::Tag, &tagged(2, cmdline), &digests.cmdline)?;
            if let Some(initrd) = &digests.initrd {
                run.event(CONFIG, Kind::Tag, &tagged(3, b"initrd"), initrd)?;
            }
            strange.map(Objection::NotAllowed)
        }
        Err(reason) if required => return Err(Error::Required(reason)),
        Err(reason) => {
            let digests = Digests::of(&banks, UNMEASURED);
            run.event(KERNEL, Kind::Action, UNMEASURED, &digests)?;
            Some(Objection::Unmeasured(reason))
        }
    };
    let separator = Digests::of(&banks, &[0; 4]);
    for pcr in FIRMWARE {
        run.event(pcr, Kind::Separator, &[0; 4], &separator)?;
    }
    Ok(Measured {
        log: Some(run.log.into_bytes()),
        objection,
    })
}

/// One measured start under way.
struct Run<'a> {
    client: &'a mut Client,
    version: Version,
    log: EventLog,
}

impl Run<'_> {
    fn event(&mut self, pcr: u32, kind: Kind, data: &[u8], digests: &Digests) -> Result<(), Error> {
        pcrs::extend(self.client, self.version, pcr, digests)?;
        self.log.add(pcr, kind, data, digests);
        Ok(())
    }
}

/// A TCG_PCClientTaggedEvent of ours.
fn tagged(number: u8, data: &[u8]) -> Vec<u8> {
    let tag = u32::from_be_bytes([b'X', b'e', b'n', number]);
    let len = data.len() as u32;
    [&tag.to_le_bytes(), &len.to_le_bytes(), data].concat()
}

/// Where the event log of the guest that used a state last is.
pub fn log_path(state: &Path) -> PathBuf {
    state.with_extension("eventlog")
}

/// Keeps the event log beside the state, durably, for as long as the guest's PCRs may be there, or removes a former
/// one.
pub fn keep_log(state: &Path, log: Option<&[u8]>) -> Result<(), Error> {
    let path = log_path(state);
    let kept = match log {
        Some(log) => write_durably(&path, log),
        None => files::remove(&path),
    };
    kept.map_err(|source| Error::Log { path, source })
}

/// The event log that is kept beside a state.
pub fn kept_log(state: &Path) -> Result<Option<Vec<u8>>, Error> {
    let path = log_path(state);
    match read_plain(&path, log::MAX as u64) {
        Ok(log) => Ok(Some(log)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Log { path, source }),
    }
}
