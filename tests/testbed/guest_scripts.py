# SPDX-License-Identifier: GPL-2.0
"""Short scripts for a guest that several scenarios have in common, and running one as a check."""

import re

from testbed.report import Failure

GONE = 'wait_for 20 sh -c \'[ ! -e /sys/bus/xen/devices/vtpm-0 ] && [ -z "$(ls /sys/class/tpm)" ]\''
# A command that needs no program that is slow to start: it reads a PCR.
WORKS = '[ -n "$(cat $tpm/pcr-sha256/0 2>/dev/null || head -n 1 $tpm/pcrs)" ]'
THERE = 'wait_for 30 sh -c \'[ "$(ls /sys/class/tpm)" = {0} ]\'; wait_for 10 test -c /dev/{0}'


def in_guest(guest, script, limit=60):
    """Runs a script that has to succeed, with what the checks have at hand."""
    done = guest.run(f"set -e; . /bed/lib.sh; {script}", limit)
    if done.code:
        raise Failure(f"{guest.name}: {script!r} ended with {done.code}: {done.output[-1500:]}")
    return done.output.strip()


def latency(guest, count):
    """The median time of a command, in microseconds, over so many of them; their results are
    checked."""
    done = guest.run(f"python3 -E -s /bed/steady.py count {guest.name} {count}", 240)
    if done.code:
        raise Failure(f"the honest guest: {done.output[-1500:]}")
    return int(re.search(r"median_us (\d+)", done.output)[1])
