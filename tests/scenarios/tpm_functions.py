# SPDX-License-Identifier: GPL-2.0
"""A guest with a TPM 1.2, one with a TPM 2.0, and one with both."""

from testbed import backend_resources
from testbed.guest_checks import COMMON, LOAD, SELFTESTS, TPM12, TPM20, TROUSERS
from testbed.report import Failure

SETS = ("test", "compare")

# The daemon's own processor time, as a part of swtpm's.
OWN_SHARE = 0.1
# How long a domain runs before another may run in its place, in us. Dom0's kernel counts as the
# daemon's what a guest does with the processor as soon as the daemon has notified it.
PREEMPT = "xl sched-credit2 -s -p Pool-0 -r {}"


def own_share(before, after):
    """The daemon takes little processor time beside a swtpm that has something to do, as keys to
    make."""
    share, numbers = backend_resources.share(before, after)
    if share > OWN_SHARE:
        raise Failure(f"the daemon takes too much: {numbers}")
    return numbers


def run(bed):
    """Runs the checks of each guest."""
    old, fresh, new = bed.vtpm("1.2"), bed.vtpm("1.2", key=False), bed.vtpm("2.0")
    pair = [bed.vtpm("1.2"), bed.vtpm("2.0")]
    bed.boot([old, fresh, new, *pair])
    with bed.guest("tpm12", [old, fresh]) as guest:
        bed.checks(guest, *LOAD, *TPM12, *COMMON, "tpm12_cancel_while_a_key_is_made")
        # tcsd listens on TCP, and the debug kernel has no network.
        bed.checks(guest, *(() if bed.debug else TROUSERS))
    with bed.guest("tpm20", [new]) as guest:
        bed.checks(guest, *LOAD, *TPM20, *COMMON)
        bed.machine.must(PREEMPT.format(100000))
        before = backend_resources.processor_ns(bed.machine)
        bed.checks(guest, *SELFTESTS, limit=240)
        bed.record(
            "the daemon's share of the time",
            own_share,
            before,
            backend_resources.processor_ns(bed.machine),
        )
        bed.machine.must(PREEMPT.format(1000))
    with bed.guest("two", pair) as guest:
        bed.checks(guest, "module_loads", "two_vtpms")
