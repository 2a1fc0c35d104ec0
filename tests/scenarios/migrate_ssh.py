# SPDX-License-Identifier: GPL-2.0
"""A guest goes to another host and back by `xen-vtpmd migrate`, with the xl and the ssh that people
have; nothing is shared but the network."""

import os
import re
import statistics
import threading
import time

from testbed import ledger, wait
from testbed.report import Failure
from testbed.toolstack import must_be
from testbed.two import GUEST_MEMORY, MIGRATION_LIMIT, hosts, migrate, pids

SETS = ("deep",)
NEEDS = ("save",)
# In no set: migrate_local_6 has the load, the C driver is what ours is compared with, and the cost,
# which eight migrations more measure, is no check.
VARIANTS = {
    "20": {"sets": (), "times": 20},
    "cost": {"sets": (), "samples": 4},
    "stock_driver": {"sets": (), "driver": "c"},
}

TICKS = (
    "python3 -E -s -c 'import time\n"
    'while True: print("@tick", flush=True); time.sleep(0.02)'
    "' >/dev/console 2>&1 & echo $! >/run/ticks"
)
STEPS = r"is there: ([\d.]+) s of downtime, ([\d.]+) packed, ([\d.]+) sent, ([\d.]+) stored"
# Sends the receiver for the TPM a signal; there has to be one.
SIGNAL_RECEIVER = "kill -{} " + pids("xen-vtpmd", "migrate-receive")
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


def downtime(guest, source, target, command):
    """How long (s) the guest's console is silent when it migrates, and what the command says."""
    guest.must(TICKS)
    # Python takes its time until the first tick.
    time.sleep(wait.stretch(5))
    logs = [guest.log, guest.incoming_log(target.machine)]
    silent, said = longest_pause(logs, lambda: migrate(guest, source, target, command))
    guest.must("kill $(cat /run/ticks)")
    return silent, said


def cost(bed, other, guest, plain, samples):
    """The downtime of the guest with a vTPM beside that of one without, and where the TPM's part of
    it goes, as a text. There are `samples` of each kind, in turn: xl's own downtime differs from
    one migration to the next by half of it."""
    hosts_of, alone, both, steps = [bed, other], [], [], []
    for _ in range(samples):
        alone.append(round(downtime(plain, *hosts_of, "xl migrate")[0], 2))
        silent, said = downtime(guest, *hosts_of, "xen-vtpmd migrate")
        both.append(round(silent, 2))
        steps.append([float(step) for step in re.search(STEPS, said).groups()])
        hosts_of.reverse()
    whole, packed, sent, stored = map(statistics.median, zip(*steps))
    more = statistics.median(both) / statistics.median(alone) - 1
    return (f"medians of {samples}: {more:+.0%} of {statistics.median(alone):.2f} s. The state is"
            f" on its way for {whole:.3f} s: {packed:.3f} packed, {sent:.3f} sent, {stored:.3f}"
            f" stored. Silent without a vTPM {alone} s, with one {both} s")


def loaded(bed, other, guest, times):
    """To and fro, while the guest works."""
    def move(number):
        source, target = (bed, other) if number % 2 else (other, bed)
        return " ".join(migrate(guest, source, target).split())

    ledger.kept_through(bed, guest, "xen-vtpmd migrate", times, move)


def run(bed, times=0, driver=None, samples=0):
    """A PVH guest: Xen as Debian builds it migrates no PV guest. `times` are those under load,
    `samples` those whose downtime is measured."""
    bed.driver = driver or bed.driver
    vtpm = bed.vtpm("2.0")
    with hosts(bed, [vtpm]) as other:
        with bed.guest("migrating", [vtpm], memory=GUEST_MEMORY, type="'pvh'") as guest:
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
            if not samples:
                return
            with bed.guest("plain", [], memory=GUEST_MEMORY, type="'pvh'") as plain:
                # Far above a tenth, which it should be: Documentation/moving.rst has the figures.
                bed.report.add(bed.suite, "what the vTPM adds to the downtime", "noted", 0,
                               cost(bed, other, guest, plain, samples))
            bed.checks(guest, "save_kept")
