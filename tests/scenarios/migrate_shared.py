# SPDX-License-Identifier: GPL-2.0
"""A guest goes to another host and back by plain `xl migrate`: both hosts have the vTPMs' state on
NFSv4, whose locks say who may use it."""

from testbed.toolstack import must_be
from testbed.two import GUEST_MEMORY, hosts, migrate, share_state

SETS = ("deep",)
NEEDS = ("save",)


def moves(bed, other, guest):
    """The guest runs there with its TPM, and nobody has it here."""
    said = migrate(guest, bed, other, "xl migrate")
    must_be(bed.machine, "xenstore-list /local/domain/0/backend/vtpm 2>/dev/null", "", 20)
    must_be(other.machine, f"xen-vtpmd list | grep -c {guest.vtpms[0].uuid}", "1")
    return said.strip().splitlines()[-1]


def run(bed):
    """A PVH guest: Xen as Debian builds it migrates no PV guest."""
    vtpm = bed.vtpm("2.0")
    with hosts(bed, [vtpm]) as other:
        if not bed.record("the state is shared by NFS", share_state, bed, other):
            return
        with bed.guest("migrating", [vtpm], memory=GUEST_MEMORY, type="'pvh'") as guest:
            bed.checks(guest, "module_loads", "save_prepare", "save_goes_on")
            bed.record("xl migrate", moves, bed, other, guest)
            bed.checks(guest, "save_kept", "save_goes_on")
            bed.record("and back", moves, other, bed, guest)
            bed.checks(guest, "save_kept", "save_goes_on")
