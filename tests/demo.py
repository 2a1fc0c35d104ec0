# SPDX-License-Identifier: GPL-2.0
"""Shows a person what a vTPM is, in two guests: one with a TPM 1.2, and one with a TPM 2.0 that has
measured the guest's kernel, opens a volume for it, and migrates. The latter is drawn, too."""

import functools
import sys
import time

from testbed import terminal
from testbed.guest import Guest
from testbed.lacking import lacking
from testbed.machine import BedError
from testbed.picture import Picture
from testbed.toolstack import MIGRATE_HERE
from tools.steps import BUILD, step

# README has a copy of it.
PICTURE = f"{BUILD}/demo.svg"
CRYPTSETUP = {"/usr/sbin/cryptsetup": None}
# What goes over when it migrates (MiB).
MEMORY = 256

OLD = (
    (
        "the driver, by its usual name",
        (
            "modprobe xen-tpmfront; until [ -c /dev/tpm0 ]; do sleep 0.1; done; modinfo -n"
            " xen-tpmfront"
        ),
    ),
    ("what the kernel says", "dmesg | grep -i tpm | tail -n 3"),
    ("the device", "ls -l /dev/tpm0"),
    (
        "TrouSerS, the software stack for TPM 1.2, asks for the version",
        ". /bed/lib.sh; . /bed/tpm12.sh; start_tcsd; tpm_version",
    ),
    (
        "the attributes in sysfs",
        (
            "cd /sys/class/tpm/tpm0; for name in enabled active owned temp_deactivated durations"
            ' timeouts; do echo "$name: $(cat $name)"; done; head -n 3 caps; head -n 3 pubek; sed'
            " -n '1,3p' pcrs"
        ),
    ),
)
LOADED = (("the driver, by its usual name", "modprobe xen-tpmfront; modinfo -n xen-tpmfront"),)
NEW = (
    ("what the kernel says", "dmesg | grep -i tpm | tail -n 3"),
    ("the devices", "ls -l /dev/tpm0 /dev/tpmrm0"),
    (
        "PCR 4 is the kernel that xl has booted, PCR 5 its command line and initrd",
        "tpm2_pcrread sha256:4,5,16",
    ),
    (
        "the event log: the kernel",
        "tpm2_eventlog /sys/kernel/security/tpm0/binary_bios_measurements"
        " | grep -m 1 -A 8 'PCRIndex: 4'",
    ),
)
FILE = (("the kernel's file", "sha256sum /boot/vmlinux"),)
SEALED = (
    (
        "a key that the TPM gives to this kernel, command line and initrd alone",
        "head -c 32 /dev/urandom >key; tpm2_createprimary -Q -c primary.ctx; tpm2_createpolicy -Q"
        " --policy-pcr -l sha256:4,5 -L pcr.policy; tpm2_create -Q -C primary.ctx -L pcr.policy"
        " -i key -u key.pub -r key.priv; tpm2_load -Q -C primary.ctx -u key.pub -r key.priv"
        " -c sealed.ctx",
    ),
    (
        "the key of a LUKS volume",
        "truncate -s 32M disk; cryptsetup luksFormat -q --pbkdf pbkdf2"
        " --pbkdf-force-iterations 1000 disk key; rm key; cryptsetup luksDump disk | head -n 2",
    ),
    (
        "PCR 16 is extended by the hash of a word",
        "tpm2_pcrextend 16:sha256=$(printf word | sha256sum | cut -d' ' -f1); tpm2_pcrread"
        " sha256:16",
    ),
)
MOVED = (
    ("its TPM has come along", "tpm2_pcrread sha256:4,16"),
    (
        "the volume opens",
        "modprobe -a loop dm-crypt; tpm2_unseal -c sealed.ctx -p pcr:sha256:4,5 |"
        " DM_DISABLE_UDEV=1 cryptsetup open --key-file - disk volume; ls /dev/mapper/volume",
    ),
    (
        "after something else was measured it does not",
        "tpm2_pcrextend 5:sha256=$(printf other | sha256sum | cut -d' ' -f1); tpm2_unseal"
        " -c sealed.ctx -p pcr:sha256:4,5 2>&1 | grep -o 'a policy check failed'",
    ),
    (
        "from locality 0 nobody may extend PCR 17",
        "tpm2_pcrextend -T device:/dev/tpm0 17:sha256=$(printf word | sha256sum | cut -d' ' -f1)"
        " 2>&1 | grep -o 'bad locality'",
    ),
    (
        "from locality 2 it goes",
        "echo 2 >/sys/class/tpm/tpm0/locality; tpm2_pcrextend -T device:/dev/tpm0 17:sha256=$("
        "printf word | sha256sum | cut -d' ' -f1); tpm2_pcrread sha256:17",
    ),
)
MIGRATION = (
    (
        "the guest migrates, here to the same host",
        f"{MIGRATE_HERE.format('tpm20')} | tail -n 2; xl list",
    ),
)


def show(name, run, scenes, picture=None):
    """Runs the scenes, each with its commands and their output, in a guest or in dom0; draws them,
    too, where there is a picture."""
    for title, script in scenes:
        start = time.monotonic()
        code, output = run(script)
        lines = output.splitlines()
        print(f"\n--- {name}: {title} ({time.monotonic() - start:.1f} s)")
        print(f"$ {script}")
        print("\n".join("  " + line for line in lines), flush=True)
        if code:
            raise BedError(f"{name}: that ended with {code}")
        if picture:
            picture.add(f"{name}: {title}", script, lines)


def runs_in(guest):
    """What runs a script there."""
    def run(script):
        done = guest.run(script)
        return done.code, done.output
    return run


def second_guest(bed, guest):
    """What the one with the TPM 2.0 shows."""
    picture, dom0 = Picture(), functools.partial(bed.machine.run, limit=300)
    show(guest.name, runs_in(guest), LOADED, picture)
    guest.must("until [ -c /dev/tpmrm0 ]; do sleep 0.1; done")
    show(guest.name, runs_in(guest), NEW, picture)
    show("dom0", dom0, FILE, picture)
    show(guest.name, runs_in(guest), SEALED, picture)
    if not lacking("save"):
        show("dom0", dom0, MIGRATION, picture)
        guest.migrated()
    show(guest.name, runs_in(guest), MOVED, picture)
    with open(PICTURE, "w", encoding="utf-8") as file:
        file.write(picture.svg())


def shell(machine, guest, where):
    """Hands the terminal to a person."""
    print(
        f"\nA shell in {where}. Ctrl-] ends the demo"
        + (", 'exit' too." if where == "domu" else "."),
        flush=True,
    )
    if where == "dom0":
        terminal.join(f"{machine.work}/console.sock", "\n", lambda: False)
        return
    guest.type("shell")
    terminal.join(f"{machine.work}/console.sock", f"xl console {guest.name}\n\n", guest.left_shell)


def run(bed, shell_in):
    """The whole show; returns the exit code."""
    if shell_in not in (None, "", "domu", "dom0"):
        print(f"error: SHELL_IN={shell_in}: it can be domu or dom0", file=sys.stderr)
        return 2
    old, new = bed.vtpm("1.2"), bed.vtpm("2.0")
    try:
        with step("booting Xen and dom0 in QEMU, and starting the backend xen-vtpmd"):
            bed.boot([old, new], guest_files=CRYPTSETUP)
        first = Guest(bed.machine, "tpm12", [old], memory=MEMORY)
        second = Guest(bed.machine, "tpm20", [new], memory=MEMORY, type="'pvh'")
        for guest, what in ((first, "1.2"), (second, "2.0")):
            with step(f"starting a guest with a TPM {what} by 'xl create'"):
                guest.start()
        print(bed.machine.must("xl list; xl vtpm-list tpm12; xl vtpm-list tpm20"))
        show(first.name, runs_in(first), OLD)
        second_guest(bed, second)
        if shell_in:
            shell(bed.machine, second, shell_in)
    except BedError as why:
        print(f"error: {why}", file=sys.stderr)
        return 1
    finally:
        bed.stop()
    print("\nThat was it. 'make demo SHELL_IN=domu' ends in the second guest's shell.")
    return 0
