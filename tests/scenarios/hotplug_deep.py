# SPDX-License-Identifier: GPL-2.0
"""A hundred times a vTPM is attached and detached."""

from scenarios import hotplug

SETS = ("deep",)


def run(bed):
    """As the short one, longer."""
    hotplug.run(bed, 100)
