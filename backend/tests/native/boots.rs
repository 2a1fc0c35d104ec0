// SPDX-License-Identifier: GPL-2.0

//! What libxl tells of the guest that it boots, PV or PVH, and the event log that follows from it.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::guest::Guest;
use crate::host::Host;
use crate::toolstack::{backend, uuid};

/// The uuid of the domain.
pub(crate) const VM: &str = "5a0d2d5e-9a3c-4b5c-8d54-2f1b1c5f7a11";

/// What a guest boots.
#[derive(Clone, Copy)]
pub(crate) struct Boot<'a> {
    pub(crate) kernel: &'a str,
    pub(crate) cmdline: &'a str,
    pub(crate) initrd: Option<&'a str>,
}

pub(crate) const BOOT: Boot<'_> = Boot {
    kernel: "vmlinuz",
    cmdline: "root=/dev/xvda ro",
    initrd: Some("initrd"),
};

impl Host {
    /// A file that a guest boots.
    fn image(&self, name: &str) -> String {
        let path = self.path(name);
        if !path.exists() {
            fs::write(&path, name.repeat(100_000)).unwrap();
        }
        path.display().to_string()
    }

    /// When libxl starts to build a domain: never in the same moment as the files were made.
    fn built(&self) -> String {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.unwrap() + Duration::from_millis(20);
        format!("{}.{:02}", now.as_secs(), now.subsec_millis() / 10)
    }

    /// What libxl tells of a domain before it makes the vTPM, PV or PVH.
    pub(crate) fn build(&self, domid: u16, boot: Boot<'_>, pv: bool) {
        let kernel = self.image(boot.kernel);
        let initrd = boot.initrd.map(|name| self.image(name));
        let built = self.built();
        self.store.transaction(|t| {
            t.write(&format!("/local/domain/{domid}/vm"), format!("/vm/{VM}"));
            t.write(&format!("/vm/{VM}/start_time"), &built);
            t.remove(&format!("/vm/{VM}/image"));
            if pv {
                t.write(&format!("/vm/{VM}/image/ostype"), "linux");
                t.write(&format!("/vm/{VM}/image/kernel"), &kernel);
                t.write(&format!("/vm/{VM}/image/cmdline"), boot.cmdline);
                if let Some(initrd) = &initrd {
                    t.write(&format!("/vm/{VM}/image/ramdisk"), initrd);
                }
            }
        });
    }

    /// What libxl writes when a PVH guest's devices are there.
    pub(crate) fn configured(&self, domid: u16, boot: Boot<'_>) {
        let info = serde_json::json!({ "b_info": {
            "type": "pvh", "kernel": self.image(boot.kernel), "cmdline": boot.cmdline,
            "ramdisk": boot.initrd.map(|name| self.image(name)),
        }});
        let path = format!("/var/lib/xen/userdata-d.{domid}.{VM}.libxl-json");
        // As libxl writes it, which has a NUL at the end.
        fs::write(path, format!("{info}\n\0")).unwrap();
    }

    /// A PV guest that boots this.
    pub(crate) fn boot_measured(&self, domid: u16, boot: Boot<'_>) -> Guest {
        self.build(domid, boot, true);
        self.boot(domid, &uuid(7))
    }

    /// The event log that a frontend is offered.
    pub(crate) fn offered_log(&self, domid: u16) -> Vec<u8> {
        let folder = format!("{}/event-log", backend(domid));
        let mut log = Vec::new();
        for number in 0.. {
            let Some(text) = self.store.read(&format!("{folder}/{number}")) else {
                assert_eq!(self.store.list(&folder).len(), number);
                break;
            };
            assert!(text.len() <= 1536 && number < 16);
            let digits = text.as_bytes().chunks(2);
            log.extend(
                digits.map(|pair| {
                    u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()
                }),
            );
        }
        log
    }

    /// What tpm2_eventlog says of the log, and what PCRs it replays it to.
    pub(crate) fn replay(&self, log: &[u8]) -> (String, BTreeMap<(String, u8), String>) {
        let path = self.path("log.bin");
        fs::write(&path, log).unwrap();
        let output = Command::new("tpm2_eventlog").arg(&path).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && error.is_empty(), "{error}");
        let text = String::from_utf8(output.stdout).unwrap();
        let mut pcrs = BTreeMap::new();
        let (_, replayed) = text.split_once("\npcrs:\n").unwrap();
        let mut bank = "";
        for line in replayed.lines() {
            match line.trim().split_once(':').unwrap() {
                (name, "") => bank = name,
                (pcr, digest) => {
                    let pcr = pcr.trim().parse().unwrap();
                    let digest = digest.trim().trim_start_matches("0x").to_owned();
                    pcrs.insert((bank.to_owned(), pcr), digest);
                }
            }
        }
        (text, pcrs)
    }
}

/// As tpm2_eventlog shows bytes.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}
