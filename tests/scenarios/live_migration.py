# SPDX-License-Identifier: GPL-2.0
"""A live migration to the same host: the destination's vTPM waits for the state, which the source
has until the guest runs there, and the guest goes on with its TPM."""

from testbed.guest import Guest
from testbed.report import Failure
from testbed.toolstack import must_be

SETS = ("deep",)

# xl's own way to receive on the host that sends.
MIGRATE = "xl migrate -s '' {name} 'xl migrate-receive' 2>&1"
WAITED = "is locked): waits for it"


def migrate(bed, guest):
    """xl says that it is done, the destination has waited, and nothing of the source stays."""
    machine = bed.machine
    code, output = machine.run(MIGRATE.format(name=guest.name), 240)
    if code:
        raise Failure(f"xl migrate ended with {code}: {output[-2000:]}")
    guest.attach()
    machine.must(f"grep -q '{WAITED}' /host/xen-vtpmd.log")
    must_be(machine, "xenstore-list /local/domain/0/backend/vtpm", "2", 20)
    must_be(machine, "pidof swtpm | wc -w", "1", 20)
    return output.strip().splitlines()[-1]


def run(bed):
    """A PVH guest: Xen as Debian builds it migrates no PV guest."""
    vtpm = bed.vtpm("2.0")
    bed.boot([vtpm])
    guest = Guest(
        bed.machine,
        "migrating",
        [vtpm],
        memory=400,
        type="'pvh'",
        options="bed.driver=rust bed.tpms=2.0",
    )
    guest.start()
    bed.checks(guest, "module_loads", "save_prepare", "save_goes_on")
    bed.record("xl migrate", migrate, bed, guest)
    bed.checks(guest, "save_kept", "save_goes_on", "kernel_log")
    bed.record("the guest shuts down", guest.shutdown)
