# SPDX-License-Identifier: GPL-2.0
"""A live migration is refused, and the guest goes on with its TPM: the new domain would need it
while the old one has it."""

from testbed.guest import Guest
from testbed.report import Failure

SETS = ("deep",)

# xl's own way to receive on the host that sends.
MIGRATE = "xl migrate -s '' {name} 'xl migrate-receive' 2>&1"
REASON = "is in use by vtpm 1/0"


def migrate(bed, guest):
    """Both ends of xl say so, the log has the reason, and nothing of the new domain stays."""
    machine = bed.machine
    code, output = machine.run(MIGRATE.format(name=guest.name), 240)
    if code == 0 or "resuming at sender" not in output:
        raise Failure(f"xl migrate ended with {code}: {output[-2000:]}")
    machine.must(f"grep -q '{REASON}' /host/xen-vtpmd.log")
    left = machine.must(
        "xenstore-list /local/domain/0/backend/vtpm; xl list | awk 'NR > 2 { print $1 }'"
    ).split()
    if left != ["1", guest.name]:
        raise Failure(f"backends and guests are {left}")
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
    bed.record("xl migrate fails", migrate, bed, guest)
    bed.checks(guest, "save_kept", "save_goes_on", "kernel_log")
    bed.record("the guest shuts down", guest.shutdown)
