# SPDX-License-Identifier: GPL-2.0
"""Guests with a vTPM are made and destroyed again and again: dom0 has the processes, descriptors,
nodes, mounts, control groups and users' files as before."""

from testbed import backend_resources
from testbed.report import Failure
from testbed.toolstack import must_be

SETS = ("deep",)
VARIANTS = {"500": {"sets": (), "rounds_wanted": 500}}

# What a round may leave elsewhere than in the daemon's own processes. The last is the same with a
# guest: a vTPM's mounts are in a namespace of its own.
LEFT = """
xenstore-ls -f / | grep -c -e vtpm -e /libxl/
find /sys/fs/cgroup -type d | wc -l
find /run/xen-vtpmd /var/lib/xen-vtpmd | wc -l
wc -l </proc/mounts
"""


def rounds(bed, guest, count):
    """So many; each time its TPM has been started. All figures but the last see the first guest."""
    def figures():
        return [int(figure) for figure in bed.machine.must(LEFT).split()]

    def create():
        bed.machine.must(f"xl create -p {guest.config}", 120)
        must_be(bed.machine, "pidof swtpm | wc -w", "1", 30)

    def destroy():
        bed.machine.must(f"xl destroy {guest.name}", 60)

    def ended():
        must_be(bed.machine, "pidof swtpm | wc -w", "0", 30)
        return figures()

    create()
    with_guest = figures()
    destroy()
    before = ended()
    for _ in range(count - 1):
        create()
        destroy()
    after = ended()
    said = f"with the guest {with_guest}, after one round {before}, after {count} {after}"
    if before != after or any(more <= less for more, less in zip(with_guest[:-1], before)):
        raise Failure(said)
    return said


def run(bed, rounds_wanted=40):
    """The guest's kernel does not run: what is made and removed is the toolstack's and ours."""
    vtpm = bed.vtpm("2.0")
    bed.boot([vtpm])
    idle = backend_resources.holdings(bed.machine)
    guest = bed.new_guest("again", [vtpm], memory=128, type="'pvh'")
    guest.write_config()
    if bed.record("created and destroyed", rounds, bed, guest, rounds_wanted):
        bed.record("nothing is left in the daemon", backend_resources.same, idle, bed.machine, 30)
