# SPDX-License-Identifier: GPL-2.0
"""A guest that goes on after a save: which failed, was a checkpoint, or was refused by a process that waits for its TPM."""

from scenarios import save_restore
from testbed.report import Failure

SETS = ("deep",)


def refused(bed, guest):
    """The save fails, since the guest does not suspend."""
    code, output = bed.machine.run(f"xl save {guest.name} {save_restore.FILE}; code=$?; rm -f {save_restore.FILE}; exit $code", 240)
    if code == 0 or "suspend" not in output:
        raise Failure(f"xl save ended with {code}: {output}")


def run(bed):
    """The guest goes on with the same connection, and the command gets its answer."""
    vtpm = bed.vtpm("2.0")
    bed.boot([vtpm], dom0_memory=1792)
    with bed.guest("save", [vtpm], memory=400) as guest:
        bed.checks(guest, "module_loads")
        save_restore.goes_on_here(bed, guest)
        bed.checks(guest, "saved_work")
        # The freezer gives up after 20 s, xl waits for 60, and a command for no longer than that.
        bed.machine.must("kill -STOP $(pidof swtpm); (sleep 40; kill -CONT $(pidof swtpm)) >/dev/null 2>&1 & sleep 1")
        bed.record("save while a process waits", save_restore.left_as_it_was, bed, guest, refused)
        bed.checks(guest, "saved_without_a_failure", "saved_not_frozen")
        # The freezer's message has the stack of who refused, which is no fault.
        guest.must("dmesg -c >/dev/null")
        # The next one succeeds.
        bed.checks(guest, "saved_work")
        bed.record("save_and_restore", save_restore.save_and_restore, bed, guest)
        bed.checks(guest, "saved_without_a_failure")
