// SPDX-License-Identifier: GPL-2.0

//! A key-file that is sealed to this host's TPM: a credential of systemd-creds(1), which does all that is said to
//! that TPM. FILE.seal beside it has the name of the key, and the PCRs as they were, so that a host in another
//! state can be told which of them differs, and before any program is run.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{at, Error, Master};
use crate::files::{create_private, read_plain};
use crate::state::sync_folder;
use crate::swtpm::client::wait_readable;

const PROGRAM: &str = "systemd-creds";

/// What the credential says that it is.
const NAME: &str = "--name=xen-vtpmd-key";

/// How long the host's TPM may take, which may have to make a key first.
const TIMEOUT: Duration = Duration::from_secs(60);

/// More than a credential has.
const MAX: usize = 1 << 16;

/// Where the kernel shows the host's TPM.
const TPM: &str = "/sys/class/tpm/tpm0";

/// What a key is sealed to.
#[derive(Clone, Debug)]
pub struct Policy {
    /// PCRs as they are now.
    pub pcrs: Vec<u32>,
    /// PCRs as somebody signs that they may be, and the public key for that, in PEM.
    pub signed: Option<(Vec<u32>, PathBuf)>,
}

/// FILE.seal.
#[derive(Debug, Serialize, Deserialize)]
pub struct Seal {
    version: u32,
    /// The name of the key.
    pub key: String,
    /// What it is sealed to, of the SHA-256 bank. Empty digests are of a kernel that does not show them.
    pub pcrs: BTreeMap<u32, String>,
    /// The PCRs whose values have to be signed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signed: Vec<u32>,
}

impl Seal {
    /// Of this host as it is now.
    fn now(key: String, policy: &Policy) -> Self {
        let now = |pcr: &u32| (*pcr, pcr_now(*pcr).unwrap_or_default());
        Self {
            version: 1,
            key,
            pcrs: policy.pcrs.iter().map(now).collect(),
            signed: policy
                .signed
                .iter()
                .flat_map(|(pcrs, _)| pcrs.clone())
                .collect(),
        }
    }

    fn path(key_file: &Path) -> PathBuf {
        let mut path = key_file.as_os_str().to_owned();
        path.push(".seal");
        path.into()
    }

    /// What is beside a key-file.
    pub fn read(key_file: &Path) -> Result<Option<Self>, Error> {
        let path = Self::path(key_file);
        match read_plain(&path, MAX as u64) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            text => serde_json::from_slice(&text.map_err(at(&path))?)
                .map(Some)
                .map_err(|e| at(&path)(e.into())),
        }
    }

    /// What of this host is not as it was, as far as the kernel shows it.
    fn obstacle(&self) -> Option<String> {
        if !Path::new(TPM).exists() {
            return Some("this host has no TPM".into());
        }
        let differs = self.pcrs.iter().filter_map(|(pcr, was)| {
            let is = pcr_now(*pcr)?;
            let start = |digest: &str| digest.get(..16).unwrap_or(digest).to_owned();
            (!was.is_empty() && is != *was).then(|| {
                format!(
                    "PCR {pcr} is {}... and was {}... when it was sealed",
                    start(&is),
                    start(was)
                )
            })
        });
        let differs: Vec<_> = differs.collect();
        (!differs.is_empty()).then(|| differs.join(", "))
    }
}

/// A PCR of the host's TPM, where the kernel shows it.
fn pcr_now(pcr: u32) -> Option<String> {
    let text = fs::read_to_string(format!("{TPM}/pcr-sha256/{pcr}")).ok()?;
    Some(text.trim().to_ascii_lowercase())
}

fn closed(path: &Path, reason: impl Into<String>) -> Error {
    Error::Sealed {
        path: path.to_owned(),
        reason: reason.into(),
    }
}

/// Whether the text of a key-file is a credential: Base64.
pub(super) fn is_sealed(text: &[u8]) -> bool {
    let fits = |b: &u8| b.is_ascii_alphanumeric() || b"+/=\n".contains(b);
    text.len() > 128 && text.iter().all(fits)
}

/// Whether this key-file is a credential.
pub fn is_sealed_file(path: &Path) -> io::Result<bool> {
    let text = Zeroizing::new(fs::read(path)?);
    Ok(is_sealed(text.trim_ascii_end()))
}

/// Says early, and without a program, that a sealed key-file will not open on this host. One that is not sealed,
/// or cannot be read, is none of this function's.
pub fn check(key_file: &Path) -> Result<(), Error> {
    if !is_sealed_file(key_file).unwrap_or(false) {
        return Ok(());
    }
    match Seal::read(key_file)?.and_then(|seal| seal.obstacle()) {
        Some(reason) => Err(closed(key_file, reason)),
        None => Ok(()),
    }
}

/// Has the TPM open the credential in this file; `of` is the key-file that an error is about.
pub(super) fn open(path: &Path, of: &Path) -> Result<Zeroizing<Vec<u8>>, Error> {
    check(of)?;
    let mut command = Command::new(PROGRAM);
    command.args(["decrypt", NAME]).arg(path).arg("-");
    run(command, None).map_err(|said| {
        let seal = Seal::read(of).ok().flatten();
        closed(
            of,
            match seal.and_then(|seal| seal.obstacle()) {
                Some(reason) => reason,
                None => format!(
                    "the TPM was cleared, is another one, or is in another state, for which there may be no \
                     signature: {said}"
                ),
            },
        )
    })
}

/// PCRs as systemd-creds takes them.
pub fn list<'a>(pcrs: impl IntoIterator<Item = &'a u32>) -> String {
    let pcrs: Vec<_> = pcrs.into_iter().map(u32::to_string).collect();
    pcrs.join("+")
}

/// Seals a key to this host's TPM, as this key-file. What was there is replaced when the new one was seen to open.
pub fn seal(master: &Master, key_file: &Path, policy: &Policy) -> Result<Seal, Error> {
    let failed = |reason: String| Error::NotSealed {
        path: key_file.to_owned(),
        reason,
    };
    let mut command = Command::new(PROGRAM);
    let key = match policy.signed {
        Some(_) => "--with-key=tpm2-with-public-key",
        None => "--with-key=tpm2",
    };
    command.args(["encrypt", key, NAME, "-", "-"]);
    command.arg(format!("--tpm2-pcrs={}", list(&policy.pcrs)));
    if let Some((pcrs, public_key)) = &policy.signed {
        command.arg(format!("--tpm2-public-key-pcrs={}", list(pcrs)));
        command.arg("--tpm2-public-key").arg(public_key);
    }
    let blob = run(command, Some(&master.hex()[..])).map_err(failed)?;
    let seal = Seal::now(master.id(), policy);

    let new = key_file.with_extension("sealing");
    write(&new, &blob).map_err(at(&new))?;
    let mut opened = Command::new(PROGRAM);
    opened.args(["decrypt", NAME]).arg(&new).arg("-");
    let opened = run(opened, None).map_err(failed)?;
    if opened.trim_ascii_end() != &master.hex()[..] {
        return Err(failed("the TPM gives another key back".into()));
    }
    let beside = Seal::path(key_file);
    let text = serde_json::to_vec(&seal).map_err(|e| at(&beside)(e.into()))?;
    write(&beside, &text).map_err(at(&beside))?;
    let folder = key_file.parent().unwrap_or(key_file);
    let renamed = fs::rename(&new, key_file).and_then(|()| sync_folder(folder));
    renamed.map_err(at(key_file))?;
    Ok(seal)
}

fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut file = create_private(path)?;
    file.write_all(text)?;
    file.sync_all()
}

/// Runs a program that reads this and writes something short. Secrets go through pipes, and nowhere else.
pub(super) fn run(
    mut command: Command,
    input: Option<&[u8]>,
) -> Result<Zeroizing<Vec<u8>>, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let program = |e: io::Error| format!("{name}: {e}");
    let mut child = command
        .stdin(match input {
            Some(_) => Stdio::piped(),
            None => Stdio::null(),
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(program)?;
    let done = talk(&mut child, input);
    let _ = child.kill();
    let status = child.wait().map_err(program)?;
    let (output, said) = done.map_err(program)?;
    match status.success() {
        true => Ok(output),
        false => Err(format!("{name} says {:?}, {status}", said.trim())),
    }
}

fn talk(child: &mut Child, input: Option<&[u8]>) -> io::Result<(Zeroizing<Vec<u8>>, String)> {
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        // Less than a pipe holds.
        stdin.write_all(input)?;
    }
    // As large as it gets, so that nothing is left behind where it was before it grew.
    let mut output = Zeroizing::new(vec![0; MAX]);
    let mut len = 0;
    let deadline = Instant::now() + TIMEOUT;
    let mut stdout = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if len == output.len() || !wait_readable(&stdout, left)? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match stdout.read(&mut output[len..])? {
            0 => break,
            n => len += n,
        }
    }
    output.truncate(len);
    let mut said = String::new();
    if let Some(stderr) = child.stderr.take() {
        stderr.take(4096).read_to_string(&mut said)?;
    }
    // It has closed its output, and ends.
    while child.try_wait()?.is_none() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok((output, said))
}
