# SPDX-License-Identifier: GPL-2.0
"""Each party of `xen-vtpmd migrate` fails in the midst, on two hosts with the real xl, ssh and
swtpm: the rows of moving.rst's table. The guest and the one TPM that may run are then on the same
host."""

import collections
import json
import time

from testbed import wait
from testbed.report import Failure
from testbed.toolstack import must_be
from testbed.two import GUEST_MEMORY, MIGRATION_LIMIT, STATES, hosts, pids, small_states

SETS = ("deep",)
NEEDS = ("save",)

# What fails, when, on which hosts, by what script, and where xl may leave the guest.
Row = collections.namedtuple("Row", "what step hosts script ends")


def kill(program, word):
    """The script that kills such processes; there has to be one."""
    return f"kill -9 {pids(program, word)}"


# Stops the destination's xl when the TPM has arrived: the guest is suspended then.
RECEIVING_XL = pids("xl", "migrate-receive")
HOLD = (
    f"(until grep -q arrived {STATES}/*.migration; do sleep 0.02; done; kill -STOP {RECEIVING_XL};"
    " echo held >/run/held) >/dev/null 2>&1 &"
)
GO_ON = f"[ ! -e /run/held ] || kill -CONT {RECEIVING_XL}"
# A new one follows, as systemd would have it.
MANAGER = (
    "kill -9 $(cat /run/xen-vtpmd.pid); xen-vtpmd run >>/host/xen-vtpmd.log 2>&1 &"
    " echo $! >/run/xen-vtpmd.pid"
)
FILL = f"dd if=/dev/zero of={STATES}/full bs=4k 2>/dev/null; sync"
MEMORY, SENT = "the guest's memory is sent", "the TPM is sent"
SOURCE, TARGET = "the source", "the destination"
HERE, THERE, EITHER = (SOURCE,), (TARGET,), (SOURCE, TARGET)
# A migration takes a minute: what a row is like another one for is natively tested.
ROWS = (
    Row("managers", SENT, (SOURCE, TARGET), MANAGER, THERE),
    Row("worker", SENT, (SOURCE,), kill("xen-vtpmd", "serve"), THERE),
    Row("worker", SENT, (TARGET,), kill("xen-vtpmd", "serve"), EITHER),
    Row("swtpm", SENT, (SOURCE,), "kill -9 $(pidof swtpm)", EITHER),
    Row("xen-vtpmd migrate", MEMORY, (SOURCE,), kill("xen-vtpmd", "migrate"), HERE),
    Row("xen-vtpmd migrate", SENT, (SOURCE,), kill("xen-vtpmd", "migrate"), THERE),
    Row("xl", MEMORY, (SOURCE,), kill("xl", "migrate"), HERE),
    Row("full disk", MEMORY, (SOURCE,), FILL, HERE),
    Row("full disk", MEMORY, (TARGET,), FILL, HERE),
)
# A host that is gone is noticed after some seconds.
ALIVE = "--ssh 'ssh -o ServerAliveInterval=2 -o ServerAliveCountMax=3'"


def domains(machine):
    """Those of the guest's on a host: name and state, as xl lists them."""
    text = machine.must("xl list | grep migrating || :")
    return {line.split()[0]: line.split()[4] for line in text.splitlines()}


def runs(machine, guest):
    """Whether the guest runs on a host, which has nothing else of it."""
    found = domains(machine)
    return list(found) == [guest.name] and not set("spcd") & set(found[guest.name])


def mark(machine):
    """What a migration has left beside the state of the one vTPM, and whether there is a state."""
    entries = json.loads(machine.must("xen-vtpmd list --json"))
    return [entry.get("migration") for entry in entries]


def begin(step, source, target, guest, options=""):
    """Starts a migration, and waits until it has come to a step, where it is held if it would not
    last."""
    peer = target.machine.must("hostname").strip()
    target.machine.must(f"rm -f /run/held; {HOLD}" if step == SENT else "rm -f /run/held")
    source.machine.must(
        f"(xen-vtpmd migrate {options} {guest.name} {peer}; echo ended with $?)"
        " >/run/migrate 2>&1 &"
    )
    if step == SENT:
        must_be(target.machine, "cat /run/held", "held", MIGRATION_LIMIT)
    else:
        must_be(target.machine, "xl list | grep -c -e --incoming", "1", 60)
        # What was killed before the first page would be killed at no step.
        time.sleep(1)
    if len(domains(target.machine)) != 1 or runs(target.machine, guest):
        raise Failure("the migration is over before it could fail")


def ended(source):
    """Waits until the migration has ended, also if xl has been left alone; what it has said."""
    machine = source.machine
    must_be(machine, "grep -c '^ended with' /run/migrate", "1", MIGRATION_LIMIT)
    # A guest that has come is looked after by an `xl migrate-receive`, which stays.
    must_be(machine, f"echo {pids('xl', 'migrate')}", "", MIGRATION_LIMIT)
    return machine.must("cat /run/migrate")


def owner(source, target, guest, said):
    """Who has the guest: one of them, and the other has nothing of it that runs."""
    def only():
        here, there = (runs(each.machine, guest) for each in (source, target))
        others = domains((target if here else source).machine)
        return (here or there) and not others and (SOURCE if here else TARGET)

    return wait.until(only, 40, lambda: (
        f"the guest is nowhere, or not on one host alone: {domains(source.machine)} at the source,"
        f" {domains(target.machine)} at the destination. It was said: {said[-2000:]}"))


def one_tpm(having, other, guest):
    """The TPM is where the guest is, and what the other host has may not run. Where that is in
    doubt it is told so, as moving.rst says."""
    uuid = guest.vtpms[0].uuid
    must_be(having.machine, "pidof swtpm | wc -w", "1", 20)
    must_be(other.machine, "pidof swtpm | wc -w", "0", 20)
    wait.until(lambda: mark(having.machine) == [None], 20,
               lambda: f"where the guest runs its TPM is {mark(having.machine)}")
    left = mark(other.machine)
    if None in left:
        raise Failure(f"the other host has a TPM that may run, too: {left}")
    if left:
        other.machine.must(f"xen-vtpmd discard --yes {uuid}")
    return f"the other host: {left[0] if left else 'nothing'}"


def fails(row, source, target, guest):
    """One row. Returns who has the guest."""
    begin(row.step, source, target, guest)
    for host in row.hosts:
        (source if host == SOURCE else target).machine.must(row.script)
    target.machine.must(GO_ON)
    said = ended(source)
    for each in (source, target):
        each.machine.must(f"rm -f {STATES}/full")
    return owner(source, target, guest, said), said


def survives(bed, row, source, target, guest):
    """One row, and whether there is one TPM afterwards. Returns the hosts, the guest's first."""
    found = []

    def once():
        place, said = fails(row, source, target, guest)
        found[:] = (source, target) if place == SOURCE else (target, source)
        if place == TARGET:
            guest.machine = target.machine
            guest.migrated()
        if place not in row.ends:
            raise Failure(f"the guest is at {place}: {said[-2000:]}")
        return f"the guest is at {place}; {one_tpm(*found, guest)}"

    bed.record(f"{row.what}, of {' and '.join(row.hosts)}, when {row.step}", once)
    if not found:
        raise Failure(f"{row.what}: nobody knows where the guest is")
    bed.checks(guest, "save_kept", "save_goes_on")
    return found


def suspended(source, target, guest):
    """xl is killed when the guest is suspended: it is suspended for ever, and neither copy starts.
    A person resumes it here."""
    uuid = guest.vtpms[0].uuid
    begin(SENT, source, target, guest)
    source.machine.must(kill("xl", "migrate"))
    target.machine.must(GO_ON)
    said = ended(source)
    if f"xen-vtpmd take {uuid}" not in said:
        raise Failure(f"it says {said[-2000:]}")
    must_be(target.machine, "xl list | grep -c migrating", "0", 40)
    must_be(target.machine, "pidof swtpm | wc -w", "0", 20)
    left = [mark(each.machine) for each in (source, target)]
    if any(None in marks for marks in left):
        raise Failure(f"a copy may run: {left}")
    source.machine.must(f"xen-vtpmd take {uuid}; xl resume {guest.name}")
    target.machine.must(f"xen-vtpmd discard --yes {uuid}")
    owner(source, target, guest, said)
    return f"{left}; {one_tpm(source, target, guest)}"


def powered_off(source, target, guest):
    """The destination loses its power."""
    begin(MEMORY, source, target, guest, ALIVE)
    target.machine.cut_power()
    said = ended(source)
    if "the guest runs here, with its TPM" not in said:
        raise Failure(f"it says {said[-2000:]}")
    must_be(source.machine, "pidof swtpm | wc -w", "1")
    if mark(source.machine) != [None]:
        raise Failure(f"{mark(source.machine)}: {said[-2000:]}")
    return said.strip().splitlines()[-2]


def run(bed):
    """The guest is where the row before has left it."""
    vtpm = bed.vtpm("2.0")
    with hosts(bed, [vtpm]) as other:
        small_states(bed, other)
        with bed.guest("migrating", [vtpm], memory=GUEST_MEMORY, type="'pvh'") as guest:
            bed.checks(guest, "module_loads", "save_prepare", "save_goes_on")
            having, free = bed, other
            for row in ROWS:
                having, free = survives(bed, row, having, free, guest)
            bed.record("xl, of the source, when the guest is suspended", suspended, having, free,
                       guest)
            bed.checks(guest, "save_kept", "save_goes_on")
            bed.record("the destination is powered off", powered_off, having, free, guest)
            bed.checks(guest, "save_kept", "save_goes_on")
