# SPDX-License-Identifier: GPL-2.0
"""A guest's load that keeps a ledger of its TPM (tests/guest/ledger.py): starting it, and what it
says."""

import re

from testbed import wait
from testbed.report import Failure

# Between two commands of a guest that migrates (s): dom0, which copies its memory, has half of an
# emulated processor beside a guest that never waits.
LOAD_PAUSE = 0.1


def start(guest, policy, pause, least=0):
    """Starts the guest's load."""
    guest.must("rm -f /run/ledger /run/ledger.stop")
    guest.must(f"python3 -E -s /bed/ledger.py {policy} {least} {pause} >/run/ledger.out 2>&1 &")


def _text(guest):
    return guest.run("cat /run/ledger 2>/dev/null || cat /run/ledger.out").output.strip()


def read(guest):
    """What the ledger says: a word, and numbers by name. Fails when it says that something is
    wrong."""
    text = _text(guest)
    if not re.match("working|waiting|ended", text):
        raise Failure(f"{guest.name}: {text}")
    return text.split()[0], {name: int(count) for name, count in re.findall(r"(\w+) (\d+)", text)}


def says(guest, wanted, seconds=90):
    """Waits until the ledger begins so; Python takes long to start in a guest that is busy."""
    wait.until(lambda: _text(guest).startswith(wanted), seconds,
               lambda: f"{guest.name}: not {wanted!r}, but {_text(guest)!r}", pause=0.3)


def progress(guest, seconds=40):
    """Waits until the load has gone on."""
    before = read(guest)[1].get("rounds", 0)
    wait.until(lambda: read(guest)[1].get("rounds", 0) >= before + 2, seconds,
               lambda: f"{guest.name}: no progress: {read(guest)}")


def ends_well(guests):
    """The ledgers are closed, and right to the end."""
    found = {}
    for guest in guests:
        guest.must("touch /run/ledger.stop")
        says(guest, "ended")
        found[guest.name] = read(guest)[1]
    return str(found)


def kept_through(bed, guest, what, times, move):
    """Calls `move(NUMBER)`, which is called `what`, so many times while the guest keeps a ledger of
    its TPM that forgives no reset. Its load goes on after each."""
    def under_load(number):
        said = move(number)
        progress(guest)
        return f"{said}; {read(guest)[1]}"

    bed.checks(guest, "ledger_counter")
    start(guest, "closed", LOAD_PAUSE)
    says(guest, "working")
    for number in range(1, times + 1):
        bed.record(f"{what} under load, {number} of {times}", under_load, number)
    bed.record("no command is lost or counts twice", ends_well, (guest,))
