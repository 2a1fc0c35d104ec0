# SPDX-License-Identifier: GPL-2.0
"""A module makes the mistakes that the debug kernel is to report: it does, and the checks see
that."""

from testbed.report import Failure

SETS = ("debug",)

# By the mistake, what the report of it says. Any report of lockdep's or KASAN's is lockdep's end,
# and without lockdep the check does not come to look for leaks.
MISTAKES = {"leak": "unreferenced object", "order": "possible circular locking",
            "bounds": "KASAN: slab-out-of-bounds", "freed": "KASAN: slab-use-after-free",
            "index": "UBSAN: array-index-out-of-bounds", "sleep": "sleeping function called"}


def made(guest, mistake, wanted):
    """The checks at a guest's end fail for it."""
    guest.must("dmesg -c >/dev/null")
    guest.must(f"modprobe mistakes mistake={mistake}; rmmod mistakes")
    outputs = []
    # The second one looks for leaks, which takes a minute.
    for name in ("kernel_log", "debug_reports"):
        outcome = guest.check(name, 180)
        if outcome.code not in (0, 77) and wanted in outcome.output:
            break
        outputs.append(outcome.output[-500:])
    else:
        raise Failure(f"no check fails with '{wanted}': {outputs}")
    guest.must("echo clear >/sys/kernel/debug/kmemleak")


def run(bed):
    """The guest is thrown away."""
    bed.boot([])
    # KASAN reports one mistake alone if it is not told otherwise.
    guest = bed.new_guest("mistakes", options="kasan_multi_shot")
    guest.start()
    for mistake, wanted in MISTAKES.items():
        bed.record(f"mistakes: {mistake}", made, guest, mistake, wanted)
    guest.destroy()
