# SPDX-License-Identifier: GPL-2.0
"""A guest whose frontend breaks every rule: the daemon lives on, and another guest hardly
notices."""

import os
import re
import time

from testbed import backend_resources, wait
from testbed.guest import Guest
from testbed.guest_scripts import latency
from testbed.report import Failure

# In make test the native tests have frontends that break the rules.
SETS = ()

# How much slower another guest's commands may be.
SLOWER = 2.0
# What the daemon may log about one guest, in bytes a second.
LOG_RATE = 8192
# Each way by itself, long enough for leaks to show and for a thousand reconnections, then all of
# them.
DEEP = [
    *(
        (way, 30 if way == "reconnects" else 10)
        for way in ("page", "events", "garbage", "grants", "states", "reconnects", "removal")
    ),
    ("random", 30),
]
VARIANTS = {"deep": {"sets": ("deep",), "turns": DEEP, "count": 600}}


def begin(guest, behaviour, seconds, seed):
    """Lets the guest misbehave in the background."""
    guest.must(
        f"(xen-hostile-frontend {behaviour} {seconds} {seed}; echo ended $?) >/run/hostile.out"
        " 2>&1 &"
    )


def spinning(honest, bad, count):
    """The same while the other guest only uses its processor, of which the testbed has one for
    all."""
    bad.must("(while :; do :; done) & echo $! >/run/spin")
    try:
        return latency(honest, count)
    finally:
        bad.must("kill $(cat /run/spin)")


def finish(guest, limit):
    """Waits for the end of that; fails when a good command is not answered afterwards. Returns what
    was done."""
    wait.until(lambda: "ended" in guest.must("cat /run/hostile.out"), limit,
               lambda: f"no end: {guest.must('cat /run/hostile.out')}")
    output = guest.must("cat /run/hostile.out")
    if "ended 0" not in output:
        raise Failure(output)
    counts = {}
    for name, count in re.findall(r"^(\w+): (\d+)$", output, re.MULTILINE):
        counts[name] = counts.get(name, 0) + int(count)
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def misbehave(bed, guests, behaviour, seconds, count):
    """One behaviour, while the other guest works; what it is compared with is measured just before,
    since the testbed's host has other work, too."""
    honest, bad = guests
    # With the second guest there, and idle.
    alone, share = latency(honest, count), spinning(honest, bad, count)
    seed = int(os.environ.get("SEED") or time.time())
    used, logged, start = (
        backend_resources.cpu_seconds(bed.machine),
        len(backend_resources.log(bed.machine)),
        time.monotonic(),
    )
    begin(bad, behaviour, seconds, seed)
    busy = latency(honest, count)
    done = finish(bad, seconds + 120)
    span = time.monotonic() - start
    used, logged = (
        backend_resources.cpu_seconds(bed.machine) - used,
        len(backend_resources.log(bed.machine)) - logged,
    )
    backend_resources.no_panic(bed.machine)
    numbers = (
        f"seed {seed}; {done}; median {alone} us before, {share} us beside a guest that only spins,"
        f" {busy} us meanwhile ({busy / alone:.2f} and {busy / share:.2f} times); xen-vtpmd used"
        f" {used:.1f} s of {span:.0f} s and logged {logged} bytes"
    )
    if busy > SLOWER * share:
        raise Failure(f"the other guest is slowed down too much: {numbers}")
    if logged > LOG_RATE * span:
        raise Failure(f"too much is logged: {numbers}")
    return numbers


def extra_pages(bed, bad):
    """A frontend that announces extra pages is served behind its references, and none of them is
    mapped."""
    begin(bad, "extra", 4, 1)
    time.sleep(2)
    grants = backend_resources.holdings(bed.machine)["grants"]
    done = finish(bad, 60)
    if grants != 2:
        raise Failure(f"{grants} pages of two guests are mapped")
    return done


def at_the_end(bed, bad, before):
    """Destroyed in the midst of it, the guest leaves nothing behind."""
    begin(bad, "random", 60, 1)
    time.sleep(2)
    bad.destroy()
    return backend_resources.same(before, bed.machine, 20)


def run(bed, turns=(("random", 10),), count=400):
    """Runs the behaviours, with their seconds, one after the other."""
    good, bad = bed.vtpm("2.0"), bed.vtpm("2.0")
    bed.boot([good, bad])
    with bed.guest("honest", [good]) as honest:
        bed.checks(honest, "module_loads")
        latency(honest, 20)
        before = backend_resources.holdings(bed.machine, 1)
        guest = Guest(bed.machine, "hostile", [bad])
        guest.start()
        try:
            guest.must(
                "modprobe -a xen-gntalloc xen-evtchn; echo 100000"
                " >/sys/module/xen_gntalloc/parameters/limit"
            )
            bed.record("extra pages", extra_pages, bed, guest)
            for behaviour, seconds in turns:
                bed.record(
                    f"{behaviour} for {seconds} s",
                    misbehave,
                    bed,
                    (honest, guest),
                    behaviour,
                    seconds,
                    count,
                )
            bed.record("nothing leaks", at_the_end, bed, guest, before)
        finally:
            if guest.alive():
                guest.destroy()
        bed.record("no panic", backend_resources.no_panic, bed.machine)
