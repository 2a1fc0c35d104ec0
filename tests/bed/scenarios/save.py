# SPDX-License-Identifier: GPL-2.0
"""A guest is saved and restored with its TPM; a guest that is destroyed loses what a TPM loses."""

SETS = ("test", "debug")

FILE = "/run/save.file"


def save(bed, guest, options=""):
    """Saves the guest."""
    bed.machine.must(f"xl save {options} {guest.name} {FILE}", 120)


def save_and_restore(bed, guest):
    """Saves the guest and makes it anew from that."""
    save(bed, guest)
    bed.machine.must(f"xl restore {FILE}; code=$?; rm {FILE}; exit $code", 120)
    guest.attach()


def checkpoint(bed, guest):
    """Saves the guest, which goes on."""
    save(bed, guest, "-c")
    bed.machine.must(f"rm {FILE}")


def destroy_and_create(_, guest):
    """Starts the guest anew."""
    guest.destroy()
    guest.start()


def run(bed):
    """Restored, then checkpointed and going on; and after a checkpoint not restored but destroyed."""
    vtpm = bed.vtpm("2.0")
    bed.boot([vtpm], dom0_memory=1792)
    with bed.guest("save", [vtpm], memory=400) as guest:
        bed.checks(guest, "module_loads", "save_prepare")
        for step in (save_and_restore, checkpoint, save_and_restore):
            bed.record(f"save: {step.__name__}", step, bed, guest)
            bed.checks(guest, "save_kept")
        checkpoint(bed, guest)
        bed.checks(guest, "save_kept")
        bed.record("save: destroy_and_create", destroy_and_create, bed, guest)
        bed.checks(guest, "module_loads", "save_was_reset")
