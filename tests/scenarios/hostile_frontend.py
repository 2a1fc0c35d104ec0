# SPDX-License-Identifier: GPL-2.0
"""A guest whose frontend breaks every rule: the daemon lives on, and another guest hardly notices."""

import os
import re
import time

from testbed import backend_resources
from testbed.guest import Guest
from testbed.report import Failure

SETS = ("test",)

# How much slower another guest's commands may be.
SLOWER = 2.0
# What the daemon may log about one guest, in bytes a second.
LOG_RATE = 8192


def latency(guest, count):
    """The median time of a command, in microseconds, over so many of them; their results are checked."""
    done = guest.run(f"python3 -E -s /bed/steady.py count {guest.name} {count}", 240)
    if done.code:
        raise Failure(f"the honest guest: {done.output[-1500:]}")
    return int(re.search(r"median_us (\d+)", done.output)[1])


def begin(guest, behaviour, seconds, seed):
    """Lets the guest misbehave in the background."""
    guest.must(f"(xen-hostile-frontend {behaviour} {seconds} {seed}; echo ended $?) >/run/hostile.out 2>&1 &")


def spinning(honest, bad, count):
    """The same while the other guest only uses its processor, of which the bed has one for all."""
    bad.must("(while :; do :; done) & echo $! >/run/spin")
    try:
        return latency(honest, count)
    finally:
        bad.must("kill $(cat /run/spin)")


def finish(guest, limit):
    """Waits for the end of that; fails when a good command is not answered afterwards. Returns what was done."""
    until = time.monotonic() + limit
    while True:
        output = guest.must("cat /run/hostile.out")
        if "ended" in output:
            break
        if time.monotonic() > until:
            raise Failure(f"no end after {limit} s: {output}")
        time.sleep(0.2)
    if "ended 0" not in output:
        raise Failure(output)
    counts = {}
    for name, count in re.findall(r"^(\w+): (\d+)$", output, re.MULTILINE):
        counts[name] = counts.get(name, 0) + int(count)
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def misbehave(bed, guests, behaviour, seconds, quiet, count):
    """One behaviour, while the other guest works."""
    honest, bad = guests
    seed = int(os.environ.get("SEED") or time.time())
    used, logged, start = backend_resources.cpu_seconds(bed.machine), len(backend_resources.log(bed.machine)), time.monotonic()
    begin(bad, behaviour, seconds, seed)
    busy = latency(honest, count)
    done = finish(bad, seconds + 120)
    span = time.monotonic() - start
    used, logged = backend_resources.cpu_seconds(bed.machine) - used, len(backend_resources.log(bed.machine)) - logged
    backend_resources.no_panic(bed.machine)
    alone, share = quiet
    numbers = f"seed {seed}; {done}; median {alone} us before, {share} us beside a guest that only spins, " \
        f"{busy} us meanwhile ({busy / alone:.2f} and {busy / share:.2f} times); " \
        f"xen-vtpmd used {used:.1f} s of {span:.0f} s and logged {logged} bytes"
    if busy > SLOWER * share:
        raise Failure(f"the other guest is slowed down too much: {numbers}")
    if logged > LOG_RATE * span:
        raise Failure(f"too much is logged: {numbers}")
    return numbers


def extra_pages(bed, bad):
    """A frontend that announces extra pages is served behind its references, and none of them is mapped."""
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
    until = time.monotonic() + 20
    while True:
        try:
            return backend_resources.compare(before, backend_resources.holdings(bed.machine))
        except Failure:
            if time.monotonic() > until:
                raise
            time.sleep(1)


def scenario(bed, turns, count):
    """Runs the behaviours, with their seconds, one after the other."""
    good, bad = bed.vtpm("2.0"), bed.vtpm("2.0")
    bed.boot([good, bad])
    with bed.guest("honest", [good]) as honest:
        bed.checks(honest, "module_loads")
        latency(honest, 20)
        before = backend_resources.holdings(bed.machine)
        guest = Guest(bed.machine, "hostile", [bad])
        guest.start()
        try:
            guest.must("modprobe -a xen-gntalloc xen-evtchn; echo 100000 >/sys/module/xen_gntalloc/parameters/limit")
            bed.record("extra pages", extra_pages, bed, guest)
            # With the second guest there, and idle.
            quiet = latency(honest, count), spinning(honest, guest, count)
            for behaviour, seconds in turns:
                bed.record(f"{behaviour} for {seconds} s", misbehave, bed, (honest, guest), behaviour, seconds,
                           quiet, count)
            bed.record("nothing leaks", at_the_end, bed, guest, before)
        finally:
            if guest.alive():
                guest.destroy()
        bed.record("no panic", backend_resources.no_panic, bed.machine)


def run(bed):
    """Ten seconds of everything."""
    scenario(bed, [("random", 10)], 400)
