# SPDX-License-Identifier: GPL-2.0
"""All that a VM lives through, in an order that a seed decides, while its guest extends a PCR and
follows it: what succeeded counts once, what failed at most once, and nothing hangs."""

import os
import random
import time

from testbed import backend_resources, guest_resources, ledger, toolstack
from testbed.guest_scripts import in_guest
from testbed.lacking import lacking
from testbed.report import Failure

SETS = ("compare", "debug", "race")

# How long the load may take to go on after an event.
LIMIT = 60


def saved_and_restored(bed, guest, _):
    """Saved and made anew, which the guest's programs do not see."""
    toolstack.save_and_restore(bed, guest)


def checkpoint(bed, guest, _):
    """Saved, and it goes on: its suspend is called off."""
    toolstack.checkpoint(bed, guest)


def failed_save(bed, guest, chance):
    """A save that fails when a part is written: xl lets the guest go on."""
    size = chance.randint(1, 64)
    code, output = bed.machine.run(
        f"rm -f /run/pipe; mkfifo /run/pipe; head -c {size}M </run/pipe >/dev/null & "
        f"xl save {guest.name} /run/pipe",
        120,
    )
    if code == 0:
        raise Failure(f"xl save to a pipe that nobody reads succeeds: {output}")
    return f"after {size} MiB"


def daemon_killed(bed, *_):
    """kill -9 of the daemon, and a new one."""
    bed.stop_backend("kill -9 $pid")
    bed.start_backend()


def attached_again(bed, guest, chance):
    """Detached, and attached again some time later: a TPM that has just been started."""
    vtpm, = guest.vtpms
    bed.machine.must(f"xl vtpm-detach {guest.name} {vtpm.uuid}", 60)
    in_guest(guest, "wait_for 20 sh -c '[ ! -e /sys/bus/xen/devices/vtpm-0 ]'")
    time.sleep(chance.uniform(0.3, 3))
    toolstack.attach(bed, guest, vtpm)


def bound_again(_, guest, chance):
    """Unbound, and bound some time later."""
    in_guest(
        guest,
        "echo vtpm-0 >/sys/bus/xen/drivers/vtpm/unbind; "
        f"sleep {chance.uniform(0.3, 3):.1f}; echo vtpm-0 >/sys/bus/xen/drivers/vtpm/bind",
    )


# What happens, how often the guest has to open the TPM anew, and how often its PCRs are reset by
# that.
EVENTS = {
    saved_and_restored: (0, 0),
    checkpoint: (0, 0),
    failed_save: (0, 0),
    daemon_killed: (0, 0),
    attached_again: (1, 1),
    bound_again: (1, 0),
}
if lacking("save"):
    for saves in (saved_and_restored, checkpoint, failed_save):
        del EVENTS[saves]


def counts(guest):
    """What the books say of openings and resets."""
    numbers = ledger.read(guest)[1]
    return [numbers.get(name, 0) for name in ("reopened", "resets")]


def lives_through(bed, guest, event, chance):
    """One event: the load goes on, with the same device or another one, as it should be."""
    time.sleep(chance.uniform(0, 1.5))
    before = counts(guest)
    said = event(bed, guest, chance) or ""
    start = time.monotonic()
    ledger.progress(guest, LIMIT)
    wanted = [old + more for old, more in zip(before, EVENTS[event])]
    if counts(guest) != wanted:
        raise Failure(f"opened anew and reset {counts(guest)} times, not {wanted}; {said}")
    tpms = guest.must("ls /sys/class/tpm").split()
    if tpms != ["tpm0"]:
        raise Failure(f"there are {tpms} now")
    return f"{said} went on {time.monotonic() - start:.1f} s later: {ledger.read(guest)}".strip()


def each_once(chance):
    """Each event once, in some order."""
    return chance.sample(list(EVENTS), len(EVENTS))


def for_long(chance):
    """LIFECYCLE_SECONDS= is for another time than four minutes."""
    until = time.monotonic() + int(os.environ.get("LIFECYCLE_SECONDS") or 240)
    while time.monotonic() < until:
        yield chance.choice(list(EVENTS))


# Five minutes, under constant load.
# In no set: on the debug kernels each event comes once in each run, in another order.
VARIANTS = {"deep": {"sets": (), "events": for_long, "pause": 0}}


def run(bed, events=each_once, pause=0.05):
    """Goes through the events that `events` makes of random numbers, one by one. SEED= repeats
    their order."""
    seed = int(os.environ.get("SEED") or time.time())
    print(f"    SEED={seed} repeats the order of events", flush=True)
    chance = random.Random(seed)
    vtpm = bed.vtpm("1.2" if bed.driver == "c" else "2.0", policy='on-death = "restart"')
    bed.boot([vtpm], dom0_memory=1792)
    with bed.guest("mix", [vtpm], memory=400) as guest:
        bed.checks(guest, "module_loads", *(["ledger_counter"] if vtpm.version == "2.0" else []))
        before = guest_resources.take(guest)
        ledger.start(guest, "restart", pause)
        ledger.says(guest, "working")
        for number, event in enumerate(events(chance), 1):
            if bed.record(
                f"event {number}: {event.__name__}", lives_through, bed, guest, event, chance
            ):
                continue
            if bed.driver != "c":
                raise Failure(f"SEED={seed} repeats this")
            # What becomes of the C driver is taken down; the next event finds a guest that is well.
            guest.destroy()
            guest.start()
            bed.checks(guest, "module_loads")
            ledger.start(guest, "restart", pause)
            ledger.says(guest, "working")
        bed.record(f"the books are right to the end (SEED={seed})", ledger.ends_well, [guest])
        bed.record("nothing is left", lambda: guest_resources.same(before, guest))
        bed.record("the daemon has not panicked", backend_resources.no_panic, bed.machine)
