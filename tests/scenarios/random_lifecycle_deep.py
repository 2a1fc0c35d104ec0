# SPDX-License-Identifier: GPL-2.0
"""Half an hour of all that a VM lives through, in an order that a seed decides, under constant load."""

import os
import time

from scenarios import random_lifecycle

SETS = ("deep",)


def run(bed):
    """LIFECYCLE_SECONDS= is for another time, SEED= repeats the order of events."""
    until = time.monotonic() + int(os.environ.get("LIFECYCLE_SECONDS") or 1800)

    def events(chance):
        while time.monotonic() < until:
            yield chance.choice(list(random_lifecycle.EVENTS))

    random_lifecycle.scenario(bed, events, 0)
