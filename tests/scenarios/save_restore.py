# SPDX-License-Identifier: GPL-2.0
"""A guest is saved and restored with its TPM; a guest that is destroyed loses what a TPM loses."""

from testbed.report import Failure

SETS = ("test",)

FILE = "/run/save.file"


def save(bed, guest, options=""):
    """Saves the guest."""
    bed.machine.must(f"xl save {options} {guest.name} {FILE}", 120)


def restore(bed, guest):
    """Makes it anew from what was saved."""
    bed.machine.must(f"xl restore {FILE}; code=$?; rm {FILE}; exit $code", 120)
    guest.attach()


def save_and_restore(bed, guest):
    """Saves the guest and makes it anew from that."""
    save(bed, guest)
    restore(bed, guest)


def checkpoint(bed, guest):
    """Saves the guest, which goes on."""
    save(bed, guest, "-c")
    bed.machine.must(f"rm {FILE}")


def destroy_and_create(_, guest):
    """Starts the guest anew."""
    guest.destroy()
    guest.start()


def restore_with(bed, guest, other):
    """Saves the guest, and makes it anew with another vTPM in its configuration."""
    save(bed, guest)
    config = "/run/other.cfg"
    bed.machine.must(f"sed 's/{guest.vtpms[0].uuid}/{other.uuid}/' {guest.config} >{config}; "
                     f"xl restore {config} {FILE}; code=$?; rm {FILE}; exit $code", 120)
    guest.attach()


def connection(bed, guest):
    """The page and the port that the guest shares with the backend."""
    folder = f"/local/domain/$(xl domid {guest.name})/device/vtpm/0"
    return bed.machine.must(f"xenstore-read {folder}/ring-ref {folder}/event-channel {folder}/state")


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
        raise Failure(f"ring-ref, event-channel and state were {before.split()}, and are {after.split()}")


def in_the_midst(bed, guest, function, *more):
    """Saves while a command runs that cannot end: swtpm is stopped."""
    bed.checks(guest, "saved_wait")
    bed.machine.must("kill -STOP $(pidof swtpm)")
    bed.checks(guest, "saved_runs")
    try:
        function(bed, guest, *more)
    finally:
        bed.machine.must("kill -CONT $(pidof swtpm)")


def goes_on_here(bed, guest):
    """A save after which the guest goes on here does nothing to a command that runs."""
    going_on = {"checkpoint": checkpoint, "a save that fails": fails}
    for name, function in going_on.items():
        bed.record(f"save in the midst of a command: {name}", in_the_midst, bed, guest, left_as_it_was, function)
        bed.checks(guest, "saved_in_vain")


def commands(bed, guest):
    """What becomes of commands: none fails, but for one that runs when the guest is saved to be restored."""
    bed.checks(guest, "saved_work")
    bed.record("save under load: save_and_restore", save_and_restore, bed, guest)
    bed.checks(guest, "saved_without_a_failure")
    bed.record("save in the midst of a command", in_the_midst, bed, guest, save)
    bed.record("save in the midst of a command: restore", restore, bed, guest)
    bed.checks(guest, "saved_in_the_midst")


def run(bed):
    """Restored, then checkpointed and going on; and after a checkpoint not restored but destroyed."""
    vtpm, other = bed.vtpm("2.0"), bed.vtpm("2.0")
    bed.boot([vtpm, other], dom0_memory=1792)
    with bed.guest("save", [vtpm], memory=400) as guest:
        bed.checks(guest, "module_loads", "save_prepare")
        bed.record("save: save_and_restore", save_and_restore, bed, guest)
        bed.checks(guest, "save_kept")
        commands(bed, guest)
        bed.checks(guest, "save_kept")
        checkpoint(bed, guest)
        bed.checks(guest, "save_kept")
        bed.record("save: destroy_and_create", destroy_and_create, bed, guest)
        bed.checks(guest, "module_loads", "save_was_reset")
        bed.record("save: restored with another vTPM", restore_with, bed, guest, other)
        bed.checks(guest, "saved_other_tpm")
