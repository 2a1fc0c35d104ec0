# SPDX-License-Identifier: GPL-2.0
"""Waiting: one loop for all that polls, and how much longer than on a quiet host each timeout is.
SLOWNESS= sets that; without it, it is measured by the time that dom0 takes to boot."""

import math
import os
import time

from testbed.report import Failure
from tools.arch import TARGET

# Dom0 is up within this time on a quiet host, three machines on two processors (s).
QUICK_BOOT = 20 if TARGET.name == "amd64" else 8
# A host that is slower than this many times is not waited for.
MOST = 6


class _Host:
    """How slow this host is: a whole number, since the guests' scripts calculate with it."""

    def __init__(self):
        self.chosen = int(os.environ.get("SLOWNESS") or 0)
        self.measured = 1


HOST = _Host()


def slowness():
    """By how much timeouts are stretched on this host."""
    return HOST.chosen or HOST.measured


def booted(seconds):
    """Measures the host by a boot of dom0. It does not become faster again within a run."""
    found = min(MOST, max(1, math.ceil(seconds / QUICK_BOOT)))
    if not HOST.chosen and found > HOST.measured:
        HOST.measured = found
        print(
            f"    dom0 took {seconds:.0f} s to boot: every timeout is {found} times as long from"
            " now on (SLOWNESS= sets that)",
            flush=True,
        )


def stretch(seconds):
    """A timeout, as long as it is on this host."""
    return seconds * slowness()


def until(function, seconds, what, pause=0.2, error=Failure):
    """Calls `function` until what it returns is true, and returns that. After the timeout it fails;
    `what` is the text for that, or a function that returns it."""
    end = time.monotonic() + stretch(seconds)
    while not (found := function()):
        if time.monotonic() > end:
            raise error(f"{what() if callable(what) else what} (after {stretch(seconds):g} s)")
        time.sleep(pause)
    return found
