// SPDX-License-Identifier: GPL-2.0

//! Evidence of a vTPM: what there is to say of it, and a quote by the host's TPM whose qualifying data is the hash of
//! that. Who trusts the host's attestation key learns which TPM the guest has, what it booted, and what runs below.
//! tpm2-tools talk to the host's TPM, and check the quote.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::str::FromStr;

use clap::Args;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::admin;
use crate::config::{Config, Uuid};
use crate::files::read_plain;
use crate::hex;
use crate::measure;
use crate::notes::{Notes, Use};
use crate::seal::Pcrs;

/// The form of bundle and evidence.
const FORM: u32 = 1;

/// More than a bundle has.
const MAX: u64 = 1 << 20;

/// A digest of the SHA-256 bank.
const SIZE: usize = 32;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What there is to say of the vTPM cannot be had.
    #[error(transparent)]
    Admin(#[from] admin::Error),
    /// A tool did not do it.
    #[error("{program} (from tpm2-tools): {reason}")]
    Tool {
        /// Which.
        program: &'static str,
        /// Why not.
        reason: String,
    },
    /// A file cannot be read or written.
    #[error("{0}: {1}")]
    File(String, #[source] io::Error),
    /// The bundle says nothing.
    #[error("the attestation does not hold: {0}")]
    Invalid(String),
}

/// Bytes as hex digits, lower case, as which they are compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hex(String);

impl Hex {
    fn of(bytes: &[u8]) -> Self {
        Self(hex::text(bytes))
    }

    fn bytes(&self) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; self.0.len() / 2];
        let is_lower = !self.0.bytes().any(|digit| digit.is_ascii_uppercase());
        match is_lower && hex::read(self.0.as_bytes(), &mut bytes) {
            true => Ok(bytes),
            false => Err(Error::Invalid(format!("{:?} are no hex digits", self.0))),
        }
    }
}

/// What the verifier chose, so that no old bundle is taken for a new one: 8 to 64 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nonce(Hex);

impl FromStr for Nonce {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let hex = Hex(s.to_ascii_lowercase());
        match hex.bytes() {
            Ok(bytes) if (8..=64).contains(&bytes.len()) => Ok(Self(hex)),
            _ => Err(format!("{s:?}: 16 to 128 hex digits are expected")),
        }
    }
}

/// What the quote vouches for.
#[derive(Debug, Serialize, Deserialize)]
struct Evidence {
    version: u32,
    nonce: Hex,
    uuid: String,
    /// "1.2" or "2.0".
    tpm: String,
    /// The guest that used the vTPM last, or uses it.
    guest: Option<Use>,
    /// Endorsement keys and certificates, in PEM.
    endorsement: String,
    /// What was measured before the guest's first command.
    event_log: Option<Hex>,
}

/// What is handed over.
#[derive(Debug, Serialize, Deserialize)]
struct Bundle {
    version: u32,
    /// The text whose hash is quoted.
    evidence: String,
    /// The host's PCRs of the SHA-256 bank: their values in the order of their numbers, as quoted.
    pcrs: Vec<u32>,
    values: Hex,
    /// TPMS_ATTEST and TPMT_SIGNATURE.
    quote: Hex,
    signature: Hex,
}

fn selection(pcrs: &[u32]) -> String {
    let list: Vec<_> = pcrs.iter().map(u32::to_string).collect();
    format!("sha256:{}", list.join(","))
}

fn tool(program: &'static str, arguments: &[&str], dir: &Path) -> Result<(), Error> {
    let failed = |reason: String| Error::Tool { program, reason };
    let output = Command::new("timeout")
        .args(["60", program, "-Q"])
        .args(arguments)
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| failed(e.to_string()))?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(failed(format!("{:?}, {}", said.trim(), output.status)))
        }
    }
}

fn temporary() -> Result<tempfile::TempDir, Error> {
    tempfile::tempdir().map_err(|e| Error::File("temporary directory".into(), e))
}

/// What is asked for.
#[derive(Clone, Debug, Args)]
#[group(skip)]
pub struct Attest {
    /// Which vTPM
    pub uuid: Uuid,
    /// What the verifier has chosen, 16 to 128 hex digits
    #[arg(long)]
    pub nonce: Nonce,
    /// The attestation key: a persistent handle of the host's TPM, or a context file
    #[arg(long)]
    pub ak: String,
    /// Which PCRs of the host are quoted
    #[arg(long, default_value = "0+1+2+3+4+5+6+7+8+9")]
    pub pcrs: Pcrs,
}

/// Gives evidence of a vTPM, quoted by the key `ak` of the host's TPM over these PCRs.
pub fn attest(config: &Config, how: &Attest) -> Result<String, Error> {
    let (uuid, ak) = (&how.uuid, how.ak.as_str());
    let (state, endorsement) = admin::endorsement_of(config, uuid)?;
    let log = measure::kept_log(&state.path).map_err(admin::Error::from)?;
    let notes = Notes::read(&state.path);
    let notes = notes.map_err(|e| Error::File(format!("notes of vTPM {uuid}"), e))?;
    let evidence = Evidence {
        version: FORM,
        nonce: how.nonce.0.clone(),
        uuid: uuid.to_string(),
        tpm: state.version.to_string(),
        guest: notes.last_used,
        endorsement,
        event_log: log.as_deref().map(Hex::of),
    };
    let json = |e: serde_json::Error| Error::Invalid(e.to_string());
    let evidence = serde_json::to_string(&evidence).map_err(json)?;
    let mut pcrs = how.pcrs.0.clone();
    pcrs.sort_unstable();
    pcrs.dedup();

    let dir = temporary()?;
    let hash = Hex::of(&Sha256::digest(&evidence)).0;
    let list = selection(&pcrs);
    let mut arguments = vec!["-c", ak, "-l", &list, "-q", &hash, "-g", "sha256"];
    arguments.extend(["-m", "quote", "-s", "signature", "-o", "values"]);
    arguments.push("--pcrs_format=values");
    tool("tpm2_quote", &arguments, dir.path())?;
    let take = |name: &str| match read_plain(&dir.path().join(name), MAX) {
        Ok(bytes) => Ok(Hex::of(&bytes)),
        Err(e) => Err(Error::File(name.into(), e)),
    };
    let bundle = Bundle {
        version: FORM,
        evidence,
        pcrs,
        values: take("values")?,
        quote: take("quote")?,
        signature: take("signature")?,
    };
    Ok(serde_json::to_string(&bundle).map_err(json)? + "\n")
}

/// Checks a bundle by the attestation key of a host, in PEM, that is trusted. Returns what it says, as JSON.
pub fn verify(bundle: &Path, nonce: &Nonce, ak: &Path) -> Result<String, Error> {
    let invalid = |why: &str| Error::Invalid(why.to_owned());
    let json = |e: serde_json::Error| Error::Invalid(e.to_string());
    let file = |path: &Path| {
        let path = path.to_owned();
        move |e| Error::File(path.display().to_string(), e)
    };
    let text = read_plain(bundle, MAX).map_err(file(bundle))?;
    let bundle: Bundle = serde_json::from_slice(&text).map_err(json)?;
    // There is one way to write it: nothing in it is without meaning.
    if serde_json::to_string(&bundle).map_err(json)? + "\n" != String::from_utf8_lossy(&text) {
        return Err(invalid("it is not written as xen-vtpmd writes it"));
    }
    if bundle.version != FORM {
        return Err(invalid("its version is unknown"));
    }
    let values = bundle.values.bytes()?;
    if bundle.pcrs.is_empty() || values.len() != SIZE * bundle.pcrs.len() {
        return Err(invalid("PCRs and values do not match"));
    }
    let evidence: Evidence = serde_json::from_str(&bundle.evidence).map_err(json)?;
    if evidence.version != FORM || evidence.nonce != nonce.0 {
        return Err(invalid("it is for another nonce"));
    }

    let dir = temporary()?;
    for (name, bytes) in [
        ("values", values.clone()),
        ("quote", bundle.quote.bytes()?),
        ("signature", bundle.signature.bytes()?),
    ] {
        let path = dir.path().join(name);
        fs::write(&path, bytes).map_err(file(&path))?;
    }
    let ak = ak.canonicalize().map_err(file(ak))?;
    let ak = ak
        .to_str()
        .ok_or_else(|| invalid("the path of the key is no text"))?;
    let hash = Hex::of(&Sha256::digest(&bundle.evidence)).0;
    let list = selection(&bundle.pcrs);
    let mut arguments = vec!["-u", ak, "-l", &list, "-q", &hash, "-g", "sha256"];
    arguments.extend(["-m", "quote", "-s", "signature", "-f", "values"]);
    tool("tpm2_checkquote", &arguments, dir.path()).map_err(|e| {
        Error::Invalid(format!(
            "the quote is not of this key, or not over this: {e}"
        ))
    })?;

    let values = values.chunks(SIZE).map(Hex::of);
    let pcrs: BTreeMap<_, _> = bundle.pcrs.iter().zip(values).collect();
    let said = serde_json::json!({ "evidence": evidence, "host_pcrs": pcrs });
    Ok(serde_json::to_string_pretty(&said).map_err(json)? + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_has_one_form() {
        assert_eq!(Hex::of(&[0, 0xab]).0, "00ab");
        assert_eq!(Hex("00ab".into()).bytes().unwrap(), [0, 0xab]);
        for bad in ["0", "0A", "0g", " 0", "é"] {
            assert!(Hex(bad.into()).bytes().is_err(), "{bad:?}");
        }
        assert!("00".repeat(7).parse::<Nonce>().is_err());
        assert_eq!("AB".repeat(8).parse(), Ok(Nonce(Hex("ab".repeat(8)))));
    }
}
