// SPDX-License-Identifier: GPL-2.0

//! What the installed swtpm can do. It is asked once a boot, and again when the program was replaced: the file
//! `probe.json` of the run directory keeps the responses.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::swtpm::Process;

/// The program that is asked.
const PROGRAM: &str = "/usr/bin/swtpm";

/// How long it may take: a guest waits for its TPM meanwhile.
const TIMEOUT: Duration = Duration::from_secs(5);

/// More than any swtpm says.
const MAX_OUTPUT: u64 = 4096;

/// What it can do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// The program's inode, size and time of change.
    program: Option<(u64, u64, i64)>,
    /// Whether swtpm makes its files durable itself.
    pub fsync: bool,
}

impl Probe {
    /// Looks it up, or asks.
    pub fn get(run_dir: &Path) -> Self {
        let path = run_dir.join("probe.json");
        let program = fs::metadata(PROGRAM).ok();
        let program = program.map(|data| (data.ino(), data.size(), data.ctime()));
        let known = fs::read(&path).ok();
        let known: Option<Self> = known.and_then(|text| serde_json::from_slice(&text).ok());
        if let Some(known) = known.filter(|known| known.program == program) {
            return known;
        }
        match capabilities() {
            Ok(text) => {
                let fsync = text.contains("\"tpmstate-dir-backend-opt-fsync\"");
                let probe = Self { program, fsync };
                if let Err(e) = probe.write(&path) {
                    log::debug!("{}: {e}", path.display());
                }
                probe
            }
            Err(e) => {
                log::warn!("swtpm --print-capabilities: {e}: without what not every swtpm can do");
                Self::default()
            }
        }
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        let new = path.with_extension(format!("{}", std::process::id()));
        fs::write(&new, serde_json::to_vec(self)?)?;
        fs::rename(new, path)
    }
}

/// What swtpm says of itself.
fn capabilities() -> io::Result<String> {
    let mut command = Command::new(PROGRAM);
    command
        .args(["socket", "--print-capabilities"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut process = Process::spawn(&mut command, &[])?;
    // One that says more than a pipe takes does not end either.
    if process.wait(TIMEOUT)?.is_none() {
        process.kill(TIMEOUT)?;
        return Err(io::ErrorKind::TimedOut.into());
    }
    let mut text = String::new();
    if let Some(output) = process.child().and_then(|child| child.stdout.take()) {
        output.take(MAX_OUTPUT).read_to_string(&mut text)?;
    }
    Ok(text)
}
