# SPDX-License-Identifier: GPL-2.0
"""Shows a person what a vTPM is, in two guests: one with a TPM 1.2 and one with a TPM 2.0."""

import sys
import time

from testbed import terminal
from testbed.guest import Guest
from testbed.machine import BedError
from tools.steps import step

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
NEW = (
    (
        "the driver, by its usual name",
        (
            "modprobe xen-tpmfront; until [ -c /dev/tpmrm0 ]; do sleep 0.1; done; modinfo -n"
            " xen-tpmfront"
        ),
    ),
    ("what the kernel says", "dmesg | grep -i tpm | tail -n 3"),
    ("the devices", "ls -l /dev/tpm0 /dev/tpmrm0"),
    ("tpm2_getcap properties-fixed, the first of it", "tpm2_getcap properties-fixed | head -n 20"),
    ("tpm2_pcrread", "tpm2_pcrread sha256:0,10,16,17"),
    (
        "PCR 16 is extended by the hash of a word",
        (
            "tpm2_pcrextend 16:sha256=$(printf word | sha256sum | cut -d' ' -f1); tpm2_pcrread"
            " sha256:16"
        ),
    ),
    (
        "from locality 0 nobody may extend PCR 17",
        (
            "cat /sys/devices/vtpm-0/locality; tpm2_pcrextend -T device:/dev/tpm0"
            " 17:sha256=$(printf word | sha256sum | cut -d' ' -f1) 2>&1 | grep 0x907"
        ),
    ),
    (
        "from locality 2 it goes",
        (
            "echo 2 >/sys/devices/vtpm-0/locality; cat /sys/devices/vtpm-0/locality; tpm2_pcrextend"
            " -T device:/dev/tpm0 17:sha256=$(printf word | sha256sum | cut -d' ' -f1) &&"
            " tpm2_pcrread sha256:17; echo 0 >/sys/devices/vtpm-0/locality"
        ),
    ),
)


def show(guest, scenes):
    """Runs the scenes, each with its commands and their output."""
    for title, script in scenes:
        start = time.monotonic()
        done = guest.run(script)
        print(f"\n--- {guest.name}: {title} ({time.monotonic() - start:.1f} s)")
        print(f"$ {script}")
        print("\n".join("  " + line for line in done.output.splitlines()))
        if done.code:
            raise BedError(f"guest {guest.name}: that ended with {done.code}")


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
            bed.boot([old, new])
        first, second = Guest(bed.machine, "tpm12", [old]), Guest(bed.machine, "tpm20", [new])
        for guest, what in ((first, "1.2"), (second, "2.0")):
            with step(f"starting a guest with a TPM {what} by 'xl create'"):
                guest.start()
        print(bed.machine.must("xl list; xl vtpm-list tpm12; xl vtpm-list tpm20"))
        show(first, OLD)
        show(second, NEW)
        if shell_in:
            shell(bed.machine, second, shell_in)
    except BedError as why:
        print(f"error: {why}", file=sys.stderr)
        return 1
    finally:
        bed.stop()
    print("\nThat was it. 'make demo SHELL_IN=domu' ends in the second guest's shell.")
    return 0
