// SPDX-License-Identifier: GPL-2.0

//! What the processes of a vTPM can do and see, as the kernel says it.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{mount, unmount, MountFlags, UnmountFlags};
use rustix::thread::{move_into_link_name_space, unshare, LinkNameSpaceType, UnshareFlags};

use crate::host::{wait_for, Host, LIMIT};
use crate::processes::all_processes;
use crate::takeover::attempts;
use crate::toolstack::uuid;
use crate::tpm::GET_RANDOM;

/// A line of /proc/PID/status, without its name.
fn status(pid: u32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_default()
        .trim_start_matches(':')
        .trim()
        .to_owned()
}

/// What a process has open.
fn open_files(pid: u32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    entries
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .map(|target| target.display().to_string())
        .collect()
}

/// The process that has the guest's bytes can map no other page, bind no other port, open no file.
#[test]
fn an_io_process_is_alone_with_its_page() {
    let Some(host) = Host::new() else { return };
    let mut guest = host.boot(7, &uuid(7));
    guest.done(&GET_RANDOM);
    let port = guest.port().number();
    assert_eq!(host.hypervisor.restricted_to(7, port), Some(Some(7)));
    let io = host.io(7);
    for file in open_files(io) {
        for bad in ["gntdev", "privcmd", "/state/", "permall"] {
            assert!(!file.contains(bad), "{file}");
        }
        assert!(file == "/dev/null" || !file.starts_with("/dev/"), "{file}");
    }
    for name in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(status(io, name), "0".repeat(16), "{name}");
    }
    assert_eq!(status(io, "NoNewPrivs"), "1");
    assert_eq!(status(io, "Seccomp"), "2");
    assert!(
        !status(io, "Uid").starts_with("0\t"),
        "{}",
        status(io, "Uid")
    );
}

#[test]
fn an_swtpm_is_alone_with_its_state() {
    let Some(host) = Host::new() else { return };
    let mut guest = host.boot(7, &uuid(7));
    guest.done(&GET_RANDOM);
    let swtpm = host.swtpm(7);
    for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status(swtpm, name), "0".repeat(16), "{name}");
    }
    assert_eq!(status(swtpm, "NoNewPrivs"), "1");
    assert_eq!(status(swtpm, "Seccomp"), "2");
    assert_eq!(status(swtpm, "Groups"), "");
    let uid = fs::metadata(host.state_dir().join(uuid(7))).unwrap().uid();
    assert_eq!(status(swtpm, "Uid"), vec![uid.to_string(); 4].join("\t"));
    let limits = fs::read_to_string(format!("/proc/{swtpm}/limits")).unwrap();
    for limit in ["address space", "processes", "open files", "file size"] {
        let line = limits.lines().find(|line| line.contains(limit)).unwrap();
        assert!(!line.contains("unlimited"), "{line}");
    }
    for name in ["mnt", "net", "ipc", "uts"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
        assert_ne!(of(&swtpm.to_string()), of("self"), "{name}");
    }
    let root = format!("/proc/{swtpm}/root");
    fs::write(Path::new(&root).join("usr/x"), b"").unwrap_err();
    for other in ["home", "root", "run", "proc", "var"] {
        let found = fs::read_dir(Path::new(&root).join(other));
        assert!(found.is_err(), "{other}");
    }
}

/// A worker that an attacker has taken over, once its guest is connected: it has its own TPM's state, and no other
/// one's, nor Xen's devices, nor any program.
#[test]
fn a_worker_is_alone_with_its_vtpm() {
    let Some(host) = Host::new() else { return };
    let mut guest = host.boot(7, &uuid(7));
    guest.done(&GET_RANDOM);
    let _other = host.boot(8, &uuid(8));
    let (worker, other, swtpm) = (host.worker(7), host.worker(8), host.swtpm(8));
    for task in fs::read_dir(format!("/proc/{worker}/task")).unwrap() {
        let task = task.unwrap().file_name();
        let task = task.to_str().unwrap().parse().unwrap();
        // To change an owner, to look after what is another's, to end another's process.
        for name in ["CapPrm", "CapEff"] {
            assert_eq!(status(task, name), format!("{:016x}", 0x23), "{name}");
        }
        for name in ["CapInh", "CapBnd", "CapAmb"] {
            assert_eq!(status(task, name), "0".repeat(16), "{name}");
        }
        assert_eq!(status(task, "NoNewPrivs"), "1");
        assert_eq!(status(task, "Seccomp"), "2");
    }

    let state = host.state_dir().display().to_string();
    let (own, others) = (
        format!("{state}/{}", uuid(7)),
        format!("{state}/{}", uuid(8)),
    );
    let run = "/run/xen-vtpmd";
    let allowed = [
        ('r', format!("{own}/tpm2-00.permall")),
        ('w', format!("{own}/new")),
        ('u', format!("{own}/new")),
        ('r', format!("/proc/{swtpm}/stat")),
    ];
    let denied = [
        ('r', format!("{others}/tpm2-00.permall")),
        ('w', format!("{others}/new")),
        ('u', format!("{others}/tpm2-00.permall")),
        ('r', format!("{others}.lock")),
        ('w', format!("{others}.saved")),
        ('r', state.clone()),
        ('w', format!("{run}/vtpm/8-0/record.json")),
        ('u', format!("{run}/vtpm/8-0/worker.sock")),
        ('r', host.path("config.toml").display().to_string()),
        ('r', format!("/proc/{other}/mem")),
        ('r', format!("/proc/{other}/environ")),
        ('r', "/dev/fuse".into()),
        ('r', "/etc/passwd".into()),
        ('w', "/tmp/new".into()),
        ('x', "/usr/bin/true".into()),
        ('k', other.to_string()),
        ('t', swtpm.to_string()),
        ('i', String::new()),
        ('n', String::new()),
    ];
    let all = [&allowed[..], &denied[..]].concat();
    let poke = || guest.show("4");
    let errors = attempts(&host, worker, &all, poke);
    for ((how, on), error) in all.iter().zip(&errors) {
        let expected: &[i32] = match allowed.contains(&(*how, on.clone())) {
            true => &[0],
            false => &[Errno::PERM.raw_os_error(), Errno::ACCESS.raw_os_error()],
        };
        assert!(expected.contains(error), "{how} {on}: error {error}");
    }
    // It goes on as ever.
    assert_eq!(host.worker(7), worker);
    guest.done(&GET_RANDOM);
    guest.reconnect();
    guest.done(&GET_RANDOM);
    assert!(host.destroy(7));
}

/// Finding 20: each swtpm kept all of dom0's mounts.
#[test]
fn no_mount_of_dom0_is_kept() {
    let Some(host) = Host::bare("") else { return };
    let directory = host.path("images");
    fs::create_dir(&directory).unwrap();
    mount("images", &directory, "tmpfs", MountFlags::empty(), "").unwrap();
    host.start();
    let mut guest = host.boot(7, &uuid(7));
    guest.done(&GET_RANDOM);
    unmount(&directory, UnmountFlags::empty()).unwrap();

    let mut all = host.of_vtpm(7);
    all.retain(|pid| {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).unwrap();
        of(&pid.to_string()) != of("thread-self")
    });
    assert!(!all.is_empty());
    for pid in all {
        let mounts = mounts_of(pid);
        assert!(!mounts.contains("images"), "process {pid}:\n{mounts}");
    }
}

/// All mounts of a process's namespace, also those that its root does not show.
fn mounts_of(pid: u32) -> String {
    let namespace = File::open(format!("/proc/{pid}/ns/mnt")).unwrap();
    let proc = File::open("/proc").unwrap();
    let thread = std::thread::spawn(move || {
        unshare(UnshareFlags::FS).unwrap();
        move_into_link_name_space(
            std::os::fd::AsFd::as_fd(&namespace),
            Some(LinkNameSpaceType::Mount),
        )
        .unwrap();
        let path = "thread-self/mountinfo";
        let file = rustix::fs::openat(&proc, path, OFlags::RDONLY, Mode::empty()).unwrap();
        let mut text = String::new();
        File::from(file).read_to_string(&mut text).unwrap();
        text
    });
    thread.join().unwrap()
}

/// Finding 11: each swtpm had the key of all.
#[test]
fn each_vtpm_has_a_key_of_its_own() {
    let Some(host) = Host::bare("") else { return };
    let key = host.path("key");
    fs::write(&key, "1f".repeat(32) + "\n").unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    host.configure(&format!("[tpm]\nkey-file = {key:?}"));
    host.start();
    host.boot(7, &uuid(7)).done(&GET_RANDOM);
    assert!(host.destroy(7));

    // The state does not open with the master key itself.
    let state = host.state_dir().join(uuid(7));
    assert!(!opens(
        &state,
        &format!("--key=file={},mode=aes-256-cbc,format=hex", key.display())
    ));
    // With it and the uuid it does, again.
    host.boot(8, &uuid(7)).done(&GET_RANDOM);
}

/// Whether swtpm, run by hand, starts on this state.
fn opens(state: &Path, key: &str) -> bool {
    let mut swtpm = Command::new("swtpm")
        .args(["socket", "--tpm2", "--flags", "startup-clear"])
        .arg(format!("--tpmstate=dir={}", state.display()))
        .arg(format!(
            "--ctrl=type=unixio,path={}",
            state.join("ctrl").display()
        ))
        .arg(format!(
            "--server=type=unixio,path={}",
            state.join("server").display()
        ))
        .arg(key)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let has_ended = wait_for(Duration::from_secs(2), || {
        swtpm.try_wait().unwrap().is_some()
    });
    let _ = swtpm.kill();
    let _ = swtpm.wait();
    let _ = fs::remove_file(state.join("ctrl"));
    let _ = fs::remove_file(state.join("server"));
    !has_ended
}

/// Finding 15: with certificates, swtpm_setup ran with root's group.
#[test]
fn certificates_are_made_without_roots_group() {
    let Some(host) = Host::bare("[tpm]\ncertificates = true") else {
        return;
    };
    host.wrap("/usr/bin/swtpm_setup", "sleep 1.0815; exec $real \"$@\"");
    host.start();
    host.add(7, &uuid(7));
    // It runs as whoever has the CA, which is none of the host's own users.
    let mut found = Vec::new();
    let is_there = || {
        found = with_arguments(b"sleep\x001.0815\0");
        !found.is_empty()
    };
    assert!(wait_for(LIMIT, is_there));
    for pid in found {
        for name in ["Uid", "Gid"] {
            let ids = status(pid, name);
            assert!(!ids.split('\t').any(|id| id == "0"), "{name}: {ids}");
        }
    }
    let mut guest = crate::guest::Guest::new(&host, 7);
    guest.connect();
    // The NV index of the EK's certificate.
    let read_public = [0x80, 1, 0, 0, 0, 14, 0, 0, 1, 0x69, 1, 0xc0, 0, 2];
    assert!(guest.done(&read_public).len() > 30);
}

/// The processes that were started so.
fn with_arguments(line: &[u8]) -> Vec<u32> {
    let is_it = |pid: &u32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|own| own == line);
    all_processes().filter(is_it).collect()
}
