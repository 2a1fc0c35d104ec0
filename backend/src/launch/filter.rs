// SPDX-License-Identifier: GPL-2.0

//! The filter of system calls that swtpm and swtpm_setup run with.

use std::fs::File;

use libseccomp::{ScmpAction, ScmpFilterContext, ScmpSyscall};

/// What swtpm and a worker have no use for, and what they could take more memory than they may have, or another
/// process's, by.
pub(crate) const DENIED: [&str; 44] = [
    "memfd_create",
    "memfd_secret",
    "ptrace",
    "process_vm_readv",
    "process_vm_writev",
    "process_madvise",
    "process_mrelease",
    "kcmp",
    "pidfd_open",
    "pidfd_getfd",
    "pidfd_send_signal",
    "userfaultfd",
    "io_uring_setup",
    "io_uring_enter",
    "io_uring_register",
    "bpf",
    "perf_event_open",
    "add_key",
    "request_key",
    "keyctl",
    "mount",
    "umount2",
    "move_mount",
    "open_tree",
    "fsopen",
    "fsmount",
    "mount_setattr",
    "unshare",
    "setns",
    "pivot_root",
    "chroot",
    "open_by_handle_at",
    "name_to_handle_at",
    "shmget",
    "semget",
    "msgget",
    "mq_open",
    "init_module",
    "finit_module",
    "kexec_load",
    "reboot",
    "swapon",
    "acct",
    "personality",
];

/// Writes the filter as setpriv takes it.
pub(super) fn deny_filter(file: &mut File) -> Result<(), Box<dyn std::error::Error>> {
    let mut filter = ScmpFilterContext::new_filter(ScmpAction::Allow)?;
    for name in DENIED {
        // One that this libseccomp does not know is one that an architecture need not have.
        if let Ok(call) = ScmpSyscall::from_name(name) {
            filter.add_rule(ScmpAction::KillProcess, call)?;
        }
    }
    Ok(filter.export_bpf(file)?)
}

#[cfg(test)]
mod tests {
    use super::{deny_filter, DENIED};
    use libseccomp::ScmpSyscall;

    #[test]
    fn the_filter_is_one() {
        let mut file = tempfile::tempfile().unwrap();
        deny_filter(&mut file).unwrap();
        let len = file.metadata().unwrap().len();
        assert!(len > 0 && len % 8 == 0, "{len}");
        let unknown: Vec<_> = DENIED
            .iter()
            .filter(|name| ScmpSyscall::from_name(name).is_err())
            .collect();
        assert!(unknown.is_empty(), "{unknown:?}");
    }
}
