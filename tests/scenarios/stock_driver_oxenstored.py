# SPDX-License-Identifier: GPL-2.0
"""Others than ours at the ends: the stock C driver as frontend, and oxenstored in xenstored's
place."""

from testbed import toolstack

SETS = ("test",)
NEEDS = ("stock driver",)

CHECKS = (
    "stock_driver",
    "tpm12_is_found",
    "sysfs_pubek",
    "sysfs_pcrs",
    "tpm12_pcr_extend",
    "busy_device",
    "tpm_takeownership",
    "tpm_sealdata",
)


def run(bed):
    """The vTPM is attached when the driver is loaded: in a guest that has one at boot, the C driver
    loses it now and then (race T2)."""
    vtpm = bed.vtpm("1.2")
    bed.driver = "c"
    bed.boot([vtpm], options="bed.oxenstored")
    bed.machine.must("pidof oxenstored && ! pidof xenstored")
    with bed.guest("stock", [], options="bed.tpms=1.2") as guest:
        guest.must(". /bed/lib.sh; load_driver")
        bed.record("vtpm-attach", toolstack.attach, bed, guest, vtpm)
        bed.checks(guest, *CHECKS)
        bed.record("vtpm-detach", toolstack.detach, bed, guest, vtpm.uuid, 0)
