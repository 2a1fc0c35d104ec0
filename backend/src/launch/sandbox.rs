// SPDX-License-Identifier: GPL-2.0

//! The sandbox: namespaces of the program's own, and a root with only what it needs.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::{symlink, DirBuilderExt};
use std::path::Path;

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::mount::{
    mount, mount_bind, mount_change, mount_remount, unmount, MountFlags, MountPropagationFlags,
    UnmountFlags,
};
use rustix::process::{chroot, pivot_root, umask};
use rustix::thread::{unshare, UnshareFlags};

use super::filter::deny_filter;
use super::{failed, Launch, CA_DIR, FILTER};

/// What swtpm_setup and the CA read of /etc.
const CA_FILES: [&str; 4] = [
    "swtpm_setup.conf",
    "swtpm-localca.conf",
    "swtpm-localca.options",
    "ssl",
];

/// The state directory, as swtpm sees it.
pub(super) const STATE: &str = "/state";

impl Launch {
    /// A view of the host with programs, two devices and one state directory, and no network.
    pub(super) fn enter_sandbox(&self, uid: u32) -> Result<(), String> {
        let root = self.run_dir.join("root");
        let inside = |path: &str| root.join(path.trim_start_matches('/'));
        let bind = |from: &Path, to: &str, flags| {
            let to = inside(to);
            mount_bind(from, &to)
                .and_then(|()| mount_remount(&to, MountFlags::BIND | flags, ""))
                .map_err(failed(format!("showing {}", from.display())))
        };
        let make = |path: &Path| {
            let mut builder = DirBuilder::new();
            let made = builder.recursive(true).mode(0o755).create(path);
            made.map_err(failed(path.display()))
        };
        let safe = MountFlags::NOSUID | MountFlags::NODEV;

        // Whatever the caller's is: another user has to pass through what is made here.
        umask(Mode::WGRP | Mode::WOTH);
        unshare(
            UnshareFlags::NEWNS
                | UnshareFlags::NEWNET
                | UnshareFlags::NEWIPC
                | UnshareFlags::NEWUTS,
        )
        .map_err(failed("new namespaces"))?;
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        match mount_change("/", private) {
            // In a chroot, whose maker decides about that.
            Ok(()) | Err(Errno::INVAL) => (),
            Err(e) => return Err(failed("private mounts")(e)),
        }
        make(&root)?;
        mount("xen-vtpmd", &root, "tmpfs", safe, "mode=0755,size=1m")
            .map_err(failed("a new root"))?;
        for path in ["usr", "state", "dev", "etc", "tmp"] {
            make(&inside(path))?;
        }
        // As everywhere: /bin and the others are within /usr.
        for link in ["bin", "sbin", "lib", "lib64"] {
            symlink(format!("usr/{link}"), inside(link)).map_err(failed(link))?;
        }
        bind(Path::new("/usr"), "usr", safe | MountFlags::RDONLY)?;
        bind(&self.folder, STATE, safe | MountFlags::NOEXEC)?;
        for device in ["dev/null", "dev/urandom"] {
            File::create(inside(device)).map_err(failed(device))?;
            let from = Path::new("/").join(device);
            mount_bind(&from, inside(device)).map_err(failed(from.display()))?;
        }
        // swtpm_setup wants to know its user's name and its settings, of which it needs none, and talks
        // to its swtpm by a socket.
        let user = format!("vtpm:x:{uid}:{uid}::/tmp:/bin/false\n");
        fs::write(inside("etc/passwd"), user).map_err(failed("passwd"))?;
        if self.signs() {
            for name in CA_FILES {
                let from = Path::new("/etc").join(name);
                let to = format!("etc/{name}");
                match fs::metadata(&from) {
                    Ok(data) if data.is_dir() => make(&inside(&to))?,
                    Ok(_) => drop(File::create(inside(&to)).map_err(failed(name))?),
                    Err(_) => continue,
                }
                bind(&from, &to, safe | MountFlags::RDONLY)?;
            }
            make(&inside(CA_DIR))?;
            bind(Path::new(CA_DIR), CA_DIR, safe | MountFlags::NOEXEC)?;
        } else {
            File::create(inside("etc/swtpm_setup.conf")).map_err(failed("swtpm_setup.conf"))?;
        }
        let mut filter = File::create(inside(FILTER)).map_err(failed(FILTER))?;
        deny_filter(&mut filter).map_err(failed("filter of system calls"))?;
        // A file that is being written keeps the root from being read-only.
        drop(filter);
        let scratch = MountFlags::NOEXEC | safe;
        mount(
            "xen-vtpmd",
            inside("tmp"),
            "tmpfs",
            scratch,
            "mode=1777,size=1m",
        )
        .map_err(failed("/tmp"))?;
        mount_remount(&root, MountFlags::RDONLY | safe, "").map_err(failed("a new root"))?;
        umask(Mode::RWXG | Mode::RWXO);

        // The old root goes, and none of its mounts is pinned.
        std::env::set_current_dir(&root).map_err(failed(root.display()))?;
        match pivot_root(".", ".") {
            Ok(()) => unmount(".", UnmountFlags::DETACH).map_err(failed("the old root"))?,
            // In a chroot there is nothing that could be turned.
            Err(Errno::INVAL) => chroot(".").map_err(failed("chroot"))?,
            Err(e) => return Err(failed("pivot_root")(e)),
        }
        std::env::set_current_dir("/").map_err(failed("/"))
    }
}

#[cfg(test)]
mod tests {
    /// systemd refuses what the unit does not name, and no other test runs below it.
    #[test]
    fn the_unit_allows_each_namespace() {
        let unit = include_str!("../../debian/xen-vtpmd.service");
        let allowed = unit
            .lines()
            .find_map(|line| line.strip_prefix("RestrictNamespaces="))
            .unwrap();
        let names = [
            ("NS", "mnt"),
            ("NET", "net"),
            ("IPC", "ipc"),
            ("UTS", "uts"),
            ("PID", "pid"),
        ];
        let sources = [include_str!("sandbox.rs"), include_str!("../launch.rs")].concat();
        for flag in sources.split(concat!("UnshareFlags", "::NEW")).skip(1) {
            let (_, name) = names.iter().find(|(new, _)| flag.starts_with(new)).unwrap();
            assert!(allowed.split(' ').any(|word| word == *name), "{name}");
        }
    }
}
