# SPDX-License-Identifier: GPL-2.0
"""A Debian guest whose root is on LUKS, unlocked in the initrd by the vTPM for the measured kernel
alone: by clevis in an initrd of initramfs-tools, and by systemd-cryptenroll in one of dracut."""

import os
import re

from testbed import wait
from testbed.debian import BOOT_LIMIT, boot, ends, guest, reboots
from testbed.report import Failure
from testbed.toolstack import migrate_here, save_and_restore
from tools.package import guest_disk

SETS = ("deep",)
NEEDS = ("dom0 on a disk",)
VARIANTS = {
    "by_systemd": {"sets": ("deep",), "unlocked": guest_disk.BY_SYSTEMD},
    # In no set: ten are the same again, and a PVH guest boots twice as long as a PV guest, or more.
    "10_reboots": {"sets": (), "count": 10},
    "moved": {"sets": (), "moves": True},
}

# Of a guest that is saved into dom0's memory, and is there twice when it migrates (MiB).
MOVED_MEMORY = 768
ASKS = re.compile(rb"[Pp]lease (unlock|enter passphrase for) disk")
KEY = f"echo -n {guest_disk.PASSPHRASE} >/run/passphrase; "
# Bound to what xl has booted: the kernel in PCR 4, its command line and the initrd in PCR 5.
BIND = {
    guest_disk.BY_CLEVIS: (
        "clevis luks bind -y -d /dev/xvda -k /run/passphrase tpm2"
        """ '{"pcr_bank":"sha256","pcr_ids":"4,5"}'"""
    ),
    guest_disk.BY_SYSTEMD: (
        "systemd-cryptenroll --unlock-key-file=/run/passphrase --tpm2-device=auto"
        " --tpm2-pcrs=4+5 /dev/xvda"
    ),
}


class Console:
    """What the guest's console has had since the last look, lines that have no end among it."""

    def __init__(self, guest):
        self._guest, self._seen = guest, 0

    def has_asked(self):
        """Whether the initrd has asked for the passphrase."""
        with open(self._guest.log, "rb") as file:
            file.seek(self._seen)
            return bool(ASKS.search(file.read()))

    def forget(self):
        """What is there is old."""
        if os.path.exists(self._guest.log):
            self._seen = os.path.getsize(self._guest.log)


def asks(debian, console):
    """It stops in the initrd until somebody types the passphrase, and boots."""
    def answer():
        wait.until(console.has_asked, BOOT_LIMIT, "no question for the passphrase", pause=1)
        debian.type(guest_disk.PASSPHRASE)

    console.forget()
    debian.start(meanwhile=answer)
    return debian.must("findmnt -no SOURCE /").strip()


def is_unlocked(bed, debian, console):
    """After a reboot, by nobody's hand."""
    console.forget()
    reboots(bed, debian)
    source = debian.must("findmnt -no SOURCE /").strip()
    if source != "/dev/mapper/root":
        raise Failure(f"the root is {source}")
    return "asked first" if console.has_asked() else "not asked"


def moved(bed, debian, console):
    """It reboots when it was saved and restored, and when it has migrated."""
    bed.record("it is saved and restored", save_and_restore, bed, debian)
    bed.record("and reboots: it is unlocked", is_unlocked, bed, debian, console)
    bed.record("xl migrate", migrate_here, bed.machine, debian)
    bed.record("it has its TPM", debian.must, "tpm2_getrandom --hex 8")
    debian.forget_migration()
    bed.record("and reboots after that: it is unlocked", is_unlocked, bed, debian, console)


def prepare():
    """What is not made on the testbed."""
    guest_disk.base()


def run(bed, unlocked=guest_disk.BY_CLEVIS, count=1, moves=False):
    """One guest, started twice and rebooted so many times; the backend is restarted before the
    first. Xen as Debian builds it saves and migrates no PV guest."""
    more = {"type": "'pvh'", "memory": MOVED_MEMORY} if moves else {}
    vtpm = bed.vtpm("2.0")
    boot(bed, [vtpm], unlocked=unlocked)
    options = f"root=/dev/mapper/root {unlocked[1]}"
    debian = guest(bed, [vtpm], options, **more)
    console = Console(debian)
    bed.record("unbound: it asks for the passphrase", asks, debian, console)
    bed.record("the root is bound to PCRs 4 and 5", debian.must, KEY + BIND[unlocked], 300)
    bed.stop_backend()
    bed.start_backend()
    bed.record("xl reboot: it is unlocked", is_unlocked, bed, debian, console)
    for number in range(2, count + 1):
        bed.record(f"reboot {number}: it is unlocked", is_unlocked, bed, debian, console)
    if moves:
        moved(bed, debian, console)
    bed.record("it shuts down", ends, debian)
    other = guest(bed, [vtpm], f"{options} other", **more)
    bed.record("another command line: it asks for the passphrase", asks, other, Console(other))
    bed.record("and shuts down", ends, other)
