# SPDX-License-Identifier: GPL-2.0
"""Eight guests under load at once: each has its own PCRs, and its share of the backend's time."""

import contextlib
import re
import time

from testbed import wait
from testbed.guest_scripts import latency
from testbed.report import Failure

SETS = ("deep",)

GUESTS = 8
SECONDS = 30
# How long it takes at most to tell one guest when to start.
HEAD_START = 2
# The slowest guest gets through at least this part of what the fastest does.
FAIR = 0.5


def together(guests, seconds):
    """Lets all work in the same span of time; fails if one's hash chain is broken, or one was
    starved."""
    for guest in guests:
        guest.must(
            f"python3 -E -s /bed/steady.py window {guest.name} {seconds} >/run/steady.out 2>&1 &"
        )
    for guest in guests:
        guest.must(". /bed/lib.sh; wait_for 60 test -e /run/steady.ready", 90)
    start = int(guests[0].must("date +%s")) + HEAD_START * len(guests)
    for guest in guests:
        guest.must(f"echo {start} >/run/steady.new; mv /run/steady.new /run/steady.start")
    time.sleep(HEAD_START * len(guests) + seconds)
    counts = {}
    for guest in guests:
        output = wait.until(
            lambda guest=guest: guest.must("cat /run/steady.out"),
            60,
            f"{guest.name} says nothing",
            pause=1,
        )
        match = re.search(r"commands (\d+) median_us (\d+)", output)
        if not match:
            raise Failure(f"{guest.name}: {output[-1500:]}")
        counts[guest.name] = int(match[1])
    numbers = f"{min(counts.values())} to {max(counts.values())} commands in {seconds} s, " \
        f"slowest to fastest {min(counts.values()) / max(counts.values()):.2f}: {counts}"
    if min(counts.values()) < FAIR * max(counts.values()):
        raise Failure(numbers)
    return numbers


def run(bed):
    """The guests are small, but eight of them need a bigger machine."""
    vtpms = [bed.vtpm("2.0") for _ in range(GUESTS)]
    bed.boot(vtpms, memory=6144)
    with contextlib.ExitStack() as stack:
        guests = [stack.enter_context(bed.guest(f"guest{number}", [vtpm], memory=400))
                  for number, vtpm in enumerate(vtpms)]
        for guest in guests:
            bed.checks(guest, "module_loads")
        bed.record("one alone", lambda: f"median {latency(guests[0], 300)} us")
        bed.record("eight at once", together, guests, SECONDS)
