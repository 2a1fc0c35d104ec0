# SPDX-License-Identifier: GPL-2.0
"""A guest boots its own kernel from its own disk, and has its TPM: a PVH guest by GRUB in place of
a kernel, which is in PCR 4 then, and a PV guest by pygrub, of which PCR 4 says "not measured"."""

import os
import shutil

from testbed import event_log, images
from testbed.report import Failure
from testbed.toolstack import serve_disks
from tools.package import grub
from tools.steps import must

SETS = ("deep",)
NEEDS = ("GRUB for Xen",)
VARIANTS = {"by_pygrub": {"sets": ("deep",), "pygrub": True}}

IMAGE = "/boot/grub"
MENU = """
set timeout=0
menuentry 'guest' {{
    linux /boot/vmlinuz console=hvc0 earlyprintk=xen quiet rdinit=/init {options}
    initrd /boot/initrd
}}
"""
# A TPM that GRUB had left in the midst of something would not be found.
CHECKS = ("module_loads", "tpm20_is_found", "tpm2_pcrextend", "measured_seal", "measured_opens")


def make_disk(bed, options):
    """A disk with a kernel, an initrd and a menu."""
    tree = f"{bed.work}-images/disk"
    shutil.rmtree(tree, ignore_errors=True)
    os.makedirs(f"{tree}/boot/grub")
    shutil.copy(bed.kernel.vmlinuz, f"{tree}/boot/vmlinuz")
    shutil.copy(bed.write_guest_image(), f"{tree}/boot/initrd")
    with open(f"{tree}/boot/grub/grub.cfg", "w", encoding="ascii") as file:
        file.write(MENU.format(options=options))
    disk = f"{bed.work}-images/disk.img"
    must(["mke2fs", "-q", "-F", "-t", "ext2", "-d", tree, disk, "256M"], "guest.log",
         "the guest's disk cannot be made")
    return disk


def measured(bed, guest, vtpm):
    """What xl has booted is GRUB, and no initrd, and the guest runs the kernel of its disk."""
    digest = bed.machine.must(f"sha256sum {IMAGE}").split()[0]
    said = event_log.replays(bed, guest, vtpm, "kernel")
    with open(f"{bed.machine.share}/eventlog", "rb") as file:
        log = file.read()
    if bytes.fromhex(digest) not in log or b"initrd" in log:
        raise Failure(f"the log has not the digest of {IMAGE}, {digest}, or an initrd")
    guest.must("grep -q rdinit=/init /proc/cmdline")
    return said


def not_measured(bed, guest, vtpm):
    """libxl has deleted the kernel that pygrub has copied from the disk, which the guest runs."""
    said = event_log.replays(bed, guest, vtpm, "Xen: kernel not measured")
    guest.must("grep -q rdinit=/init /proc/cmdline")
    return said


def prepare():
    """What is not on the testbed."""
    grub.image()


def run(bed, pygrub=False):
    """From the disk's menu on."""
    vtpm = bed.vtpm("2.0")
    disk = make_disk(bed, "bed.driver=rust bed.tpms=2.0")
    bed.boot([vtpm], files={IMAGE: grub.image()}, disks=[disk],
             more=images.add_pygrub if pygrub else None)
    serve_disks(bed.machine)
    how = {"type": "'pvh'", "kernel": f"'{IMAGE}'"}
    if pygrub:
        # Without its menu, for which dom0 has no terminals described.
        how = {"type": "'pv'", "kernel": None, "bootloader": "'pygrub'",
               "bootloader_args": ["--quiet"]}
    with bed.guest("own", [vtpm], ramdisk=None, extra=None, disk=["phy:/dev/vda,xvda,w"],
                   **how) as guest:
        bed.checks(guest, *CHECKS)
        if pygrub:
            bed.record("PCR 4 says that it is not measured", not_measured, bed, guest, vtpm)
        else:
            bed.record("PCR 4 has GRUB", measured, bed, guest, vtpm)
