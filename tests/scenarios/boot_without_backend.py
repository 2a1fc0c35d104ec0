# SPDX-License-Identifier: GPL-2.0
"""A guest that boots, and loads the driver, while there is no backend: the TPM comes when that
comes, by itself."""

import time

from testbed.guest_scripts import THERE, WORKS, in_guest

SETS = ("deep", "compare")

# The C driver's device is essential, and xenbus waits 300 s for it.
LOADS = 420


def comes(bed, guest):
    """The backend is there some time later."""
    time.sleep(5)
    bed.start_backend()
    start = time.monotonic()
    in_guest(guest, f"{THERE.format('tpm0')}; {WORKS}")
    return f"{time.monotonic() - start:.1f} s later"


def run(bed):
    """What a backend that refuses does to a guest is in the scenarios bind_unbind and
    hostile_backend_deep."""
    vtpm = bed.vtpm("1.2" if bed.driver == "c" else "2.0")
    bed.boot([vtpm])
    guest = bed.new_guest(
        "absent", [vtpm], options=f"bed.driver={bed.driver} bed.tpms={vtpm.version}"
    )
    # xl wants a backend to make the guest.
    bed.record(
        "a guest boots without a backend",
        guest.start,
        lambda: bed.stop_backend("kill -9 $(pidof xen-vtpmd)"),
    )
    bed.checks(guest, "loads_without_an_answer", limit=LOADS)
    bed.record("the TPM comes with the backend", comes, bed, guest)
    bed.checks(guest, *bed.last_checks())
    bed.record("shuts down", guest.shutdown)
