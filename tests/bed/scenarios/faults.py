# SPDX-License-Identifier: GPL-2.0
"""On the debug kernel each allocation, and each call of Xen's and the TPM core's, fails once: the driver goes on."""

import re

from harness.report import Failure

SETS = ("debug",)

# More than a reconnect has: the walk ends long before, where nothing is left to fail.
MOST = 400


def shared(bed, guest):
    """The page's grant and the port of a fresh bind. Both are given out from the lowest, or the last one freed:
    one that was leaked makes the next one another."""
    guest.must("cd /bed; python3 -E -s /bed/faults.py rebind", 60)
    folder = bed.machine.must(f"echo /local/domain/$(xl domid {guest.name})/device/vtpm/0").strip()
    return bed.machine.must(f"xenstore-read {folder}/ring-ref {folder}/event-channel").split()


def reconnect(bed, guest):
    """Every allocation of taking leave of a backend and of an offer to the next one."""
    outcomes = []
    for number in range(1, MOST):
        guest.must(f"python3 -E -s /bed/faults.py watch {number}")
        bed.stop_backend()
        bed.start_backend()
        works = "timeout 40 sh -c 'until python3 -E -s /bed/tpm.py works 2>/dev/null; do sleep 0.3; done'"
        first = guest.run(works.replace("40", "8"), 60).code == 0
        left = int(re.search(r"left (\d+)", guest.must("python3 -E -s /bed/faults.py watched"))[1])
        if left:
            if not first and guest.run(works, 90).code:
                raise Failure(f"nothing failed, and yet the TPM does not work: {outcomes}")
            return f"{number - 1} failures, of which {outcomes.count(False)} needed another connection"
        outcomes.append(first)
        if not first:
            bed.stop_backend()
            bed.start_backend()
            if guest.run(works, 90).code:
                raise Failure(f"{number}: after the failed allocation, the next connection does not come about")
    raise Failure(f"no end after {MOST} failures")


def run(bed):
    """Each walk in the one guest, whose kernel then looks for what was leaked."""
    vtpm = bed.vtpm("2.0")
    bed.boot([vtpm], config='on-death = "restart"')
    with bed.guest("faults", [vtpm]) as guest:
        bed.checks(guest, "module_loads")
        before = shared(bed, guest)
        bed.checks(guest, "faults_send", "faults_unbind", "faults_functions", "faults_bind", "faults_load", limit=600)
        bed.record("faults: reconnect", reconnect, bed, guest)
        bed.record("faults: no grant and no port is lost", same, before, bed, guest)


def same(before, bed, guest):
    """A fresh bind gets what the first one got."""
    if (after := shared(bed, guest)) != before:
        raise Failure(f"ring-ref and event-channel were {before}, and are {after}")
    return f"ring-ref and event-channel are {before} again"
