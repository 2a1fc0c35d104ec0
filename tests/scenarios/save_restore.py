# SPDX-License-Identifier: GPL-2.0
"""A guest is saved and restored with its TPM; a guest that is destroyed loses what a TPM loses."""

from testbed.toolstack import FILE, checkpoint, restore, save, save_and_restore, while_running

SETS = ("test",)
NEEDS = ("save",)


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


def commands(bed, guest):
    """What becomes of commands: none fails, but for one that runs when the guest is saved to be
    restored."""
    bed.checks(guest, "saved_work")
    bed.record("save under load: save_and_restore", save_and_restore, bed, guest)
    bed.checks(guest, "saved_without_a_failure")
    bed.record("save in the midst of a command", while_running, bed, guest, save)
    bed.record("save in the midst of a command: restore", restore, bed, guest)
    bed.checks(guest, "saved_in_the_midst")


def run(bed):
    """Restored, then checkpointed and going on; and after a checkpoint not restored but
    destroyed."""
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
