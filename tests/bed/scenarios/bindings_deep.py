# SPDX-License-Identifier: GPL-2.0
"""A hundred times unbound and bound, and unbound and unloaded in every state that there is."""

from bed.scenarios import bindings

SETS = ("deep",)


def run(bed):
    """As the short one, longer."""
    bindings.run(bed, 100, bindings.STATES)
