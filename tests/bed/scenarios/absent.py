# SPDX-License-Identifier: GPL-2.0
"""A guest that boots, and loads the driver, while there is no backend: the TPM comes when that comes, by itself."""

import time

from bed.guest import Guest
from bed.scenarios.hotplug import THERE, WORKS, in_guest
from harness.report import Failure

SETS = ("deep", "compare")

# The driver waits 10 s for a backend, and xenbus 30 s for a device that is not essential; for one that is, 300 s.
LOADS = 60.0


def loads(guest):
    """The module loads, and there is no TPM."""
    start = time.monotonic()
    in_guest(guest, "load_driver", 400)
    seconds = time.monotonic() - start
    said = in_guest(guest, "dmesg | grep -i vtpm | tail -n 2; is \"the TPMs\" \"$(ls /sys/class/tpm)\" ''")
    if seconds > LOADS:
        raise Failure(f"it took {seconds:.0f} s: {said}")
    return f"{seconds:.0f} s: {said}"


def comes(bed, guest):
    """The backend is there some time later."""
    time.sleep(5)
    bed.start_backend()
    start = time.monotonic()
    in_guest(guest, f"{THERE.format('tpm0')}; {WORKS}")
    return f"{time.monotonic() - start:.1f} s later"


def run(bed):
    """What a backend that refuses does to a guest is in the scenarios bindings and hostile_backend_deep."""
    vtpm = bed.vtpm("1.2" if bed.driver == "c" else "2.0")
    bed.boot([vtpm])
    guest = Guest(bed.machine, "absent", [vtpm], options=f"bed.driver={bed.driver} bed.tpms={vtpm.version}")
    # xl wants a backend to make the guest.
    bed.record("a guest boots without a backend", guest.start, lambda: bed.stop_backend("kill -9 $pid"))
    bed.record("the module loads", loads, guest)
    bed.record("the TPM comes with the backend", comes, bed, guest)
    bed.checks(guest, "kernel_log")
    bed.record("shuts down", guest.shutdown)
