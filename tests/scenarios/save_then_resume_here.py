# SPDX-License-Identifier: GPL-2.0
"""A guest that goes on after a save: which failed, was a checkpoint, or was refused by a process
that waits for its TPM."""

from testbed.report import Failure
from testbed.toolstack import FILE, checkpoint, save_and_restore, while_running

SETS = ("deep",)
NEEDS = ("save",)


def connection(bed, guest):
    """The page and the port that the guest shares with the backend."""
    folder = f"/local/domain/$(xl domid {guest.name})/device/vtpm/0"
    return bed.machine.must(
        f"xenstore-read {folder}/ring-ref {folder}/event-channel {folder}/state"
    )


def fails(bed, guest):
    """A save that fails, when the guest was stopped for it already, since the disk is full."""
    machine = bed.machine
    machine.must("mkdir -p /run/small; mount -t tmpfs -o size=4m small /run/small")
    code, output = machine.run(f"xl save {guest.name} /run/small/save.file", 120)
    machine.must("umount /run/small")
    if code == 0 or "No space left" not in output:
        raise Failure(f"xl save ended with {code}: {output}")


def left_as_it_was(bed, guest, function):
    """A save after which the guest goes on here: the connection is the one that it was."""
    before = connection(bed, guest)
    function(bed, guest)
    if (after := connection(bed, guest)) != before:
        raise Failure(
            f"ring-ref, event-channel and state were {before.split()}, and are {after.split()}"
        )


def goes_on_here(bed, guest):
    """A save after which the guest goes on here does nothing to a command that runs."""
    going_on = {"checkpoint": checkpoint, "a save that fails": fails}
    for name, function in going_on.items():
        bed.record(
            f"save in the midst of a command: {name}",
            while_running,
            bed,
            guest,
            left_as_it_was,
            function,
        )
        bed.checks(guest, "saved_in_vain")


def refused(bed, guest):
    """The save fails, since the guest does not suspend."""
    code, output = bed.machine.run(
        f"xl save {guest.name} {FILE}; code=$?; rm -f {FILE}; exit $code", 240
    )
    if code == 0 or "suspend" not in output:
        raise Failure(f"xl save ended with {code}: {output}")


def run(bed):
    """The guest goes on with the same connection, and the command gets its answer."""
    vtpm = bed.vtpm("2.0")
    bed.boot([vtpm], dom0_memory=1792)
    with bed.guest("save", [vtpm], memory=400) as guest:
        bed.checks(guest, "module_loads")
        goes_on_here(bed, guest)
        bed.checks(guest, "saved_work")
        # The freezer gives up after 20 s, xl waits for 60, and a command for no longer than that.
        bed.machine.must(
            "kill -STOP $(pidof swtpm); (sleep 40; kill -CONT $(pidof swtpm)) >/dev/null 2>&1 &"
            " sleep 1"
        )
        bed.record("save while a process waits", left_as_it_was, bed, guest, refused)
        bed.checks(guest, "saved_without_a_failure", "saved_not_frozen")
        # The freezer's message has the stack of who refused, which is no fault.
        guest.must("dmesg -c >/dev/null")
        # The next one succeeds.
        bed.checks(guest, "saved_work")
        bed.record("save_and_restore", save_and_restore, bed, guest)
        bed.checks(guest, "saved_without_a_failure")
