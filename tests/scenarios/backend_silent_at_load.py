# SPDX-License-Identifier: GPL-2.0
"""The module is loaded while the backend does not answer: that ends, and the TPM comes when the
backend goes on."""

SETS = ("deep",)


def run(bed):
    """The backend has told xenbus that it is ready, and is stopped then."""
    vtpm = bed.vtpm("2.0")
    bed.boot([vtpm])
    with bed.guest("late", [vtpm]) as guest:
        bed.machine.must("kill -STOP $(pidof xen-vtpmd)")
        bed.checks(guest, "loads_without_an_answer", limit=120)
        bed.machine.must("kill -CONT $(pidof xen-vtpmd)")
        bed.checks(guest, "module_loads", "ima_has_none_of_a_module")
