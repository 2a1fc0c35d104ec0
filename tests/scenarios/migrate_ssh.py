# SPDX-License-Identifier: GPL-2.0
"""A guest goes to another host and back by `xen-vtpmd migrate`, with the xl and the ssh that people
have; nothing is shared but the network."""

import os
import re
import threading
import time

from testbed import ledger
from testbed.report import Failure
from testbed.toolstack import must_be
from testbed.two import MIGRATION_LIMIT, hosts, migrate

SETS = ("deep",)
NEEDS = ("save",)
# In no set: migrate_local_20 has the load, and the C driver is what ours is compared with.
VARIANTS = {
    "20": {"sets": (), "times": 20},
    "stock_driver": {"sets": (), "driver": "c"},
}

TICKS = "(while :; do echo @tick; sleep 0.1; done) >/dev/console 2>&1 & echo $! >/run/ticks"
# How much of xl's own downtime the vTPM may add.
SHARE = 0.1
# Sends the receiver for the TPM a signal; there has to be one.
SIGNAL_RECEIVER = (
    "receiver=$(grep -l migrate-receive $(pidof xen-vtpmd | sed 's,[0-9][0-9]*,/proc/&/cmdline,g')"
    " | cut -d/ -f3); kill -{} $receiver"
)
# Stops it as soon as the guest's memory is on its way.
STOP_RECEIVER = (
    "(until xl list | grep -q -e --incoming; do sleep 0.1; done;"
    f" {SIGNAL_RECEIVER.format('STOP')}) >/dev/null 2>&1 &"
)


def listed(bed, pattern):
    """`xen-vtpmd list` has one vTPM here, and says this of it."""
    text = bed.machine.must("xen-vtpmd list")
    if len(re.findall(pattern, text)) != 1:
        raise Failure(f"/{pattern}/ is not in what xen-vtpmd list says:\n{text}")


def moves(bed, other, guest):
    """The guest runs there with its TPM, and nothing of that is left here but a mark."""
    said = migrate(guest, bed, other)
    there = other.machine.must("hostname").strip()
    listed(bed, f"moved to {there}")
    left = bed.machine.must(f"ls /var/lib/xen-vtpmd | grep {guest.vtpms[0].uuid}")
    if "migration" not in left or len(left.split()) > 2:
        raise Failure(f"left here: {left}")
    must_be(other.machine, "xen-vtpmd list | grep -c -e moved -e arrived -e expected", "0")
    return " ".join(said.split())


def receiver_stops(bed, other, guest):
    """xl fails, and the guest goes on here with its TPM."""
    other.machine.must(STOP_RECEIVER)
    code, output = bed.machine.run(f"xen-vtpmd migrate {guest.name} two 2>&1", MIGRATION_LIMIT)
    other.machine.must(SIGNAL_RECEIVER.format("KILL"))
    if not code or "the guest runs here, with its TPM" not in output:
        raise Failure(f"it ended with {code}: {output[-2000:]}")
    must_be(bed.machine, "xl list | grep -c migrating", "1", 20)
    must_be(other.machine, "xl list | grep -c migrating", "0", 20)
    return output.strip().splitlines()[-1]


def longest_pause(logs, function):
    """The longest time (s) in which none of these consoles had a new line while it ran."""
    ended, longest = threading.Event(), [0.0]

    def sizes():
        return [os.path.getsize(log) if os.path.exists(log) else 0 for log in logs]

    def watch():
        before, since = sizes(), time.monotonic()
        while not ended.wait(0.01):
            if (now := sizes()) != before:
                longest[0] = max(longest[0], time.monotonic() - since)
                before, since = now, time.monotonic()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        said = function()
        time.sleep(1)
    finally:
        ended.set()
        watcher.join()
    return longest[0], said


def downtime(bed, other, guest, command):
    """How long (s) the guest's console is silent when it goes to the other host, and what the
    command says."""
    guest.must(TICKS)
    logs = [guest.log, guest.incoming_log(other.machine)]
    found = longest_pause(logs, lambda: migrate(guest, bed, other, command))
    guest.must("kill $(cat /run/ticks)")
    return found


def is_short(found):
    """The vTPM's part of the downtime beside that of a guest without one."""
    alone, with_tpm, added = found["plain"][0], found["vtpm"][0], found["vtpm"][1]
    if added > alone * SHARE:
        raise Failure(f"{added:.2f} s of the vTPM, {alone:.2f} s of xl")
    return (f"{added:.3f} s are the vTPM's: {added / alone:.1%} of the {alone:.2f} s that a guest"
            f" without one is silent; with it, it was silent for {with_tpm:.2f} s")


def loaded(bed, other, guest, times):
    """To and fro, while the guest works."""
    def move(number):
        source, target = (bed, other) if number % 2 else (other, bed)
        return " ".join(migrate(guest, source, target).split())

    ledger.kept_through(bed, guest, "xen-vtpmd migrate", times, move)


def run(bed, times=0, driver=None):
    """A PVH guest: Xen as Debian builds it migrates no PV guest. `times` are those under load."""
    bed.driver = driver or bed.driver
    vtpm = bed.vtpm("2.0")
    found = {}
    with hosts(bed, [vtpm]) as other:
        with bed.guest("migrating", [vtpm], memory=400, type="'pvh'") as guest:
            bed.checks(guest, "stock_driver" if driver else "module_loads")
            if times:
                loaded(bed, other, guest, times)
                return
            bed.checks(guest, "save_prepare", "save_goes_on")
            bed.record("xen-vtpmd migrate", moves, bed, other, guest)
            bed.checks(guest, "save_kept", "save_goes_on")
            bed.record("and back", moves, other, bed, guest)
            bed.checks(guest, "save_kept", "save_goes_on")
            if driver:
                return
            bed.record("the receiver stops", receiver_stops, bed, other, guest)
            bed.checks(guest, "save_kept", "save_goes_on")
            silent, said = downtime(bed, other, guest, "xen-vtpmd migrate")
            found["vtpm"] = silent, float(re.search(r"is there: ([\d.]+) s of downtime", said)[1])
            bed.checks(guest, "save_kept")
        with bed.guest("plain", [], memory=400, type="'pvh'") as guest:
            found["plain"] = downtime(bed, other, guest, "xl migrate")
        bed.record("what the vTPM adds to the downtime", is_short, found)
