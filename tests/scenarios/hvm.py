# SPDX-License-Identifier: GPL-2.0
"""An HVM guest with PV drivers, by Debian's device model, and a TPM of each version: the checks of
a PVH guest, save and restore, hotplug."""

from testbed import guest_checks, images
from testbed.report import Failure
from testbed.toolstack import attach, detach, save_and_restore

SETS = ("deep",)
NEEDS = ("HVM",)

CHECKS = (
    "tpm20_is_found",
    "tpm2_pcrextend",
    "hwrng",
    "locality_arrives",
    "two_vtpms",
    "reload_1",
)
# QEMU starts what Debian has in /boot, and no ELF file with an initrd.
IMAGE = "/boot/vmlinuz"
# Its firmware emulates no TPM, and QEMU emulates all of it in an emulated Xen.
OPTIONS = {
    "type": "'hvm'", "kernel": f"'{IMAGE}'", "memory": 400, "vga": "'none'", "usb": 0,
    "start_limit": 480,
}


def is_hvm(guest):
    """With the PV drivers."""
    kind = guest.must("cat /sys/hypervisor/guest_type").strip()
    if kind != "HVM":
        raise Failure(f"it is {kind}")
    return guest.must("ls /sys/bus/xen/devices").replace("\n", " ")


def is_not_measured(bed, vtpm):
    """Who boots it is its firmware."""
    log = bed.machine.must(f"xen-vtpmd eventlog {vtpm.uuid} | tr -d '\\0'")
    if "Xen: kernel not measured" not in log:
        raise Failure(log)


def run(bed):
    """One guest."""
    pair, other = [bed.vtpm("2.0"), bed.vtpm("1.2")], bed.vtpm("2.0", key=False)
    bed.boot([*pair, other], files={IMAGE: bed.kernel.vmlinuz}, more=images.add_device_model)
    with bed.guest("hvm", pair, **OPTIONS) as guest:
        bed.record("an HVM guest", is_hvm, guest)
        bed.checks(guest, *guest_checks.LOAD, *CHECKS, limit=120)
        bed.record("PCR 4 says that it is not measured", is_not_measured, bed, pair[0])
        bed.record("vtpm-attach", attach, bed, guest, other)
        bed.record("vtpm-detach", detach, bed, guest, other.uuid, 2)
        bed.checks(guest, "save_prepare")
        bed.record("save and restore", save_and_restore, bed, guest)
        bed.checks(guest, "save_kept", "save_goes_on")
