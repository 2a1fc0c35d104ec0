# SPDX-License-Identifier: GPL-2.0
"""Managers, workers, I/O processes and swtpms are killed under load: guests keep their TPMs, and no
state is lost."""

import functools
import os
import random
import re
import time

from testbed import backend_resources, guest_resources, ledger, wait
from testbed.guest import Vtpm
from testbed.report import Failure
from testbed.toolstack import must_be

# In no set: the native tests kill 200 times. One guest here lives through fifty, too.
SETS = ()
# How often what is killed: a few of each, under less load, which takes less time.
FEW = {"manager": 1, "worker": 1, "restart": 1, "closed": 1, "first start": 1}
# One guest lives through fifty, with an NV counter in both TPMs.
FIFTY = {"manager": 13, "worker": 15, "io": 8, "restart": 7, "closed": 3, "first start": 4}
VARIANTS = {"50": {"sets": (), "plan": FIFTY, "version": "2.0", "pause": 0}}

STATE = "/var/lib/xen-vtpmd"
ATTACH_LIMIT = 15
# xl has its device long before a new TPM has its key, whose primes may be found late (s).
KEY_LIMIT = 120


def pid_of(bed, vtpm):
    """The process behind a vTPM; nothing if there is none at the moment."""
    records = bed.machine.run("cat /run/xen-vtpmd/vtpm/*/record.json")[1]
    found = [record for record in re.findall(r"\{.*?\}", records) if vtpm.uuid in record]
    return re.search(r'"pid": *(\d+)', found[0])[1] if found else None


def serving(bed, kind):
    """The processes that run this subcommand of xen-vtpmd."""
    script = ("for pid in $(pidof xen-vtpmd); do tr '\\0' ' ' </proc/$pid/cmdline |"
              f" grep -q ' {kind} ' && echo $pid; done; :")
    return bed.machine.must(script).split()


def kill_serving(kind, bed, guests, chance, _):
    """kill -9 of a worker or an I/O process: another one follows, and swtpm is the same."""
    before = sorted(bed.machine.must("pidof swtpm").split())
    time.sleep(chance.uniform(0, 1.5))
    victims = serving(bed, kind)
    if len(victims) < len(guests):
        raise Failure(f"{len(victims)} processes `{kind}` of {len(guests)} guests")
    victim = chance.choice(victims)
    bed.machine.must(f"kill -9 {victim}")
    for guest in guests:
        ledger.progress(guest)
    after = sorted(bed.machine.must("pidof swtpm").split())
    if before != after:
        raise Failure(f"swtpm had the pids {before}, and {after} after `{kind}` was killed")
    if len(serving(bed, kind)) != len(victims) or victim in serving(bed, kind):
        raise Failure(f"`{kind}` was {victims}, and is {serving(bed, kind)}")
    return f"{victim}: {({guest.name: ledger.read(guest)[1] for guest in guests})}"


def kill_manager(bed, guests, chance, _):
    """kill -9; a new one takes over, now and then after it was killed in the midst of that."""
    before = bed.machine.must("pidof swtpm").split()
    time.sleep(chance.uniform(0, 1.5))
    bed.stop_backend("kill -9 $pid")
    if chance.random() < 0.3:
        bed.machine.must(
            f"xen-vtpmd run >>/host/xen-vtpmd.log 2>&1 & sleep {chance.uniform(0, 0.6):.2f}; kill"
            " -9 $!"
        )
    bed.start_backend()
    for guest in guests:
        ledger.progress(guest)
    after = bed.machine.must("pidof swtpm").split()
    if sorted(before) != sorted(after):
        raise Failure(
            f"swtpm had the pids {before} before, and {after} after the manager was killed"
        )
    return str({guest.name: ledger.read(guest)[1] for guest in guests})


def kill_restarting(bed, guest, chance, _):
    """kill -9 of a swtpm whose vTPM comes back at once: as a TPM that has just been started."""
    vtpm, = guest.vtpms
    resets = ledger.read(guest)[1].get("resets", 0)
    time.sleep(chance.uniform(0, 1.5))
    old = pid_of(bed, vtpm)
    bed.machine.must(f"kill -9 {old}")
    ledger.progress(guest)
    if pid_of(bed, vtpm) in (old, None):
        raise Failure(f"it has the process {pid_of(bed, vtpm)}, and had {old}")
    if ledger.read(guest)[1].get("resets", 0) != resets + 1:
        raise Failure(f"the guest has not seen that its PCRs are reset: {ledger.read(guest)}")


def kill_closed(bed, guest, chance, pause):
    """kill -9 of a swtpm whose vTPM stays closed: the guest has no TPM until it is started anew."""
    vtpm, = guest.vtpms
    time.sleep(chance.uniform(0, 1.5))
    bed.machine.must(f"kill -9 {pid_of(bed, vtpm)}")
    ledger.says(guest, "waiting EPIPE")
    rounds = ledger.read(guest)[1]["rounds"]
    time.sleep(3)
    state, numbers = ledger.read(guest)
    if state != "waiting" or numbers["rounds"] != rounds:
        raise Failure(f"a command was answered: {numbers}")
    guest.destroy()
    guest.start()
    bed.checks(guest, "module_loads", "ledger_reset")
    ledger.start(guest, "closed", pause, numbers["counter"])
    ledger.says(guest, "working")


def detach(machine, guest, vtpm):
    """Takes the vTPM from the guest, if it has it."""
    machine.run(f"xl vtpm-detach {guest.name} {vtpm.uuid}", 60)
    must_be(machine, f"xl vtpm-list {guest.name} | grep -c {vtpm.uuid}", "0", 20)


def kill_at_first_start(bed, guest, chance, _):
    """kill -9 while the state of a new vTPM is made: in the end there is none, or a whole one."""
    machine, vtpm = bed.machine, Vtpm(bed.vtpm().uuid)
    victim = chance.choice(["xen-vtpmd", "swtpm_setup", "swtpm"])
    before = set(machine.run("pidof swtpm")[1].split())
    machine.must(
        f"(timeout 30 xl vtpm-attach {guest.name} uuid={vtpm.uuid} backend=0; echo done)"
        " >/run/attach 2>&1 &"
    )
    time.sleep(chance.uniform(0, 2.5))
    if victim == "xen-vtpmd":
        bed.stop_backend("kill -9 $pid")
        bed.start_backend()
    else:
        victims = set(machine.run(f"pidof {victim}")[1].split()) - before
        machine.run(f"kill -9 {' '.join(victims)}" if victims else ":")
    must_be(machine, "tail -n 1 /run/attach", "done", ATTACH_LIMIT + 5)
    detach(machine, guest, vtpm)
    # Whatever is there now has to start, once what the killed one had started has noticed.
    start = time.monotonic()

    def attached():
        code, _ = machine.run(f"xl vtpm-attach {guest.name} uuid={vtpm.uuid} backend=0", 60)
        if code:
            # An attachment that failed is left in the list.
            detach(machine, guest, vtpm)
        return code == 0

    wait.until(
        attached,
        ATTACH_LIMIT,
        lambda: (
            f"{victim} was killed, and the vTPM does not start: "
            f"{backend_resources.reasons(machine)}{machine.run('ps | grep swtpm')[1]}"
        ),
        pause=1,
    )
    seconds = time.monotonic() - start
    must_be(
        machine,
        f"xl vtpm-list {guest.name} | grep {vtpm.uuid} | tr -s ' ' | cut -d' ' -f5",
        "4",
        KEY_LIMIT,
    )
    detach(machine, guest, vtpm)
    return f"{victim} killed, attached again after {seconds:.1f} s"


def nothing_left(bed, idle):
    """With the guests gone, the daemon has what it had at first."""
    backend_resources.no_panic(bed.machine)
    must_be(bed.machine, "pidof swtpm swtpm_setup | wc -w", "0", 15)
    must_be(bed.machine, f"ls {STATE} | grep -c new", "0")
    return backend_resources.compare(idle, backend_resources.holdings(bed.machine))


def run(bed, plan=FEW, version="1.2", pause=0.1):
    """Kills as `plan` says, how often in which way, in an order and at moments that the seed
    decides. `version` is that of the TPM that comes back at once; the guests work with a `pause`
    after each round, in seconds."""
    seed = int(os.environ.get("SEED") or time.time())
    chance = random.Random(seed)
    kinds = [kind for kind, count in plan.items() for _ in range(count)]
    chance.shuffle(kinds)
    vtpms = [bed.vtpm("2.0"), bed.vtpm(version, policy='on-death = "restart"')]
    bed.boot(vtpms)
    idle = backend_resources.holdings(bed.machine)
    with bed.guest("closed", vtpms[:1]) as closed, bed.guest("restart", vtpms[1:]) as restart:
        for guest in (closed, restart):
            bed.checks(
                guest,
                "module_loads",
                *(["ledger_counter"] if guest.vtpms[0].version == "2.0" else []),
            )
        before = guest_resources.take(restart)
        bed.record("the instruments measure", backend_resources.measures, bed.machine, 2)
        for guest in (closed, restart):
            ledger.start(guest, guest.name, pause)
            ledger.says(guest, "working")
        both = (closed, restart)
        ways = {"manager": (kill_manager, both), "restart": (kill_restarting, restart),
                "worker": (functools.partial(kill_serving, "serve"), both),
                "io": (functools.partial(kill_serving, "io"), both),
                "closed": (kill_closed, closed), "first start": (kill_at_first_start, restart)}
        for number, kind in enumerate(kinds, 1):
            function, whom = ways[kind]
            if not bed.record(
                f"kill {number} of {len(kinds)}: {kind}", function, bed, whom, chance, pause
            ):
                raise Failure(f"SEED={seed} repeats this")
        bed.record(f"nothing is lost (SEED={seed})", ledger.ends_well, (closed, restart))
        # This one has lived through all of it.
        bed.record("nothing is left in the guest", lambda: guest_resources.same(before, restart))
    bed.record("nothing is left over", nothing_left, bed, idle)
