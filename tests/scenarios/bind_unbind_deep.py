# SPDX-License-Identifier: GPL-2.0
"""A hundred times unbound and bound, and unbound and unloaded in every state that there is."""

from scenarios import bind_unbind

SETS = ("deep",)


def run(bed):
    """As the short one, longer."""
    bind_unbind.run(bed, 100, bind_unbind.STATES)
