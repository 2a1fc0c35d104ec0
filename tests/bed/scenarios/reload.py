# SPDX-License-Identifier: GPL-2.0
"""Loading and unloading the driver again and again, with two processors."""

SETS = ("test", "compare")


def run(bed, check="reload_20", limit=600):
    """Two processors, since it is there that the device gets lost."""
    vtpm = bed.vtpm("2.0")
    bed.boot([vtpm], cpus=2)
    with bed.guest("reload", [vtpm], vcpus=2) as guest:
        bed.checks(guest, "module_loads")
        bed.checks(guest, check, limit=limit)
