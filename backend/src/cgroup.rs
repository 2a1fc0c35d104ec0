// SPDX-License-Identifier: GPL-2.0

//! A cgroup for each worker with its swtpm: what one vTPM can take of processor, memory, tasks and disk. Works
//! in a unit that delegates its cgroup, and in a dom0 without systemd that has cgroup v2 mounted.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::xenbus::Id;

/// The manager's own subgroup: DelegateSubgroup= of the unit.
const MANAGER: &str = "manager";

/// Where the manager makes the groups when it runs in the root of all cgroups.
const PLAIN: &str = "xen-vtpmd";

/// The subgroup for the swtpms that the daemon of 0.1.0 left in the unit's cgroup itself.
const FORMER: &str = "former";

/// The controllers that are of use here.
const CONTROLLERS: [&str; 4] = ["cpu", "io", "memory", "pids"];

/// What a worker and its swtpm may take together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The share of the processors when they are wanted by others too; 100 is the usual one.
    pub cpu_weight: u32,
    /// The most processor time, in percent of one processor.
    pub cpu_percent: Option<u32>,
    /// The most memory, in MiB.
    pub memory: u32,
    /// The most processes and threads.
    pub tasks: u32,
    /// The share of the disks when they are wanted by others too.
    pub io_weight: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            cpu_weight: 100,
            cpu_percent: None,
            memory: 512,
            tasks: 64,
            io_weight: 100,
        }
    }
}

impl Limits {
    /// The files of a cgroup, and what goes into them.
    fn files(&self) -> [(&'static str, String); 5] {
        const PERIOD_US: u32 = 100_000;
        let cpu_max = match self.cpu_percent {
            Some(percent) => {
                let quota = u64::from(percent) * u64::from(PERIOD_US) / 100;
                format!("{quota} {PERIOD_US}")
            }
            None => format!("max {PERIOD_US}"),
        };
        [
            ("cpu.weight", self.cpu_weight.to_string()),
            ("cpu.max", cpu_max),
            ("memory.max", (u64::from(self.memory) << 20).to_string()),
            ("pids.max", self.tasks.to_string()),
            ("io.weight", format!("default {}", self.io_weight)),
        ]
    }
}

/// The cgroup that those of the workers are made in.
#[derive(Debug)]
pub struct Cgroups {
    base: PathBuf,
    /// The controllers that there are.
    controllers: Vec<&'static str>,
}

impl Cgroups {
    /// Finds or makes it. The error says why there is none.
    pub fn open() -> Result<Self, String> {
        let mounts = fs::read_to_string("/proc/self/mountinfo");
        let mounts = mounts.map_err(|e| format!("/proc/self/mountinfo: {e}"))?;
        let own = fs::read_to_string("/proc/self/cgroup");
        let own = own.map_err(|e| format!("/proc/self/cgroup: {e}"))?;
        let mount = mounted(&mounts).ok_or("no cgroup v2 is mounted")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/"));

        Self::below(
            &mount,
            own.ok_or("this process is in no cgroup of version 2")?,
        )
    }

    /// For a manager in the cgroup `own` of the hierarchy that is mounted at `mount`.
    fn below(mount: &Path, own: &str) -> Result<Self, String> {
        let failed = |path: &Path, e: io::Error| format!("{}: {e}", path.display());
        let base = match (own, own.strip_suffix(MANAGER)) {
            ("", _) => {
                let base = mount.join(PLAIN);
                make(&base).map_err(|e| failed(&base, e))?;
                enable(mount);
                base
            }
            (_, Some(unit)) if unit.is_empty() || unit.ends_with('/') => mount.join(unit),
            _ => {
                return Err(format!(
                    "cgroup /{own} is not the manager's to divide: Delegate=yes and \
                     DelegateSubgroup={MANAGER} are expected in the unit"
                ))
            }
        };
        let available = base.join("cgroup.controllers");
        let available = fs::read_to_string(&available).map_err(|e| failed(&available, e))?;
        let has = |name: &&str| available.split_ascii_whitespace().any(|n| n == *name);
        let controllers: Vec<_> = CONTROLLERS.into_iter().filter(has).collect();
        if controllers.is_empty() {
            return Err(
                "cgroup v2 has no controllers here: cgroup v1 may have them, or their parent"
                    .into(),
            );
        }
        end_former(&base);
        enable(&base);
        Ok(Self { base, controllers })
    }

    /// The controllers, for people.
    pub fn controllers(&self) -> String {
        self.controllers.join(", ")
    }

    fn path(&self, id: Id) -> PathBuf {
        self.base.join(format!("vtpm-{}-{}", id.domid, id.devid))
    }

    /// A worker's cgroup, with these limits. It may be there already, with an swtpm in it.
    pub fn prepare(&self, id: Id, limits: &Limits) -> io::Result<PathBuf> {
        let path = self.path(id);
        make(&path)?;
        for (name, value) in limits.files() {
            let file = path.join(name);
            // Not every kernel has every controller, nor every controller every file.
            if file.exists() {
                fs::write(&file, value)
                    .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", file.display())))?;
            }
        }
        Ok(path)
    }

    /// Removes the cgroup of a vTPM that is over, and ends what is left in it.
    pub fn remove(&self, id: Id) {
        let path = self.path(id);
        match fs::remove_dir(&path) {
            Ok(()) => (),
            Err(e) if e.kind() == io::ErrorKind::NotFound => (),
            Err(_) => {
                // Since 5.14; the next worker of this vTPM, or the next manager, uses what stays.
                let killed = fs::write(path.join("cgroup.kill"), "1");
                log::warn!(vtpm:% = id; "{} is not empty: killed what is in it: {killed:?}", path.display());
                let _ = fs::remove_dir(&path);
            }
        }
    }
}

/// Where cgroup v2 is mounted.
fn mounted(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (fields, kind) = line.split_once(" - ")?;
        let mut fields = fields.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        (root == "/" && kind.starts_with("cgroup2 ")).then(|| PathBuf::from(point))
    })
}

fn make(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// Hands the controllers down to the groups in this one, each by itself: one that is not there hinders none.
fn enable(group: &Path) {
    for controller in CONTROLLERS {
        let file = group.join("cgroup.subtree_control");
        if let Err(e) = fs::write(&file, format!("+{controller}")) {
            log::debug!("+{controller} in {}: {e}", file.display());
        }
    }
}

/// Ends the swtpms of the daemon of 0.1.0: nobody serves them any more, they keep their states locked, and a
/// group that hands controllers down must have no process itself. Kernels before 5.14 do not end them.
fn end_former(base: &Path) {
    let former = base.join(FORMER);
    let _ = fs::remove_dir(&former);
    let procs = fs::read_to_string(base.join("cgroup.procs")).unwrap_or_default();
    if procs.is_empty() {
        return;
    }
    let _ = make(&former);
    for pid in procs.lines() {
        if let Err(e) = fs::write(former.join("cgroup.procs"), pid) {
            log::warn!("process {pid} stays in {}: {e}", base.display());
        }
    }
    let killed = fs::write(former.join("cgroup.kill"), "1");
    log::warn!(
        "ends the swtpms of a daemon of version 0.1.0, whose guests have no TPM until they are started again: \
         {}: {killed:?}",
        procs.trim().replace('\n', " ")
    );
}

/// Moves this process into a group. All that it starts is there too.
pub fn enter(group: &Path) -> io::Result<()> {
    fs::write(group.join("cgroup.procs"), "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: Id = Id { domid: 7, devid: 0 };

    /// A directory that looks like a cgroup with some controllers.
    fn pretend(path: &Path) {
        fs::create_dir_all(path).unwrap();
        fs::write(path.join("cgroup.controllers"), "cpu cpuset memory pids\n").unwrap();
    }

    #[test]
    fn where_it_is_mounted() {
        let text = "\
            25 30 0:23 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
            30 1 0:26 /x /mnt rw - cgroup2 cgroup2 rw\n\
            31 1 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";
        assert_eq!(mounted(text), Some(PathBuf::from("/sys/fs/cgroup")));
        assert_eq!(mounted("1 2 0:3 / / rw - ext4 /dev/sda rw\n"), None);
    }

    #[test]
    fn in_a_unit_and_without_systemd() {
        let dir = tempfile::tempdir().unwrap();
        let unit = dir.path().join("system.slice/xen-vtpmd.service");
        pretend(&unit);
        pretend(&dir.path().join(PLAIN));

        let groups = Cgroups::below(dir.path(), "system.slice/xen-vtpmd.service/manager").unwrap();
        assert_eq!(groups.base, unit);
        assert_eq!(groups.controllers(), "cpu, memory, pids");
        // The last write that enables a controller, as a file has it.
        let enabled = fs::read_to_string(unit.join("cgroup.subtree_control")).unwrap();
        assert_eq!(enabled, "+pids");
        let plain = Cgroups::below(dir.path(), "").unwrap();
        assert_eq!(plain.base, dir.path().join(PLAIN));
        for not_ours in ["user.slice/session-1.scope", "a/notmanager"] {
            let e = Cgroups::below(dir.path(), not_ours).unwrap_err();
            assert!(e.contains("Delegate=yes"), "{e}");
        }
        fs::write(unit.join("cgroup.controllers"), "\n").unwrap();
        let e = Cgroups::below(dir.path(), "system.slice/xen-vtpmd.service/manager").unwrap_err();
        assert!(e.contains("no controllers"), "{e}");
    }

    #[test]
    fn limits_go_into_the_files_that_are_there() {
        let dir = tempfile::tempdir().unwrap();
        pretend(&dir.path().join(PLAIN));
        let groups = Cgroups::below(dir.path(), "").unwrap();
        let path = dir.path().join(PLAIN).join("vtpm-7-0");
        fs::create_dir(&path).unwrap();
        for name in ["cpu.weight", "cpu.max", "memory.max", "pids.max"] {
            fs::write(path.join(name), "").unwrap();
        }
        let limits = Limits {
            cpu_percent: Some(150),
            memory: 300,
            ..Limits::default()
        };

        assert_eq!(groups.prepare(ID, &limits).unwrap(), path);
        let read = |name: &str| fs::read_to_string(path.join(name)).unwrap();
        assert_eq!(read("cpu.weight"), "100");
        assert_eq!(read("cpu.max"), "150000 100000");
        assert_eq!(read("memory.max"), (300 << 20).to_string());
        assert_eq!(read("pids.max"), "64");
        assert!(!path.join("io.weight").exists());
    }

    #[test]
    fn a_process_moves_and_what_is_left_is_killed() {
        let mount = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let Some(mount) = mounted(&mount) else {
            return eprintln!("SKIPPED: no cgroup v2 is mounted");
        };
        let name = format!("xen-vtpmd-test-{}", std::process::id());
        let base = mount.join(&name);
        if fs::create_dir(&base).is_err() {
            return eprintln!("SKIPPED: not root");
        }
        let groups = Cgroups {
            base: base.clone(),
            controllers: Vec::new(),
        };
        let path = groups.prepare(ID, &Limits::default()).unwrap();
        let start_in = |group: &Path| {
            let procs = group.join("cgroup.procs");
            let script = format!("echo 0 >{}; exec sleep 100", procs.display());
            let child = std::process::Command::new("sh")
                .args(["-c", &script])
                .spawn()
                .unwrap();
            while fs::read_to_string(&procs).unwrap().trim() != child.id().to_string() {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            child
        };

        let mut left = start_in(&base);
        end_former(&base);
        assert!(!left.wait().unwrap().success());
        end_former(&base);
        assert!(!base.join(FORMER).exists());
        let mut child = start_in(&path);
        groups.remove(ID);
        assert!(!child.wait().unwrap().success());
        groups.remove(ID);
        assert!(!path.exists());
        fs::remove_dir(base).unwrap();
    }
}
