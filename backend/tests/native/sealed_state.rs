// SPDX-License-Identifier: GPL-2.0

//! `sealed_state`: states whose key is sealed to the host's TPM, or comes from a command.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

use crate::boots::hex;
use crate::host::{stdout_of, wait_for, Host, LIMIT};
use crate::host_tpm::HostTpm;
use crate::toolstack::{uuid, LIBXL};
use crate::tpm::GET_RANDOM;

impl Host {
    /// Sealed to PCR 7. Gives the recovery key.
    fn seal(&self) -> String {
        let said = self.cli_ok(&["seal", "--pcrs", "7"]);
        said.trim().rsplit(' ').next().unwrap().to_owned()
    }

    fn fails(&self, arguments: &[&str]) -> String {
        let output = self.cli(arguments);
        assert!(!output.status.success(), "{arguments:?} succeeds");
        String::from_utf8(output.stderr).unwrap()
    }

    fn recover(&self, key: &str) -> (bool, String) {
        let mut child = self
            .command(&["recover", "--pcrs", "7"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        writeln!(child.stdin.take().unwrap(), "{key}").unwrap();
        let output = child.wait_with_output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(said).unwrap())
    }

    /// The vTPM works, with the state that it had.
    fn works(&self, domid: u16) {
        let mut guest = self.boot(domid, &uuid(7));
        guest.done(&GET_RANDOM);
        assert_eq!(guest.counter(), 1);
        drop(guest);
        assert!(self.destroy(domid));
    }

    /// xl fails at once, and is told why.
    fn is_refused(&self, domid: u16, wanted: &str) {
        self.add(domid, &uuid(7));
        assert!(wait_for(LIBXL, || self.backend_state(domid).is_none()));
        let error = self.error(domid);
        assert!(
            error.contains(wanted) && error.contains("xen-vtpmd recover"),
            "{error}"
        );
        self.destroy(domid);
    }
}

/// Who says which values of a PCR are good, as systemd-measure(1) does: by a signature of the policy that they
/// make, where systemd looks for it.
struct Signer {
    private: PathBuf,
    public: PathBuf,
    folder: PathBuf,
}

impl Signer {
    fn new(host: &Host) -> Self {
        let folder = host.path("signer");
        let _ = fs::create_dir(&folder);
        let [private, public] = ["private.pem", "public.pem"].map(|name| folder.join(name));
        stdout_of(
            Command::new("openssl")
                .args(["genrsa", "-out"])
                .arg(&private),
        );
        let mut public_key = Command::new("openssl");
        public_key.args(["rsa", "-pubout", "-in"]).arg(&private);
        stdout_of(public_key.arg("-out").arg(&public));
        Self {
            private,
            public,
            folder,
        }
    }

    /// The PCR as it is now.
    fn signs(&self, tpm: &HostTpm<'_>, pcr: u8) {
        // The kernel's resource manager would end the sessions of a program that failed.
        tpm.tpm2("tpm2_flushcontext", &["-l"]);
        let policy = self.folder.join("policy");
        let bank = format!("sha256:{pcr}");
        let file = policy.to_str().unwrap();
        tpm.tpm2(
            "tpm2_createpolicy",
            &["--policy-pcr", "-l", &bank, "-L", file],
        );
        let mut sign = Command::new("openssl");
        sign.args(["dgst", "-sha256", "-sign"])
            .arg(&self.private)
            .arg(&policy);
        let signature = self.folder.join("signature");
        fs::write(&signature, stdout_of(&mut sign)).unwrap();
        let base64 = stdout_of(Command::new("base64").arg("-w0").arg(&signature));
        let mut der = Command::new("openssl");
        der.args(["rsa", "-pubin", "-RSAPublicKey_out", "-outform", "DER"]);
        der.arg("-in").arg(&self.public);
        let text = format!(
            r#"{{"sha256":[{{"pcrs":[{pcr}],"pkfp":"{}","pol":"{}","sig":"{}"}}]}}"#,
            hex(&Sha256::digest(stdout_of(&mut der))),
            hex(&fs::read(&policy).unwrap()),
            String::from_utf8(base64).unwrap()
        );
        fs::create_dir_all("/run/systemd").unwrap();
        fs::write("/run/systemd/tpm2-pcr-signature.json", text).unwrap();
    }
}

fn sealed_host() -> Option<Host> {
    let host = Host::bare("")?;
    host.configure(&format!("[tpm]\nkey-file = {:?}", host.path("key")));
    Some(host)
}

#[test]
fn sealed_state_opens_on_this_host_in_this_state() {
    let Some(host) = sealed_host() else { return };
    let mut tpm = HostTpm::new(&host);
    let recovery = host.seal();
    assert_eq!(recovery.len(), 64, "{recovery}");
    host.start();
    let mut guest = host.boot(7, &uuid(7));
    guest.define_counter();
    // Also while it runs.
    assert!(host
        .cli_ok(&["info", &uuid(7)])
        .contains("BEGIN PUBLIC KEY"));
    drop(guest);
    assert!(host.destroy(7));

    // It reboots, and what it is not sealed to differs.
    tpm.power_on();
    tpm.measure(8);
    assert!(host.cli_ok(&["unseal-check"]).contains("sealed to PCRs 7"));
    host.works(8);

    // It boots something else.
    tpm.measure(7);
    assert!(host.fails(&["unseal-check"]).contains("PCR 7 is "));
    host.is_refused(9, "PCR 7 is ");
    tpm.power_on();
    host.works(10);

    // It is the TPM that keeps the key, whatever the kernel shows.
    tpm.measure_unseen(7);
    let said = host.fails(&["unseal-check"]);
    assert!(said.contains("or is in another state"), "{said}");

    // The key is in no file, and no log.
    let grep = Command::new("grep")
        .args(["-rlI", &recovery])
        .args([
            host.path("log"),
            host.path("key"),
            host.state_dir(),
            "/run".into(),
        ])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(grep.stdout).unwrap(), "");
}

#[test]
fn sealed_state_after_the_tpm_was_cleared() {
    let Some(host) = sealed_host() else { return };
    let mut tpm = HostTpm::new(&host);
    let recovery = host.seal();
    host.start();
    let mut guest = host.boot(7, &uuid(7));
    guest.define_counter();
    drop(guest);
    assert!(host.destroy(7));

    // No TPM, as on another machine.
    fs::rename("/sys/class/tpm/tpm0", "/sys/class/tpm/none").unwrap();
    host.is_refused(8, "this host has no TPM");
    fs::rename("/sys/class/tpm/none", "/sys/class/tpm/tpm0").unwrap();

    // Another one: PCRs are the same, and only the TPM itself says so.
    tpm.power_off();
    fs::remove_dir_all(host.path("tpm")).unwrap();
    fs::create_dir(host.path("tpm")).unwrap();
    tpm.power_on();
    assert!(host
        .fails(&["unseal-check"])
        .contains("the TPM was cleared"));
    host.add(9, &uuid(7));
    let error = || host.error(9);
    assert!(
        wait_for(LIMIT, || error().contains("the TPM was cleared")),
        "{}",
        error()
    );
    host.destroy(9);

    let other = "0".repeat(64);
    assert!(!host.recover("none").0);
    let (done, said) = host.recover(&other);
    assert!(!done && said.contains("had the key"), "{said}");
    let (done, said) = host.recover(&recovery);
    assert!(done && !said.contains(&recovery), "{said}");
    host.works(10);
}

/// What was there before is moved, and an existing key stays the key.
#[test]
fn sealed_state_of_what_was_there() {
    let Some(host) = sealed_host() else { return };
    let _tpm = HostTpm::new(&host);
    host.configure("");
    host.start();
    let mut guest = host.boot(7, &uuid(7));
    guest.define_counter();
    drop(guest);
    assert!(host.destroy(7));
    host.end_manager(rustix::process::Signal::Term);

    let key = host.path("key");
    fs::write(&key, "1f".repeat(32) + "\n").unwrap();
    fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
    host.configure(&format!("[tpm]\nkey-file = {key:?}"));
    assert!(host.fails(&["unseal-check"]).contains("is not sealed"));
    assert_eq!(host.seal(), "1f".repeat(32));
    assert!(!fs::read_to_string(&key).unwrap().contains("1f1f1f1f"));
    assert!(!host.seal().contains("1f1f1f1f"), "shown again");
    assert!(host.fails(&["info", &uuid(7)]).contains("in the clear"));
    host.cli_ok(&["rekey", "--all"]);
    assert!(host.cli_ok(&["rekey", "--all"]).contains("nothing to do"));
    host.start();
    host.works(8);
}

/// The host is upgraded: who signs the PCRs that its new kernel gives need not know the key.
#[test]
fn sealed_state_by_a_signed_policy() {
    let Some(host) = sealed_host() else { return };
    let mut tpm = HostTpm::new(&host);
    let signer = Signer::new(&host);
    let public = signer.public.to_str().unwrap();
    assert!(host
        .fails(&["seal", "--public-key", public])
        .contains("--public-key-pcrs"));
    tpm.measure(8);
    signer.signs(&tpm, 8);
    let said = host.cli_ok(&["seal", "--public-key", public, "--public-key-pcrs", "8"]);
    assert!(said.contains("sealed to signed PCRs 8 of"), "{said}");
    host.start();
    let mut guest = host.boot(7, &uuid(7));
    guest.define_counter();
    drop(guest);
    assert!(host.destroy(7));

    // Another kernel, which nobody has signed yet.
    tpm.measure(8);
    let said = host.fails(&["unseal-check"]);
    assert!(said.contains("there may be no signature"), "{said}");
    signer.signs(&tpm, 8);
    assert!(host.cli_ok(&["unseal-check"]).contains("opens"));
    host.works(8);

    // Somebody else has.
    tpm.power_on();
    Signer::new(&host).signs(&tpm, 8);
    host.fails(&["unseal-check"]);
}

/// A key that is neither on this disk nor in a TPM.
#[test]
fn sealed_state_by_a_command() {
    let Some(host) = sealed_host() else { return };
    let command = |text: &str| {
        let key = host.path("key");
        let _ = fs::remove_file(&key);
        fs::write(&key, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&key, PermissionsExt::from_mode(0o700)).unwrap();
    };
    command(&format!("echo {}", "1f".repeat(32)));
    host.start();
    let mut guest = host.boot(7, &uuid(7));
    guest.define_counter();
    drop(guest);
    assert!(host.destroy(7));
    assert!(host.cli_ok(&["rekey", "--all"]).contains("nothing to do"));
    host.works(8);

    for (text, wanted) in [
        ("echo no network >&2; exit 3", "no network"),
        ("echo 1f", "64 hex digits are expected"),
        (&format!("echo {}", "2f".repeat(32)), "encrypted by the key"),
    ] {
        command(text);
        let said = host.fails(&["info", &uuid(7)]);
        assert!(said.contains(wanted), "{said}");
        host.add(9, &uuid(7));
        let error = || host.error(9);
        assert!(wait_for(LIMIT, || error().contains(wanted)), "{}", error());
        host.destroy(9);
    }
}

#[test]
fn sealed_state_without_a_tpm() {
    let Some(host) = sealed_host() else { return };
    let mut tpm = HostTpm::new(&host);
    tpm.power_off();
    let said = host.fails(&["seal"]);
    assert!(said.contains("sealing the key-file"), "{said}");
    assert!(!host.path("key").exists());
    host.configure("");
    assert!(host.fails(&["seal"]).contains("no key-file is configured"));
}
