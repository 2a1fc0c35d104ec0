// SPDX-License-Identifier: GPL-2.0

//! How the I/O process gives up what it does not need, before it looks at anything of the guest's: the
//! user, all privileges, and all system calls but those of its loop.

use libseccomp::{ScmpAction, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use rustix::process::{setrlimit, Resource, Rlimit};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::sys::{drop_bounding_set, user_and_group};

/// `IOCTL_EVTCHN_NOTIFY` of the kernel's include/uapi/xen/evtchn.h.
const EVTCHN_NOTIFY: u64 = 0x0004_4504;

/// `F_GETFD` of fcntl(2).
const F_GETFD: u64 = 1;

/// `PROT_EXEC` of mmap(2).
const PROT_EXEC: u64 = 4;

/// What the loop needs, and what the Rust runtime and the allocator may.
const CALLS: [&str; 22] = [
    "read",
    "write",
    "poll",
    "ppoll",
    "sendto",
    "recvfrom",
    "clock_gettime",
    "clock_nanosleep",
    "nanosleep",
    "restart_syscall",
    "rt_sigreturn",
    "rt_sigprocmask",
    "rt_sigaction",
    "sigaltstack",
    "futex",
    "brk",
    "munmap",
    "madvise",
    "close",
    "exit",
    "exit_group",
    "gettid",
];

/// Confines the process. Returns the names of what the kernel does not have.
pub(super) fn confine(uid: Option<u32>) -> Result<String, String> {
    let failed = |what: &'static str| move |e| format!("{what}: {e}");
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };

    // No dump of the guest's secrets.
    setrlimit(Resource::Core, none).map_err(|e| format!("limits: {e}"))?;
    if let Some(uid) = uid {
        setrlimit(Resource::Nproc, none).map_err(|e| format!("limits: {e}"))?;
        drop_bounding_set().map_err(|e| format!("bounding set: {e}"))?;
        let (user, group) = user_and_group(uid).ok_or("user -1")?;
        set_thread_groups(&[]).map_err(failed("groups"))?;
        set_thread_res_gid(group, group, group).map_err(failed("group"))?;
        // With it all capabilities go.
        set_thread_res_uid(user, user, user).map_err(failed("user"))?;
    }
    // It went with the change of the user.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::Kill))
        .map_err(failed("parent"))?;
    match filter() {
        Ok(()) => Ok(String::new()),
        Err(e) if !has_seccomp() => {
            log::debug!("seccomp: {e}");
            Ok("seccomp".into())
        }
        Err(e) => Err(format!("seccomp: {e}")),
    }
}

/// Loads the filter, and with it "no new privileges".
fn filter() -> Result<(), libseccomp::error::SeccompError> {
    let mut filter = ScmpFilterContext::new_filter(ScmpAction::KillProcess)?;
    for name in CALLS {
        // One that the architecture does not have is one that nobody can call.
        if let Ok(call) = ScmpSyscall::from_name(name) {
            filter.add_rule(ScmpAction::Allow, call)?;
        }
    }
    let notify = ScmpArgCompare::new(1, ScmpCompareOp::Equal, EVTCHN_NOTIFY);
    let ioctl = ScmpSyscall::from_name("ioctl")?;
    filter.add_rule_conditional(ScmpAction::Allow, ioctl, &[notify])?;
    // Memory, for the allocator, but none that can be executed.
    let data = ScmpArgCompare::new(2, ScmpCompareOp::MaskedEqual(PROT_EXEC), 0);
    for name in ["mmap", "mprotect"] {
        let call = ScmpSyscall::from_name(name)?;
        filter.add_rule_conditional(ScmpAction::Allow, call, &[data])?;
    }
    // The standard library looks whether a descriptor is open before it closes it, in some builds.
    let get_flags = ScmpArgCompare::new(1, ScmpCompareOp::Equal, F_GETFD);
    let fcntl = ScmpSyscall::from_name("fcntl")?;
    filter.add_rule_conditional(ScmpAction::Allow, fcntl, &[get_flags])?;
    filter.load()
}

fn has_seccomp() -> bool {
    std::path::Path::new("/proc/sys/kernel/seccomp").exists()
}
