# SPDX-License-Identifier: GPL-2.0
"""The module on a machine that is no Xen guest."""

from testbed.no_xen import BareMachine

SETS = ("test",)


def run(bed):
    """It refuses to load."""
    bed.machine = BareMachine(bed.work, bed.kernel.vmlinuz, bed.write_guest_image())
    bed.machine.start()
    bed.checks(bed.machine, "refused_outside_xen", "kernel_log")
