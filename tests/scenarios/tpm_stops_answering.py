# SPDX-License-Identifier: GPL-2.0
"""A TPM, and then a backend, that stops answering in the middle of a command, and goes on later."""

SETS = ("test",)


def stop(bed, program):
    """Stops a process in dom0."""
    bed.machine.must(f"kill -STOP $(pidof {program})")


def go_on(bed, guest, program):
    """Lets it go on: the guest's TPM works again."""
    bed.machine.must(f"kill -CONT $(pidof {program})")
    bed.checks(guest, "stall_over")


def run(bed):
    """With swtpm stopped the backend answers a cancel; stopped itself it does not."""
    vtpm = bed.vtpm("2.0")
    bed.boot([vtpm])
    with bed.guest("stall", [vtpm]) as guest:
        bed.checks(guest, "module_loads", "stall_no_reader")
        for check in ("stall_cancel", "stall_kill", "stall_times_out"):
            stop(bed, "swtpm")
            bed.checks(guest, check, limit=90)
            go_on(bed, guest, "swtpm")
        stop(bed, "xen-vtpmd")
        bed.checks(guest, "stall_kill", "stall_wedged")
        go_on(bed, guest, "xen-vtpmd")
        bed.checks(guest, "stall_counted")
