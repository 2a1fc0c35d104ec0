// SPDX-License-Identifier: GPL-2.0

//! What the installed programs and the kernel can do. It is asked once a boot, and again when a program was
//! replaced: the file `probe.json` of the run directory keeps the answers.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::launch;

/// The programs that the answers are about.
const PROGRAMS: [&str; 2] = ["/usr/bin/setpriv", "/usr/bin/swtpm"];

/// The answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Each program's inode, size and time of change.
    programs: Vec<Option<(u64, u64, i64)>>,
    /// Whether swtpm can be kept to its files by landlock.
    pub landlock: bool,
    /// Whether swtpm makes its files durable itself.
    pub fsync: bool,
}

impl Probe {
    /// Looks the answers up, or asks.
    pub fn get(run_dir: &Path) -> Self {
        let path = run_dir.join("probe.json");
        let programs: Vec<_> = PROGRAMS
            .iter()
            .map(|path| fs::metadata(path).ok())
            .map(|data| data.map(|data| (data.ino(), data.size(), data.ctime())))
            .collect();
        let known = fs::read(&path).ok();
        let known: Option<Self> = known.and_then(|text| serde_json::from_slice(&text).ok());
        if let Some(known) = known.filter(|known| known.programs == programs) {
            return known;
        }
        let probe = Self {
            programs,
            landlock: launch::has_landlock(),
            fsync: launch::has_fsync(),
        };
        if let Err(e) = probe.write(&path) {
            log::debug!("{}: {e}", path.display());
        }
        probe
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        let new = path.with_extension(format!("{}", std::process::id()));
        fs::write(&new, serde_json::to_vec(self)?)?;
        fs::rename(new, path)
    }
}
