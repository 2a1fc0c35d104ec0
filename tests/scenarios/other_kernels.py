# SPDX-License-Identifier: GPL-2.0
"""The same module source on the other stock kernels that the archive has."""

from testbed import guest_checks, guest_resources
from testbed.guest_scripts import WORKS, in_guest

SETS = ("test",)
OTHER_KERNELS = True


def kept(bed, guest):
    """The driver is unbound while the backend, which is stopped, has the page mapped: the kernel
    keeps the page back until the backend lets it go, and then has it again."""
    before = guest_resources.take(guest)
    bed.machine.must("kill -STOP $(pidof xen-vtpmd)")
    try:
        in_guest(guest, "echo vtpm-0 >/sys/bus/xen/drivers/vtpm/unbind")
    finally:
        bed.machine.must("kill -CONT $(pidof xen-vtpmd)")
    in_guest(
        guest,
        "echo vtpm-0 >/sys/bus/xen/drivers/vtpm/bind; wait_for 30 test -c /dev/tpm0;"
        f" wait_for 30 sh -c '{WORKS.replace('$tpm', '/sys/class/tpm/tpm0')}'",
    )
    return guest_resources.same(before, guest)


def run(bed):
    """What could differ between kernels: binding, sysfs, the TPM core's calls, unloading, and what
    Xen's page is of the kernel's own."""
    vtpms = [bed.vtpm("1.2"), bed.vtpm("2.0")]
    bed.boot(vtpms)
    with bed.guest("tpm12", vtpms[:1]) as guest:
        bed.checks(guest, *guest_checks.LOAD, "tpm12_is_found", "tpm12_pcr_extend", "sysfs_pcrs")
    with bed.guest("tpm20", vtpms[1:]) as guest:
        bed.checks(
            guest,
            *guest_checks.LOAD,
            "tpm20_is_found",
            "tpm2_getcap",
            "tpm2_pcrextend",
            "hwrng",
            "tpm20_cancel_while_a_key_is_made",
            *guest_checks.COMMON,
            "reload_5"
        )
        bed.record("a page that the backend keeps comes back", kept, bed, guest)
