# SPDX-License-Identifier: GPL-2.0
"""Live migrations to the same host: the vTPM there waits for the state, which the source has
until the guest runs there, and the guest goes on with its TPM; also under load."""

from testbed import ledger
from testbed.toolstack import migrate_here, must_be
from testbed.two import GUEST_MEMORY

SETS = ("test",)
NEEDS = ("save",)
VARIANTS = {"6": {"sets": ("deep",), "times": 6}}

WAITED = "is locked): waits for it"


def migrate(bed, guest, number):
    """xl says that it is done, the destination has waited, and nothing of the source stays."""
    machine = bed.machine
    said = migrate_here(machine, guest)
    must_be(machine, f"grep -c '{WAITED}' /host/xen-vtpmd.log", str(number), 1)
    must_be(machine, "xenstore-list /local/domain/0/backend/vtpm", str(number + 1), 20)
    must_be(machine, "pidof swtpm | wc -w", "1", 20)
    return said


def run(bed, times=0):
    """A PVH guest. `times` are those under load."""
    vtpm = bed.vtpm("2.0")
    bed.boot([vtpm])
    with bed.guest("migrating", [vtpm], memory=GUEST_MEMORY, type="'pvh'") as guest:
        bed.checks(guest, "module_loads")
        if times:
            ledger.kept_through(bed, guest, "xl migrate", times,
                                lambda number: migrate(bed, guest, number))
            return
        bed.checks(guest, "save_prepare", "save_goes_on")
        bed.record("xl migrate", migrate, bed, guest, 1)
        bed.checks(guest, "save_kept", "save_goes_on")
