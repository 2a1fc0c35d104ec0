# SPDX-License-Identifier: GPL-2.0
"""The daemon and swtpm are killed under load at moments that a seed decides; one guest lives through fifty."""

from scenarios import kill_daemon

SETS = ("deep",)


def run(bed):
    """As the short one, longer, and with an NV counter in both TPMs. SEED= repeats a run."""
    kill_daemon.scenario(bed, {"daemon": 42, "restart": 8, "closed": 4, "first start": 8}, "2.0", 0)
