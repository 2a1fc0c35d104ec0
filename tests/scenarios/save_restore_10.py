# SPDX-License-Identifier: GPL-2.0
"""A guest is saved and restored ten times with its TPM: each time it is the same device, and
nothing is left over."""

from testbed import guest_resources
from testbed.toolstack import save_and_restore

# In no set: random_lifecycle saves and restores, too, and looks for what is left.
SETS = ()
NEEDS = ("save",)

TIMES = 10


def run(bed):
    """What the TPM keeps is compared each time."""
    vtpm = bed.vtpm("2.0")
    bed.boot([vtpm], dom0_memory=1792)
    with bed.guest("saves", [vtpm], memory=400) as guest:
        bed.checks(guest, "module_loads", "save_prepare")
        bed.record("the first time", save_and_restore, bed, guest)
        bed.checks(guest, "save_kept")
        before = guest_resources.take(guest)
        for number in range(1, TIMES + 1):
            bed.record(f"{number} of {TIMES}", save_and_restore, bed, guest)
            bed.checks(guest, "save_kept")
        bed.record("nothing is left", lambda: guest_resources.same(before, guest))
