# SPDX-License-Identifier: GPL-2.0
"""A guest whose frontend breaks every rule, for minutes: each way by itself, then all of them."""

from scenarios import hostile_frontend

SETS = ("deep",)

WAYS = ("page", "events", "garbage", "grants", "states", "reconnects", "removal")


def run(bed):
    """Long enough for leaks to show, and for a thousand reconnections."""
    turns = [(way, 30 if way == "reconnects" else 10) for way in WAYS]
    hostile_frontend.scenario(bed, [*turns, ("random", 60)], 600)
