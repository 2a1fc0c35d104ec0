# SPDX-License-Identifier: GPL-2.0
"""On the debug kernel each allocation, and each call of Xen's and the TPM core's, fails once: the
driver goes on."""

import re

from testbed import guest_resources
from testbed.report import Failure

SETS = ("debug",)

# More allocations than a reconnect has, and how many of them fail: each takes a new backend, and
# half a minute.
MANY, MOST = 100000, 2
# A port may be lost where its interrupt's descriptor has no memory: the driver cannot tell whether
# the kernel has closed it, and another's may be there by then (src/xen/event.rs).
LOST = {"event channels": 1}


def works(guest, seconds):
    """Whether the TPM answers, in that time."""
    script = "until python3 -E -s /bed/tpm.py works 2>/dev/null; do sleep 0.3; done"
    limit = f"$(({seconds} * SLOWNESS))"
    return guest.run(f"timeout {limit} sh -c '{script}'", seconds + 30).code == 0


def another_backend(bed, guest, number):
    """The backend goes, and another one comes, while the n-th of the driver's allocations fails.
    Returns whether there is a connection then, and how many allocations were missing to that."""
    guest.must(f"python3 -E -s /bed/faults.py watch {number}")
    bed.stop_backend()
    bed.start_backend()
    first = works(guest, 20)
    return first, int(
        re.search(r"left (\d+)", guest.must("python3 -E -s /bed/faults.py watched"))[1]
    )


def reconnect(bed, guest):
    """Allocations of taking leave of a backend and of an offer to the next one, spread over all
    there are."""
    first, left = another_backend(bed, guest, MANY)
    if not first and not works(guest, 60):
        raise Failure("nothing failed, and yet the TPM does not work")
    total, outcomes = MANY - left, []
    for number in range(1, total + 1, -(-total // MOST)):
        first, left = another_backend(bed, guest, number)
        if left:
            continue
        outcomes.append(first)
        if not first:
            bed.stop_backend()
            bed.start_backend()
            if not works(guest, 60):
                raise Failure(
                    f"{number} of {total}: after the failed allocation, the next connection does"
                    " not come about"
                )
    if not outcomes:
        raise Failure(f"none of the {total} allocations failed")
    return (
        f"{len(outcomes)} failures of {total}, of which {outcomes.count(False)} needed another"
        " connection"
    )


def run(bed):
    """Each walk in the one guest, whose kernel then looks for what was leaked."""
    vtpm = bed.vtpm("2.0")
    bed.boot([vtpm], config='on-death = "restart"')
    with bed.guest("faults", [vtpm]) as guest:
        bed.checks(guest, "module_loads")
        before = guest_resources.take(guest)
        bed.checks(
            guest,
            "faults_send",
            "faults_unbind",
            "faults_functions",
            "faults_bind",
            "faults_load",
            limit=600,
        )
        bed.record("faults: reconnect", reconnect, bed, guest)
        bed.record("faults: nothing is left", lambda: guest_resources.same(before, guest, LOST))
        bed.checks(guest, "faults_known")
