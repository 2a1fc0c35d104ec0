// SPDX-License-Identifier: GPL-2.0

//! The administrator's commands on a key that is sealed to the host's TPM: seal, unseal-check, recover.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::process::{setrlimit, Resource, Rlimit};
use zeroize::Zeroizing;

use crate::config::Config;
use crate::key::sealed::{self, Policy, Seal};
use crate::key::{self, Master};

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Where the key is to be is not known.
    #[error(
        "no key-file is configured: say in /etc/xen-vtpmd.toml, under [tpm], where it is to be"
    )]
    NoKeyFile,
    /// The key, or the TPM.
    #[error(transparent)]
    Key(#[from] key::Error),
    /// It is not sealed.
    #[error("key-file {} is not sealed: xen-vtpmd seal", .0.display())]
    NotSealed(PathBuf),
    /// It is no recovery key.
    #[error("this is no recovery key: 64 hex digits are expected on standard input, as `xen-vtpmd seal` showed them")]
    NotRecovery,
    /// Something of the kernel's failed.
    #[error("{0}: {1}")]
    Io(&'static str, #[source] io::Error),
}

/// PCRs of the host's TPM, as 7+11.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pcrs(pub Vec<u32>);

impl FromStr for Pcrs {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let pcr = |s: &str| match s.parse() {
            Ok(pcr) if pcr < 24 => Ok(pcr),
            _ => Err(format!(
                "{s:?} is no PCR: 0 to 23 is expected, and + in between"
            )),
        };
        s.split('+').map(pcr).collect::<Result<_, _>>().map(Self)
    }
}

/// What the key is sealed to, on the command line.
#[derive(clap::Args)]
pub struct SealTo {
    /// To which PCRs as they are now [default: 7, or none with --public-key]
    #[arg(long)]
    pcrs: Option<Pcrs>,
    /// To PCRs for whose values there is a signature by this key (PEM)
    #[arg(long, value_name = "FILE", requires = "public_key_pcrs")]
    public_key: Option<PathBuf>,
    /// Which PCRs these are
    #[arg(long, value_name = "PCRS", requires = "public_key")]
    public_key_pcrs: Option<Pcrs>,
}

impl SealTo {
    /// As a whole.
    pub fn policy(self) -> Policy {
        let signed = self.public_key_pcrs.map(|pcrs| pcrs.0).zip(self.public_key);
        let pcrs = match (self.pcrs, &signed) {
            (Some(pcrs), _) => pcrs.0,
            (None, None) => vec![7],
            (None, Some(_)) => Vec::new(),
        };
        Policy { pcrs, signed }
    }
}

/// No memory with keys goes to a disk.
fn no_core_dump() -> Result<(), Error> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none).map_err(|e| Error::Io("core limit", e.into()))
}

fn key_file(config: &Config) -> Result<&Path, Error> {
    config.policy.key_file.as_deref().ok_or(Error::NoKeyFile)
}

fn describe(seal: &Seal, path: &Path) -> String {
    let mut to = Vec::new();
    if !seal.pcrs.is_empty() {
        to.push(format!("PCRs {}", sealed::list(seal.pcrs.keys())));
    }
    if !seal.signed.is_empty() {
        to.push(format!("signed PCRs {}", sealed::list(&seal.signed)));
    }
    format!(
        "key {} in {}, sealed to {} of this host's TPM",
        seal.key,
        path.display(),
        to.join(" and ")
    )
}

/// Seals the configured key, which is made where there is none. What it returns has the recovery key in it, unless
/// the key was sealed before.
pub fn seal(config: &Config, policy: &Policy) -> Result<Zeroizing<String>, Error> {
    no_core_dump()?;
    let path = key_file(config)?;
    let (master, was_sealed) = match sealed::is_sealed_file(path) {
        Ok(was_sealed) => (Master::read(path)?, was_sealed),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let new = Master::random().map_err(|e| Error::Io("/dev/urandom", e))?;
            (new, false)
        }
        Err(e) => return Err(Error::Io("key-file", e)),
    };
    let seal = sealed::seal(&master, path, policy)?;
    let mut text = Zeroizing::new(String::with_capacity(1024));
    text.push_str(&describe(&seal, path));
    text.push('\n');
    if !was_sealed {
        text.push_str("recovery key, shown this once, for `xen-vtpmd recover`: ");
        text.extend(master.hex().iter().map(|digit| char::from(*digit)));
        text.push('\n');
    }
    Ok(text)
}

/// Whether the key opens now.
pub fn check(config: &Config) -> Result<String, Error> {
    no_core_dump()?;
    let path = key_file(config)?;
    let Some(seal) = Seal::read(path)? else {
        return Err(Error::NotSealed(path.to_owned()));
    };
    let found = Master::read(path)?.id();
    match found == seal.key {
        true => Ok(describe(&seal, path) + ", opens\n"),
        false => Err(key::Error::NotTheKey {
            path: path.to_owned(),
            wanted: seal.key,
            found,
        }
        .into()),
    }
}

/// Seals the key again that was shown as the recovery key, and comes on standard input.
pub fn recover(config: &Config, policy: &Policy) -> Result<String, Error> {
    no_core_dump()?;
    let path = key_file(config)?;
    let mut text = Zeroizing::new(Vec::with_capacity(256));
    let read = io::stdin().lock().take(255).read_to_end(&mut text);
    read.map_err(|e| Error::Io("standard input", e))?;
    let master = Master::from_hex(&text).ok_or(Error::NotRecovery)?;
    match Seal::read(path)? {
        Some(seal) if seal.key != master.id() => {
            return Err(key::Error::NotTheKey {
                path: path.to_owned(),
                wanted: seal.key,
                found: master.id(),
            }
            .into())
        }
        _ => (),
    }
    let seal = sealed::seal(&master, path, policy)?;
    Ok(describe(&seal, path) + "\n")
}
