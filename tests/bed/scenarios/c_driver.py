# SPDX-License-Identifier: GPL-2.0
"""The stock C driver with our backend: its TPM 1.2 works as with ours."""

from bed.scenarios import guests

SETS = ("test",)


def run(bed):
    """The vTPM is attached when the driver is loaded: in a guest that has one at boot, the C driver
    loses it now and then (race T2)."""
    vtpm = bed.vtpm("1.2")
    bed.driver = "c"
    bed.boot([vtpm])
    with bed.guest("stock", [], options="bed.tpms=1.2") as guest:
        guest.must(". /bed/lib.sh; load_driver")
        bed.machine.must(f"xl vtpm-attach stock uuid={vtpm.uuid} backend=0", 60)
        guest.vtpms.append(vtpm)
        bed.checks(guest, "stock_driver", *guests.TPM12, "partial_reads", "busy_device", *guests.TROUSERS)
