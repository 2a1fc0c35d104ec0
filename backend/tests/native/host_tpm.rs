// SPDX-License-Identifier: GPL-2.0

//! The host's own TPM, which is a plain swtpm here. What the kernel shows of it, /sys/class/tpm/tpm0, is a directory
//! with the same PCRs.

use std::fs;
use std::process::{Child, Command, Stdio};

use rustix::mount::{mount, MountFlags};

use crate::host::{stdout_of, wait_for, Host, LIMIT};

const SYSFS: &str = "/sys/class/tpm/tpm0/pcr-sha256";

/// The host's TPM.
pub(crate) struct HostTpm<'a> {
    host: &'a Host,
    swtpm: Option<Child>,
}

impl<'a> HostTpm<'a> {
    pub(crate) fn new(host: &'a Host) -> Self {
        let mut this = Self { host, swtpm: None };
        let wrapper = format!("exec $real \"$@\" --tpm2-device={}", this.tcti());
        host.wrap("/usr/bin/systemd-creds", &wrapper);
        mount("tmpfs", "/sys/class", "tmpfs", MountFlags::empty(), "").unwrap();
        fs::create_dir_all(SYSFS).unwrap();
        fs::create_dir(host.path("tpm")).unwrap();
        this.power_on();
        this
    }

    /// From a cold start: PCRs are zero, as the firmware here measures nothing.
    pub(crate) fn power_on(&mut self) {
        self.power_off();
        let (socket, tpm) = (self.host.path("tpm.sock"), self.host.path("tpm"));
        let socket = socket.display();
        let child = Command::new("/usr/bin/swtpm")
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
            .arg(format!("--tpmstate=dir={}", tpm.display()))
            .arg(format!("--server=type=unixio,path={socket}"))
            .arg(format!("--ctrl=type=unixio,path={socket}.ctrl"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.swtpm = Some(child);
        assert!(wait_for(LIMIT, || self.host.path("tpm.sock").exists()));
        self.show();
    }

    pub(crate) fn power_off(&mut self) {
        if let Some(mut swtpm) = self.swtpm.take() {
            swtpm.kill().unwrap();
            swtpm.wait().unwrap();
            let _ = fs::remove_file(self.host.path("tpm.sock"));
        }
    }

    /// How tpm2-tools find it.
    pub(crate) fn tcti(&self) -> String {
        format!("swtpm:path={}", self.host.path("tpm.sock").display())
    }

    pub(crate) fn tpm2(&self, tool: &str, arguments: &[&str]) -> String {
        let mut command = Command::new(tool);
        command.args(["-T", &self.tcti()]).args(arguments);
        String::from_utf8(stdout_of(&mut command)).unwrap()
    }

    /// What the kernel shows is what the TPM has.
    fn show(&self) {
        let text = self.tpm2("tpm2_pcrread", &["sha256:7,8"]);
        for line in text.lines() {
            if let Some((pcr, digest)) = line.split_once(": 0x") {
                fs::write(format!("{SYSFS}/{}", pcr.trim()), format!("{digest}\n")).unwrap();
            }
        }
    }

    /// The host boots something else.
    pub(crate) fn measure(&self, pcr: u8) {
        self.measure_unseen(pcr);
        self.show();
    }

    /// The same, and only the TPM knows.
    pub(crate) fn measure_unseen(&self, pcr: u8) {
        let event = format!("{pcr}:sha256={}", "5a".repeat(32));
        self.tpm2("tpm2_pcrextend", &[&event]);
    }
}

impl Drop for HostTpm<'_> {
    fn drop(&mut self) {
        self.power_off();
    }
}
