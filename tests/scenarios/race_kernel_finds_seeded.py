# SPDX-License-Identifier: GPL-2.0
"""There is a data race, in a module of Rust and then in the driver itself: the kernel that looks
for races reports it."""

from testbed import mutations
from testbed.report import Failure
from tools.steps import TOP

SETS = ("race",)

# What a command adds to and debugfs reads are no atomics any more.
PATCH = f"{TOP}/tests/inject/plain-counters.patch"
WORK = """
insmod /seeded/plain-counters.ko
for i in $(seq 300); do [ -c /dev/tpm0 ] && break; sleep 0.1; done
(while :; do cat /sys/kernel/debug/vtpm-0/counters; done) >/dev/null &
end=$(($(date +%s) + 30))
while [ $(date +%s) -lt $end ]; do cat /sys/class/tpm/tpm0/pcr-sha256/* >/dev/null; done
kill $!
"""


def reported(guest, work, wanted):
    """The check at a guest's end fails for what this work shows."""
    guest.must(work, 240)
    outcome = guest.check("race_reports", 180)
    if outcome.code in (0, 77) or wanted not in outcome.output:
        raise Failure(f"no check fails with '{wanted}': {outcome.output[-2000:]}")


def run(bed):
    """The guests are thrown away."""
    vtpm = bed.vtpm("2.0")
    bed.boot(
        [vtpm],
        guest_files={"/seeded/plain-counters.ko": mutations.build_module(bed.guest_kernel, PATCH)},
    )
    for name, vtpms, work, wanted in (
        ("module", [], "modprobe races; sleep 5; rmmod races", "races_add"),
        ("driver", [vtpm], WORK, "xen_tpmfront"),
    ):
        guest = bed.new_guest(name, vtpms)
        guest.start()
        bed.record(f"races: {name}", reported, guest, work, wanted)
        guest.destroy()
