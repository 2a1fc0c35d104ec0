# SPDX-License-Identifier: GPL-2.0
"""A hundred times loading and unloading the driver, with two processors."""

from scenarios import module_reload

SETS = ("deep",)
ALONE = True


def run(bed):
    """As the short one, longer."""
    module_reload.run(bed, 100)
