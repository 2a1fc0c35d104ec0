// SPDX-License-Identifier: GPL-2.0

//! `report`: what a report of a fault has to say of this host, its vTPMs and what was logged of them. No key, no
//! state and no page of a guest is in it.

use std::process::{Command, Stdio};

use crate::admin;
use crate::config::Config;
use crate::control::{self, Request};

/// How long (s) each may take.
const LIMIT: &str = "20";

/// What is known by other programs. A program that is not there says so in its place.
const SHELL: &[(&str, &str)] = &[
    ("system", "uname -a; grep PRETTY_NAME= /etc/os-release"),
    (
        "Xen",
        "xl info | grep -E '^(xen_|virt_caps|total_memory|nr_cpus)'; xl list",
    ),
    ("swtpm", "swtpm socket --version"),
    (
        "xenstore, backend",
        "xenstore-ls -f /local/domain/0/backend/vtpm; xenstore-ls -f /local/domain/0/error",
    ),
    (
        "xenstore, frontends",
        "for domain in $(xenstore-list /local/domain); do \
         xenstore-ls -f /local/domain/$domain/device/vtpm; done 2>/dev/null",
    ),
    (
        "log",
        "journalctl -b -u xen-vtpmd -n 1000 --no-pager -o short-precise",
    ),
    (
        "kernel's log",
        "journalctl -k -b --no-pager -o short-precise | grep -E 'xen-vtpmd|swtpm|vtpm' | tail -n 100",
    ),
];

fn shell(script: &str) -> String {
    let output = Command::new("timeout")
        .args([LIMIT, "sh", "-c", script])
        .stdin(Stdio::null())
        .output();
    match output {
        Ok(output) => String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into(),
        Err(e) => e.to_string(),
    }
}

/// The report; `file` is the configuration's text as it is.
pub fn report(config: &Config, file: &str) -> String {
    let status = control::ask(&config.run_dir, Request::Status);
    let list = admin::list(config, &admin::users(config));
    let ours = [
        ("xen-vtpmd", env!("CARGO_PKG_VERSION").to_owned()),
        ("configuration", file.to_owned()),
        ("status", status.unwrap_or_else(|e| e.to_string())),
        (
            "list",
            list.map_or_else(|e| e.to_string(), |list| admin::table(&list)),
        ),
    ];
    let others = SHELL.iter().map(|(title, script)| (*title, shell(script)));
    let part = |(title, text): (&str, String)| format!("== {title}\n{}\n\n", text.trim_end());
    ours.into_iter().chain(others).map(part).collect()
}
