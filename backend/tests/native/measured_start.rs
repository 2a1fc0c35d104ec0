// SPDX-License-Identifier: GPL-2.0

//! The measured start: what the toolstack boots is in the PCRs, once, before the guest's first command.

use std::fs;
use std::process::Command;
use std::time::Duration;

use rustix::mount::{mount, MountFlags};
use rustix::process::Signal;

use crate::boots::{hex, Boot, BOOT, VM};
use crate::guest::Guest;
use crate::host::{signal, wait_for, Host, LIMIT};
use crate::hypervisor::Reason;
use crate::toolstack::{uuid, LIBXL};
use crate::tpm::{code, command, nv_write, plain, OWNER};

/// An NV index that the booted PCRs open.
const SEALED: u32 = 0x0150_0002;

/// PCRs 4 and 5 of the SHA-256 bank.
const SELECTION: [u8; 10] = [0, 0, 0, 1, 0, 0x0b, 3, 0x30, 0, 0];

impl Guest {
    /// PCRs 4 and 5.
    fn booted(&mut self) -> [Vec<u8>; 2] {
        [self.pcr(4), self.pcr(5)]
    }
}

impl Guest {
    /// A session with TPM2_PolicyPCR of PCRs 4 and 5, of this type: TPM_SE_POLICY or TPM_SE_TRIAL.
    fn policy(&mut self, kind: u8) -> u32 {
        let null = [0x40, 0, 0, 7];
        let nonce = [&[0, 16][..], &[7; 16]].concat();
        let rest = [0, 0, kind, 0, 0x10, 0, 0x0b];
        let response = self.done(&plain(0x176, &[&null[..], &null, &nonce, &rest].concat()));
        let session = u32::from_be_bytes(response[10..14].try_into().unwrap());
        let handle = session.to_be_bytes();
        self.done(&plain(0x17f, &[&handle[..], &[0, 0], &SELECTION].concat()));
        session
    }

    /// Seals: an NV index that is read by what a trial session says.
    fn seal(&mut self) {
        let trial = self.policy(3).to_be_bytes();
        let digest = self.done(&plain(0x189, &trial));
        let policy = &digest[10..];
        let attributes = [0x02, 0x08, 0, 0x04];
        let public = [
            &SEALED.to_be_bytes()[..],
            &[0, 0x0b],
            &attributes,
            policy,
            &[0, 6],
        ]
        .concat();
        let len = (public.len() as u16).to_be_bytes();
        self.done(&command(
            0x12a,
            &[OWNER],
            &[&[0, 0][..], &len, &public].concat(),
        ));
        self.done(&nv_write(SEALED, b"secret"));
    }

    /// Whether that can be read.
    fn opens(&mut self) -> bool {
        let session = self.policy(1).to_be_bytes();
        let index = SEALED.to_be_bytes();
        let auth = [&[0, 0, 0, 9][..], &session, &[0, 0, 0, 0, 0]].concat();
        let parts = [
            &[0x80, 2, 0, 0, 0, 35, 0, 0, 1, 0x4e][..],
            &index,
            &index,
            &auth,
            &[0, 6, 0, 0],
        ];
        let response = self.run(&parts.concat());
        match code(&response) {
            0 => assert_eq!(&response[16..22], b"secret"),
            // TPM_RC_POLICY_FAIL, of session 1.
            code => assert_eq!(code, 0x99d, "{response:02x?}"),
        }
        code(&response) == 0
    }
}

#[test]
fn measured_start_is_of_the_very_boot() {
    let Some(host) = Host::new() else { return };
    let mut domid = 7;
    let mut booted = |boot| {
        domid += 1;
        let mut guest = host.boot_measured(domid, boot);
        let booted = guest.booted();
        host.shut_down(guest, Reason::Reboot);
        booted
    };
    let first = booted(BOOT);
    assert_eq!(booted(BOOT), first, "after a reboot");
    let kernel = "other-vmlinuz";
    let [four, five] = booted(Boot { kernel, ..BOOT });
    assert!(four != first[0] && five == first[1], "another kernel");
    for (what, boot) in [
        (
            "cmdline",
            Boot {
                cmdline: "root=/dev/xvda rw",
                ..BOOT
            },
        ),
        (
            "initrd",
            Boot {
                initrd: Some("other-initrd"),
                ..BOOT
            },
        ),
        (
            "no initrd",
            Boot {
                initrd: None,
                ..BOOT
            },
        ),
        (
            "neither",
            Boot {
                initrd: None,
                cmdline: "",
                ..BOOT
            },
        ),
    ] {
        let [four, five] = booted(boot);
        assert!(four == first[0] && five != first[1], "{what}");
    }
}

/// Twice would be as bad as not at all.
#[test]
fn measured_start_is_once() {
    let Some(host) = Host::new() else { return };
    let mut guest = host.boot_measured(7, BOOT);
    let (booted, log) = (guest.booted(), host.offered_log(7));
    let same = |host: &Host, guest: &mut Guest, domid, when: &str| {
        assert_eq!(guest.booted(), booted, "{when}");
        assert_eq!(host.offered_log(domid), log, "{when}");
    };

    let worker = host.worker(7);
    signal(worker, Signal::Kill);
    assert!(wait_for(LIMIT, || host
        .processes("serve", Some(7))
        .iter()
        .any(|p| *p != worker)));
    guest.await_backend("4");
    same(&host, &mut guest, 7, "another worker");

    host.end_manager(Signal::Term);
    host.start();
    guest.reconnect();
    same(&host, &mut guest, 7, "another manager and connection");

    // Its kernel may be gone by then.
    assert!(host.save(guest));
    fs::remove_file(host.path("vmlinuz")).unwrap();
    host.build(
        8,
        Boot {
            kernel: "other",
            ..BOOT
        },
        true,
    );
    let mut guest = host.restore(8, &uuid(7));
    same(&host, &mut guest, 8, "restored");
}

/// A worker that dies while it measures leaves a TPM that nobody uses.
#[test]
fn measured_start_is_once_where_the_worker_dies_halfway() {
    let Some(host) = Host::new() else { return };
    let mut guest = host.boot_measured(7, BOOT);
    let booted = guest.booted();
    host.shut_down(guest, Reason::Reboot);

    // The initrd takes its time: the TPM is up, and the kernel is about to be measured.
    let large = host.path("initrd-2");
    fs::File::create(&large).unwrap().set_len(4 << 30).unwrap();
    host.build(
        8,
        Boot {
            initrd: Some("initrd-2"),
            ..BOOT
        },
        true,
    );
    host.add(8, &uuid(7));
    host.await_state(8, "2");
    let swtpm = host.swtpm(8);
    host.build(8, BOOT, true);
    for worker in host.processes("serve", Some(8)) {
        signal(worker, Signal::Kill);
    }
    let mut guest = Guest::new(&host, 8);
    guest.connect();
    assert_ne!(host.swtpm(8), swtpm, "the TPM that was not up");
    assert_eq!(guest.booted(), booted);
}

#[test]
fn measured_start_of_a_pvh_guest() {
    let Some(host) = Host::new() else { return };
    let mut guest = host.boot_measured(7, BOOT);
    let booted = guest.booted();
    host.shut_down(guest, Reason::Reboot);

    mount("tmpfs", "/var/lib/xen", "tmpfs", MountFlags::empty(), "").unwrap();
    host.build(8, BOOT, false);
    host.add(8, &uuid(7));
    // libxl waits for this before it writes what the guest is made of.
    host.await_state(8, "2");
    let mut guest = Guest::new(&host, 8);
    guest.offer();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(host.backend_state(8).as_deref(), Some("2"));
    host.configured(8, BOOT);
    guest.await_backend("4");
    guest.show("4");
    assert_eq!(guest.booted(), booted);
}

/// What cannot be measured is told apart, and the guest cannot make it look as if it had been.
#[test]
fn measured_start_that_cannot_be() {
    let Some(host) = Host::new() else { return };
    let separator = {
        let mut guest = host.boot_measured(7, BOOT);
        let separator = guest.pcr(7);
        host.shut_down(guest, Reason::Reboot);
        separator
    };
    let remove = |node: &'static str| host.store.remove(&format!("/vm/{VM}/{node}"));
    let cases: [(&str, &dyn Fn()); 6] = [
        ("no /vm", &|| host.store.remove("/local/domain/8/vm")),
        ("no kernel named", &|| remove("image/kernel")),
        ("HVM", &|| {
            host.store.write(&format!("/vm/{VM}/image/ostype"), "hvm")
        }),
        ("pygrub", &|| {
            host.store
                .write(&format!("/vm/{VM}/image/kernel"), "/run/xen/boot_kernel.x")
        }),
        ("changed", &|| {
            host.store
                .write(&format!("/vm/{VM}/start_time"), "1700000000.00")
        }),
        ("initrd is a FIFO", &|| {
            let path = host.path("fifo");
            let mode = rustix::fs::Mode::RUSR;
            let kind = rustix::fs::FileType::Fifo;
            rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, 0).unwrap();
            host.store
                .write(&format!("/vm/{VM}/image/ramdisk"), path.to_str().unwrap());
        }),
    ];
    let mut seen = None;
    for (case, spoil) in cases {
        host.build(8, BOOT, true);
        spoil();
        let mut guest = host.boot(8, &uuid(7));
        let [four, five] = guest.booted();
        assert_eq!(five, separator, "{case}");
        assert_ne!(four, separator, "{case}");
        assert_eq!(*seen.get_or_insert(four.clone()), four, "{case}");
        let (text, _) = host.replay(&host.offered_log(8));
        assert!(
            text.contains(&hex(b"Xen: kernel not measured")),
            "{case}: {text}"
        );
        host.shut_down(guest, Reason::Reboot);
        let log = host.log();
        let told = log
            .lines()
            .filter(|line| line.contains("the guest is not measured"));
        assert!(told.count() > 0, "{case}: {log}");
    }
    assert_eq!(
        host.log().matches("the guest is not measured").count(),
        cases.len()
    );
}

/// What a restored guest has booted is not known, unless its TPM goes on.
#[test]
fn measured_start_is_not_of_a_guest_that_is_restored() {
    let Some(host) = Host::new() else { return };
    let mut guest = host.boot_measured(7, BOOT);
    let booted = guest.booted();
    host.shut_down(guest, Reason::Reboot);
    host.build(8, BOOT, true);
    let mut guest = host.restore(8, &uuid(7));
    assert_ne!(guest.booted()[0], booted[0]);
    assert!(host.log().contains("it is restored"), "{}", host.log());
}

#[test]
fn measured_start_where_it_is_required() {
    let Some(host) = Host::bare("[tpm]\nmeasure = \"required\"\n") else {
        return;
    };
    host.start();
    host.build(7, BOOT, true);
    host.store
        .write(&format!("/vm/{VM}/image/kernel"), "/nowhere/vmlinuz");
    host.add(7, &uuid(7));
    // libxl takes a node that is gone for a failure, and does not wait until its timeout.
    assert!(wait_for(LIBXL, || host.backend_state(7).is_none()));
    let error = host.error(7);
    assert!(error.contains("/nowhere/vmlinuz is not there"), "{error}");
    assert!(host.destroy(7) || host.backend_state(7).is_none());

    let guest = host.boot_measured(8, BOOT);
    assert!(host.save(guest));
    // A guest that goes on was measured when it booted.
    host.build(9, BOOT, true);
    host.store
        .write(&format!("/vm/{VM}/image/kernel"), "/nowhere/vmlinuz");
    host.restore(9, &uuid(7));
}

/// The kernel that is allowed is found by what is in it, whichever banks the TPM has; another one is measured and
/// told, or has no TPM.
#[test]
fn measured_start_of_allowed_kernels() {
    let output = Command::new("sh")
        .args([
            "-c",
            "yes vmlinuz | head -n 100000 | tr -d '\\n' | sha256sum",
        ])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (digest, _) = text.split_once(' ').unwrap();
    let other = Boot {
        kernel: "other",
        ..BOOT
    };
    for version in ["1.2", "2.0"] {
        for measure in ["try", "required"] {
            let config = format!(
                "[tpm]\nversion = \"{version}\"\nmeasure = \"{measure}\"\nallowed-kernels = [\"{digest}\"]\n"
            );
            let Some(host) = Host::bare(&config) else {
                return;
            };
            host.start();
            let guest = host.boot_measured(7, BOOT);
            assert!(!host.log().contains("allowed-kernels"), "{}", host.log());
            host.shut_down(guest, Reason::Reboot);

            match measure {
                "try" => {
                    let _guest = host.boot_measured(8, other);
                    let log = host.offered_log(8);
                    assert!(log.windows(6).any(|bytes| bytes == b"kernel"));
                    let told = "the guest does not boot one of allowed-kernels: ";
                    assert!(host.log().contains(told), "{}", host.log());
                }
                _ => {
                    host.build(8, other, true);
                    host.add(8, &uuid(7));
                    assert!(wait_for(LIBXL, || host.backend_state(8).is_none()));
                    let error = host.error(8);
                    assert!(error.contains("/other, whose SHA-256 is "), "{error}");
                }
            }
        }
    }
}

/// Nobody knows what a guest is by then whose TPM died.
#[test]
fn measured_start_is_not_of_a_guest_that_ran() {
    let Some(host) = Host::bare("[tpm]\non-death = \"restart\"\n") else {
        return;
    };
    host.start();
    let mut guest = host.boot_measured(7, BOOT);
    let booted = guest.booted();
    let swtpm = host.swtpm(7);
    signal(swtpm, Signal::Kill);
    assert!(wait_for(LIMIT, || host.backend_state(7).as_deref() != Some("4")));
    guest.show("6");
    guest.connect();
    assert_ne!(guest.booted()[0], booted[0]);
    assert!(host.log().contains("its TPM was lost"), "{}", host.log());
}

#[test]
fn no_measured_start() {
    let Some(host) = Host::bare("[tpm]\nmeasure = \"off\"\n") else {
        return;
    };
    host.start();
    let mut guest = host.boot_measured(7, BOOT);
    for pcr in 0..8 {
        assert_eq!(guest.pcr(pcr), [0; 32], "PCR {pcr}");
    }
    assert!(host.offered_log(7).is_empty());
    let output = host.cli(&["eventlog", &uuid(7)]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("has no event log"));
}

/// For this boot, and for no other.
#[test]
fn measured_start_opens_what_is_sealed_to_it() {
    let Some(host) = Host::new() else { return };
    let mut guest = host.boot_measured(7, BOOT);
    guest.seal();
    host.shut_down(guest, Reason::Reboot);

    let opens = |domid, boot| {
        let mut guest = host.boot_measured(domid, boot);
        let opens = guest.opens();
        host.shut_down(guest, Reason::Reboot);
        opens
    };
    assert!(opens(8, BOOT), "after a reboot");
    assert!(!opens(
        9,
        Boot {
            kernel: "other-vmlinuz",
            ..BOOT
        }
    ));
    assert!(!opens(
        10,
        Boot {
            cmdline: "init=/bin/sh",
            ..BOOT
        }
    ));
    assert!(!opens(
        11,
        Boot {
            initrd: Some("other-initrd"),
            ..BOOT
        }
    ));

    let guest = host.boot_measured(12, BOOT);
    assert!(host.save(guest));
    host.build(13, BOOT, true);
    let mut guest = host.restore(13, &uuid(7));
    assert!(guest.opens(), "after a restore");
    signal(host.worker(13), Signal::Kill);
    host.end_manager(Signal::Term);
    host.start();
    assert!(wait_for(LIMIT, || host.processes("io", Some(13)).len() == 1));
    guest.reconnect();
    assert!(guest.opens(), "after a restart of worker and manager");
}
