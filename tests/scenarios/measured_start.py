# SPDX-License-Identifier: GPL-2.0
"""What xl boots is in PCRs 4 and 5 before the guest runs: a secret sealed to them opens for that
alone, and the event log replays to all PCRs."""

from testbed import event_log
from testbed.lacking import lacking
from testbed.report import Failure
from testbed.toolstack import must_be, save_and_restore

SETS = ("test",)

OTHER_KERNEL = "/boot/other-kernel"


def other_processes(bed):
    """Manager, worker, broker and I/O process are killed, and others take their places."""
    before = bed.machine.must("pidof xen-vtpmd").split()
    if len(before) != 4:
        raise Failure(f"four processes are expected: {before}")
    bed.stop_backend(f"kill -9 {' '.join(before)}")
    bed.start_backend()
    must_be(bed.machine, "pidof xen-vtpmd | wc -w", "4", 30)


def run(bed):
    """The same guest twice, then with another kernel. Scenario pvh has the log of a PVH guest."""
    vtpm = bed.vtpm("2.0")
    bed.boot([vtpm], dom0_memory=1792)
    bed.machine.must(f"(cat /boot/vmlinux; echo) >{OTHER_KERNEL}")
    with bed.guest("first", [vtpm]) as guest:
        bed.checks(guest, "module_loads", "measured_seal", "measured_opens")
        bed.record("event log", event_log.replays, bed, guest, vtpm, "console=hvc0", "kernel",
                   "initrd")
    with bed.guest("again", [vtpm]) as guest:
        bed.checks(guest, "module_loads", "measured_opens")
        if not lacking("save"):
            bed.record("save and restore", save_and_restore, bed, guest)
        bed.checks(guest, "measured_opens")
        bed.record("other processes", other_processes, bed)
        bed.checks(guest, "measured_opens")
        bed.record("event log after that", event_log.replays, bed, guest, vtpm, "kernel", "initrd")
    # What else can be another is natively tested.
    with bed.guest("other", [vtpm], kernel=f"'{OTHER_KERNEL}'") as guest:
        bed.checks(guest, "module_loads", "measured_stays_shut")
