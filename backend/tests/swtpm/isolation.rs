// SPDX-License-Identifier: GPL-2.0

//! What an swtpm can do and see, as the kernel says it. Skipped, with a message, where this is not root.

use std::fs;
use std::os::unix::fs::{symlink, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use xen_vtpmd::swtpm::Version;

use crate::bench::{extend_2, have_swtpm, is_root, pcr_2, Bench};

/// The first user of these tests: xen-vtpmd's own choice, or, where this root is an ordinary user with a namespace of some
/// thousand ids, one of those.
fn first() -> u32 {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap();
    let ends = map.lines().map(|line| {
        let mut numbers = line
            .split_whitespace()
            .map(|word| word.parse::<u64>().unwrap());
        let (inside, _, count) = (numbers.next(), numbers.next(), numbers.next());
        inside.unwrap() + count.unwrap()
    });
    let last = ends.max().unwrap();
    u32::try_from(last.saturating_sub(1_000).min(1_900_000_000)).unwrap()
}

fn isolated() -> Option<Bench> {
    (have_swtpm() && is_root()).then(|| Bench::new(Some(first())))
}

/// A line of /proc/PID/status, without its name.
fn status(pid: u32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_default()
        .trim_start_matches(':')
        .trim()
        .to_owned()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[test]
fn an_swtpm_is_alone_with_its_state() {
    let Some(bench) = isolated() else {
        return;
    };
    bench.set_up(Version::Tpm2);
    let mut swtpm = bench.start();
    swtpm.done(&extend_2(16));
    let pid = swtpm.id();

    for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status(pid, name), "0".repeat(16), "{name}");
    }
    assert_eq!(status(pid, "NoNewPrivs"), "1");
    assert_eq!(status(pid, "Seccomp"), "2");
    assert_eq!(status(pid, "Uid"), vec![first().to_string(); 4].join("\t"));
    assert_eq!(status(pid, "Gid"), vec![first().to_string(); 4].join("\t"));
    assert_eq!(status(pid, "Groups"), "");
    for name in ["mnt", "net", "ipc", "uts"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
        assert_ne!(of(&pid.to_string()), of("self"), "{name}");
    }
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    for (name, value) in [
        ("Max core file size", "0"),
        ("Max file size", "67108864"),
        ("Max open files", "64"),
        ("Max address space", "268435456"),
        ("Max processes", "16"),
    ] {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        let found: Vec<&str> = line[name.len()..].split_whitespace().collect();
        assert_eq!(found[..2], [value, value], "{name}");
    }

    let root = PathBuf::from(format!("/proc/{pid}/root"));
    let all = [
        "bin", "dev", "etc", "lib", "lib64", "sbin", "state", "tmp", "usr",
    ];
    assert_eq!(names(&root), all);
    assert_eq!(names(&root.join("dev")), ["null", "urandom"]);
    assert_eq!(
        names(&root.join("etc")),
        ["filter", "passwd", "swtpm_setup.conf"]
    );
    assert!(names(&root.join("tmp")).is_empty());
    // With room for the next write of the state.
    let state = [".lock", "TMP2-00.permall", "tpm2-00.permall"];
    assert_eq!(names(&root.join("state")), state);
    let cwd = fs::read_link(format!("/proc/{pid}/cwd")).unwrap();
    assert_eq!(cwd.file_name().unwrap(), "state");
    fs::write(root.join("usr/x"), b"").unwrap_err();
    fs::write(root.join("x"), b"").unwrap_err();

    // Its own sockets, the lock, and swtpm's lock file; and what whoever started this test
    // forgot to close.
    let inherited = |name: &str| fs::read_link(format!("/proc/self/fd/{name}"));
    let fds: Vec<(String, String)> = names(Path::new(&format!("/proc/{pid}/fd")))
        .into_iter()
        .map(|name| {
            let fd = fs::read_link(format!("/proc/{pid}/fd/{name}")).unwrap();
            (name, fd.to_string_lossy().into_owned())
        })
        .collect();
    for (name, fd) in &fds {
        // Both ends: it tells itself of signals.
        let own_pipe =
            fd.starts_with("pipe:") && fds.iter().filter(|(_, other)| other == fd).count() == 2;
        let expected = ["socket:", "/dev/null", "anon_inode:[event"];
        assert!(
            expected.iter().any(|start| fd.starts_with(start))
                || fd.ends_with(".lock")
                || ["0", "1", "2"].contains(&name.as_str())
                || own_pipe
                || inherited(name).is_ok_and(|own| own == Path::new(&fd)),
            "{name}: {fd}"
        );
    }
    swtpm.end();
}

/// Nothing under /proc shows landlock, so strace does.
#[test]
fn landlock_is_on_where_the_kernel_has_it() {
    let Some(mut bench) = isolated() else {
        return;
    };
    let probe = Command::new("setpriv")
        .args(["--landlock-access", "fs", "/usr/bin/true"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&probe.stderr).into_owned();
    if !said.contains("failed to execute") {
        return eprintln!("SKIPPED: no landlock here: {said}");
    }
    if Command::new("strace").arg("-V").output().is_err() {
        return eprintln!("SKIPPED: strace is not installed");
    }
    bench.set_up(Version::Tpm2);
    let folder = bench.folder.path();
    let (trace, wrapper) = (folder.join("trace"), folder.join("launcher"));
    let script = format!(
        "#!/bin/sh\nexec strace -D -o {} -e trace=landlock_restrict_self {} \"$@\"\n",
        trace.display(),
        bench.config.launcher.display()
    );
    fs::write(&wrapper, script).unwrap();
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o700)).unwrap();
    bench.config.launcher = wrapper;

    let swtpm = bench.start();
    let trace = fs::read_to_string(&trace).unwrap();
    assert!(trace.contains("landlock_restrict_self("), "{trace}");
    assert!(trace.trim().ends_with("= 0"), "{trace}");
    swtpm.end();
}

#[test]
fn both_versions_are_made_and_saved_in_isolation() {
    for version in Version::ALL {
        let Some(bench) = isolated() else {
            return;
        };
        bench.set_up(version);
        let state = bench.state();
        let data = fs::metadata(&state.path).unwrap();
        assert_eq!(
            (data.uid(), data.gid(), data.mode() & 0o7777),
            (first(), first(), 0o700)
        );
        let file = fs::metadata(state.path.join(version.state_file())).unwrap();
        assert_eq!((file.uid(), file.mode() & 0o007), (first(), 0));

        bench.start().end_saved();
        assert!(state.is_saved().unwrap());
        bench.start().end();
    }
}

#[test]
fn a_state_that_root_copied_gets_a_user() {
    let Some(bench) = isolated() else {
        return;
    };
    bench.set_up(Version::Tpm2);
    let state = bench.state();
    for path in [state.path.clone(), state.path.join("tpm2-00.permall")] {
        std::os::unix::fs::chown(&path, Some(0), Some(0)).unwrap();
    }

    bench.start().end();
    assert_eq!(fs::metadata(&state.path).unwrap().uid(), first());
    // But not what a link in there is about.
    std::os::unix::fs::chown(&state.path, Some(0), Some(0)).unwrap();
    symlink("/etc/hostname", state.path.join("link")).unwrap();
    let reason = bench.try_start().err().unwrap().to_string();
    assert!(reason.contains("is not a plain file"), "{reason}");
}

#[test]
fn an_isolated_tpm_is_adopted() {
    let Some(bench) = isolated() else {
        return;
    };
    bench.set_up(Version::Tpm2);
    let mut swtpm = bench.start();
    swtpm.done(&extend_2(16));
    let extended = pcr_2(&mut swtpm, 16);
    drop(swtpm);

    let mut swtpm = bench.adopt().unwrap();
    assert_eq!(pcr_2(&mut swtpm, 16), extended);
    swtpm.end();
}

#[test]
fn a_state_that_is_encrypted() {
    let Some(mut bench) = isolated() else {
        return;
    };
    let key = bench.folder.path().join("key");
    let write = |text: &str, mode: u32| {
        fs::write(&key, text).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
    };
    bench.policy().key_file = Some(key.clone());

    let failure = |bench: &Bench| bench.try_set_up(Version::Tpm2).unwrap_err();
    assert!(failure(&bench).contains("No such file"));
    for bad in ["", "0123", &"x".repeat(64), &"ab".repeat(33)] {
        write(bad, 0o600);
        assert!(
            failure(&bench).contains("64 hex digits are expected"),
            "{bad:?}"
        );
    }
    write(&"1f".repeat(32), 0o644);
    assert!(failure(&bench).contains("root and 0600 are expected"));
    write(&("1f".repeat(32) + "\n"), 0o600);
    bench.set_up(Version::Tpm2);

    let mut swtpm = bench.start();
    swtpm.done(&extend_2(16));
    let extended = pcr_2(&mut swtpm, 16);
    swtpm.end_saved();
    let mut swtpm = bench.start();
    assert_eq!(pcr_2(&mut swtpm, 16), extended);
    swtpm.end();
    // With another key, and with none, there is no TPM.
    write(&"2f".repeat(32), 0o600);
    assert!(bench.try_start().is_err());
    bench.policy().key_file = None;
    assert!(bench.try_start().is_err());
}

#[test]
fn certificates() {
    let Some(mut bench) = isolated() else {
        return;
    };
    for version in Version::ALL {
        bench.policy().certificates = true;
        bench.set_up(version);
        let state = bench.state();
        assert_eq!(fs::metadata(&state.path).unwrap().uid(), first());
        let mut swtpm = bench.start();
        if version == Version::Tpm2 {
            // The NV index of the EK's certificate.
            let read_public = [0x80, 1, 0, 0, 0, 14, 0, 0, 1, 0x69, 1, 0xc0, 0, 2];
            assert!(swtpm.done(&read_public).len() > 30);
        }
        swtpm.end();
        fs::remove_dir_all(&state.path).unwrap();
    }
}
