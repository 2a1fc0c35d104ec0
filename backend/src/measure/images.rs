// SPDX-License-Identifier: GPL-2.0

//! What the toolstack boots in a guest: kernel, command line and initrd, from nodes that only the toolstack can
//! write, and from libxl's own files.
//!
//! libxl loads the files before it makes the vTPM, and they are hashed here after that. A file that was changed
//! or replaced since the domain was built is noticed by its ctime; a symbolic link in its path that leads
//! elsewhere by now is not. Who can do that is root in dom0, and could load what he likes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use serde::Deserialize;

use super::cache;
use super::digest::{Bank, Digests};
use super::for_driver_domain::Awaited;
use super::{Error, KernelDigest};
use crate::config::Uuid;
use crate::files::read_plain;
use crate::hex;
use crate::swtpm::GiveUp;
use crate::xen::{self, Store};
use crate::xenbus::{Id, Paths};

/// Where libxl keeps what domains were made of.
const LIBXL: &str = "/var/lib/xen";

/// More than the configuration of a domain has.
const MAX_CONFIG: u64 = 1 << 20;

/// The longest command line: a value in xenstore is shorter, and no kernel takes more.
pub const MAX_CMDLINE: usize = 4096;

/// How long libxl may take, from the vTPM's nodes on, to write the domain's configuration. The guest runs only
/// after that.
const CONFIG_TIMEOUT: Duration = Duration::from_secs(60);

/// How soon it is looked for again.
const CONFIG_PAUSE: Duration = Duration::from_millis(20);

/// When libxl started to build a domain, in hundredths of a second.
type Built = i64;

/// What is known of what a guest boots, when its TPM is about to start.
#[derive(Debug)]
pub enum Boot {
    /// Nothing, and why.
    Unknown(String),
    /// All of it.
    Known(Images),
    /// libxl is about to write the configuration of a PVH guest to this file.
    Pending(PathBuf, Built),
    /// Dom0 is about to say it to this driver domain.
    Awaited(Awaited),
}

impl Default for Boot {
    fn default() -> Self {
        Self::Unknown("nobody looked for it".into())
    }
}

/// What a guest boots.
#[derive(Debug)]
pub struct Images {
    kernel: Image,
    initrd: Option<Image>,
    /// As the guest gets it.
    pub cmdline: String,
}

/// The digests of that.
#[derive(Debug)]
pub struct ImageDigests {
    /// Of the file.
    pub kernel: Digests,
    /// Of the text.
    pub cmdline: Digests,
    /// Of the file.
    pub initrd: Option<Digests>,
}

#[derive(Debug)]
enum Image {
    File {
        path: String,
        file: File,
        built: Built,
    },
    /// By dom0, which alone can read it.
    Told(Digests),
}

/// What of libxl's file matters here.
#[derive(Deserialize)]
struct DomainConfig {
    b_info: BuildInfo,
}

#[derive(Deserialize)]
struct BuildInfo {
    kernel: Option<String>,
    ramdisk: Option<String>,
    cmdline: Option<String>,
    bootloader: Option<String>,
}

impl Boot {
    /// Looks for it in xenstore.
    pub fn find(store: &Rc<Store>, own_domid: u16, id: Id) -> Result<Self, xen::Error> {
        if own_domid != 0 {
            return Ok(Self::Awaited(Awaited::new(store, own_domid, id)));
        }
        let Some(vm) = store.read(&Paths::vm(id))? else {
            return Ok(unknown("the toolstack names no /vm of the domain"));
        };
        let uuid: Uuid = match vm.strip_prefix("/vm/").map(str::parse) {
            Some(Ok(uuid)) => uuid,
            _ => return Ok(Self::Unknown(format!("{vm:?} is no /vm/UUID"))),
        };
        let read = |node: &str| store.read(&format!("{vm}/{node}"));
        let Some(built) = read("start_time")?.as_deref().and_then(hundredths) else {
            return Ok(unknown(
                "the toolstack does not say when it built the domain",
            ));
        };
        let kernel = match read("image/ostype")?.as_deref() {
            Some("hvm") => return Ok(unknown("its firmware chooses what an HVM guest boots")),
            // libxl says nothing of a PVH guest here.
            None => {
                let file = format!("userdata-d.{}.{uuid}.libxl-json", id.domid);
                return Ok(Self::Pending(Path::new(LIBXL).join(file), built));
            }
            Some(_) => read("image/kernel")?,
        };
        let (initrd, cmdline) = (read("image/ramdisk")?, read("image/cmdline")?);
        Ok(match Images::open(kernel, initrd, cmdline, built) {
            Ok(images) => Self::Known(images),
            Err(reason) => Self::Unknown(reason),
        })
    }

    /// Whether it is known already that it cannot be measured, or is not allowed.
    pub fn check(&self, allowed: &[KernelDigest], run_dir: &Path) -> Result<(), Error> {
        match self {
            Self::Unknown(reason) => Err(Error::Required(reason.clone())),
            Self::Known(images) => {
                let strange = images.strange_kernel(allowed, &run_dir.join(cache::FILE));
                match strange.map_err(Error::Required)? {
                    Some(kernel) => Err(Error::NotAllowed(kernel)),
                    None => Ok(()),
                }
            }
            Self::Pending(..) | Self::Awaited(_) => Ok(()),
        }
    }

    /// What is booted. Waits for the toolstack where that has not said it yet.
    pub(super) fn images(self, give_up: &GiveUp) -> Result<Images, String> {
        let (path, built) = match self {
            Self::Unknown(reason) => return Err(reason),
            Self::Known(images) => return Ok(images),
            Self::Awaited(awaited) => return awaited.images(give_up),
            Self::Pending(path, built) => (path, built),
        };
        let shown = path.display();
        let deadline = Instant::now() + CONFIG_TIMEOUT;
        let text = loop {
            match read_plain(&path, MAX_CONFIG) {
                Ok(text) => break text,
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(format!("{shown}: {e}"))
                }
                Err(_) if Instant::now() >= deadline => {
                    return Err(format!("{shown} is not there"));
                }
                Err(_) if give_up.is_so() => return Err("the vTPM is taken away".into()),
                Err(_) => std::thread::sleep(CONFIG_PAUSE),
            }
        };
        // libxl writes the NUL, too.
        let text = text.strip_suffix(b"\0").unwrap_or(&text);
        let config: DomainConfig =
            serde_json::from_slice(text).map_err(|e| format!("{shown}: {e}"))?;
        let info = config.b_info;
        if let Some(bootloader) = info.bootloader {
            return Err(format!("{bootloader} chooses what it boots"));
        }
        Images::open(info.kernel, info.ramdisk, info.cmdline, built)
    }
}

impl Images {
    fn open(
        kernel: Option<String>,
        initrd: Option<String>,
        cmdline: Option<String>,
        built: Built,
    ) -> Result<Self, String> {
        let kernel = kernel.filter(|path| !path.is_empty());
        let kernel = kernel.ok_or("the toolstack names no kernel")?;
        let initrd = initrd.filter(|path| !path.is_empty());
        let cmdline = cmdline.unwrap_or_default();
        if cmdline.len() > MAX_CMDLINE {
            return Err(format!("its command line has {} bytes", cmdline.len()));
        }
        Ok(Self {
            kernel: Image::open(kernel, built)?,
            initrd: initrd.map(|path| Image::open(path, built)).transpose()?,
            cmdline,
        })
    }

    /// What dom0 says of it.
    pub(super) fn told(kernel: Digests, initrd: Option<Digests>, cmdline: String) -> Self {
        Self {
            kernel: Image::Told(kernel),
            initrd: initrd.map(Image::Told),
            cmdline,
        }
    }

    /// The kernel, if there is a list of those that are allowed and it is none of them.
    pub(super) fn strange_kernel(
        &self,
        allowed: &[KernelDigest],
        cache: &Path,
    ) -> Result<Option<String>, String> {
        if allowed.is_empty() {
            return Ok(None);
        }
        // In one pass for whichever banks the TPM turns out to have.
        let digests = self.kernel.digests(&Bank::ALL, cache)?;
        let sha256 = digests.iter().find(|(bank, _)| *bank == Bank::Sha256);
        let (_, sha256) = sha256.ok_or("no SHA-256 of the kernel")?;
        let is_allowed = allowed.iter().any(|kernel| kernel.0 == *sha256);
        let kernel = match &self.kernel {
            Image::File { path, .. } => path,
            Image::Told(_) => "a kernel",
        };
        Ok((!is_allowed).then(|| format!("{kernel}, whose SHA-256 is {}", hex::text(sha256))))
    }

    /// Reads all of it that was not read before, as `cache` says.
    pub(super) fn digests(&self, banks: &[Bank], cache: &Path) -> Result<ImageDigests, String> {
        let initrd = self.initrd.as_ref();
        Ok(ImageDigests {
            kernel: self.kernel.digests(banks, cache)?,
            cmdline: Digests::of(banks, self.cmdline.as_bytes()),
            initrd: initrd
                .map(|initrd| initrd.digests(banks, cache))
                .transpose()?,
        })
    }
}

impl Image {
    fn open(path: String, built: Built) -> Result<Self, String> {
        if !path.starts_with('/') {
            return Err(format!("{path:?} is no absolute path"));
        }
        // Not to wait for the writer of a FIFO.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(OFlags::NONBLOCK.bits() as i32)
            .open(&path)
            .map_err(|e| match e.kind() {
                io::ErrorKind::NotFound => {
                    format!("{path} is not there, as the copies that pygrub makes are not")
                }
                _ => format!("{path}: {e}"),
            })?;
        check(&path, &file, built)?;
        Ok(Self::File { path, file, built })
    }

    fn digests(&self, banks: &[Bank], cache: &Path) -> Result<Digests, String> {
        let (path, file, built) = match self {
            Self::File { path, file, built } => (path, file, *built),
            Self::Told(digests) => {
                let digests = digests.of_banks(banks);
                return digests.ok_or_else(|| "dom0 does not know all of the TPM's banks".into());
            }
        };
        let digests = cache::digests(cache, banks, file).map_err(|e| format!("{path}: {e}"))?;
        check(path, file, built)?;
        Ok(digests)
    }
}

/// Whether it is the file that libxl loaded.
fn check(path: &str, file: &File, built: Built) -> Result<(), String> {
    let data = file.metadata().map_err(|e| format!("{path}: {e}"))?;
    let changed = data.ctime() * 100 + data.ctime_nsec() / 10_000_000;
    match (data.is_file(), changed > built) {
        (false, _) => Err(format!("{path} is not a plain file")),
        (_, true) => Err(format!("{path} was changed after the domain was built")),
        _ => Ok(()),
    }
}

fn unknown(reason: &str) -> Boot {
    Boot::Unknown(reason.into())
}

/// libxl's "SECONDS.HUNDREDTHS".
fn hundredths(time: &str) -> Option<Built> {
    let (seconds, hundredths) = time.split_once('.')?;
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if hundredths.len() != 2 || !digits(seconds) || !digits(hundredths) {
        return None;
    }
    let seconds: i64 = seconds.parse().ok()?;
    seconds
        .checked_mul(100)?
        .checked_add(hundredths.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(hundredths("1700000000.07"), Some(170_000_000_007));
        for bad in [
            "",
            "1",
            "1.",
            "1.7",
            "-1.07",
            "1.-7",
            "1.077",
            "99999999999999999999.00",
        ] {
            assert_eq!(hundredths(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn what_changed_since_is_not_what_was_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vmlinuz");
        std::fs::write(&path, b"kernel").unwrap();
        let changed = std::fs::metadata(&path).unwrap().ctime() * 100;
        let cache = dir.path().join(cache::FILE);
        let open = |built| {
            let kernel = path.display().to_string();
            Images::open(Some(kernel), None, None, built)
                .and_then(|i| i.digests(&[Bank::Sha256], &cache))
        };

        assert!(open(changed + 100).is_ok());
        assert!(open(changed - 1).unwrap_err().contains("was changed"));
        std::fs::remove_file(&path).unwrap();
        assert!(open(changed + 100).unwrap_err().contains("not there"));
        std::fs::create_dir(&path).unwrap();
        assert!(open(i64::MAX).unwrap_err().contains("not a plain file"));
        assert!(Images::open(None, None, None, 0).is_err());
        assert!(Images::open(Some("vmlinuz".into()), None, None, 0).is_err());
    }
}
