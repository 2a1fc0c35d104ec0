# SPDX-License-Identifier: GPL-2.0
"""What the backend has in dom0 (processes, descriptors, grants, ports) and what it says in its
log."""

import collections
import json
import re

from testbed import wait
from testbed.report import Failure

# Sockets and pipes have numbers, and a vTPM's files have its name.
NUMBERS = re.compile(r":\[\d+\]|[0-9a-f]{8}-[0-9a-f-]{27}")

# Of all processes of the daemon, whoever of them serves a vTPM.
LOOK = """
for pid in $(pidof xen-vtpmd); do
	for fd in /proc/$pid/fd/*; do [ -e "$fd" ] || [ -L "$fd" ] && echo "fd $(readlink "$fd")"; done
done
maps() { for pid in $(pidof xen-vtpmd); do cat /proc/$pid/maps 2>/dev/null; done; }
echo "grants $(maps | grep -c gntdev)"
for name in xen-vtpmd swtpm swtpm_setup; do echo "$name $(pidof $name | wc -w)"; done
echo "zombies $(cat /proc/[0-9]*/stat 2>/dev/null | grep -c ') Z ')"
echo "dying $(xl list | grep -c '(null)')"
xl dmesg -c >/dev/null
xl debug-keys e
echo "ports $(xl dmesg -c | sed -n '/for domain 0/,/for domain [1-9]/p' | grep -c 's=3 .* d=[1-9]')"
"""


# What there is of at least so many for each connected vTPM: an instrument that shows less does not
# measure.
FLOORS = ("grants", "ports", "swtpm")


def holdings(machine, connected=0):
    """How many of each thing the backend has; `ports` are all of dom0's that lead to guests. Fails
    where that is less than so many connected vTPMs have to have."""
    found = collections.Counter()
    for line in machine.must(LOOK).splitlines():
        name, _, value = line.partition(" ")
        if name == "fd":
            found["fd " + NUMBERS.sub("", value)] += 1
        else:
            found[name] = int(value)
    low = [f"{name} is {found[name]}" for name in FLOORS if found[name] < connected]
    if low or not found["xen-vtpmd"] or not any(name.startswith("fd ") for name in found):
        raise Failure(
            f"the instruments do not measure: with {connected} vTPMs"
            f" {', '.join(low) or dict(found)}"
        )
    return found


def measures(machine, connected):
    """The instruments show that so many vTPMs are connected. Returns what they show."""
    return ", ".join(
        f"{name} {count}" for name, count in sorted(holdings(machine, connected).items()) if count
    )


def same(before, machine, seconds):
    """Fails when it has more or less than before, some time later still."""
    def look():
        try:
            return compare(before, holdings(machine))
        except Failure as why:
            wrong[0] = str(why)
            return None

    wrong = [""]
    return wait.until(look, seconds, lambda: wrong[0], pause=1)


def compare(before, after):
    """Fails when it has more or less than before."""
    wrong = [f"{name}: {before[name]} before, {after[name]} now"
             for name in sorted(before | after) if before[name] != after[name]]
    if wrong:
        raise Failure("; ".join(wrong))
    return ", ".join(f"{name} {count}" for name, count in sorted(after.items()) if count)


def cpu_seconds(machine):
    """The processor time that the processes of the daemon have used."""
    stats = machine.must(
        "for pid in $(pidof xen-vtpmd); do cat /proc/$pid/stat 2>/dev/null; done"
    ).splitlines()
    fields = [stat.rpartition(")")[2].split() for stat in stats]
    return sum(int(ticks) for words in fields for ticks in words[11:13]) / 100


def processor_ns(machine):
    """The processor time (ns) that the kernel says the daemon's processes have used, and
    swtpm's."""
    script = "for pid in $(pidof {}); do cut -d' ' -f1 /proc/$pid/schedstat 2>/dev/null; done"
    return [
        sum(int(number) for number in machine.must(script.format(name)).split())
        for name in ("xen-vtpmd", "swtpm")
    ]


def counters(machine, guest):
    """What the daemon's status says of the guest's first vTPM, and of the manager with the guest's
    worker and I/O process (`daemon_us`)."""
    domid = int(machine.must(f"xl domid {guest.name}"))
    report = json.loads(machine.must("xen-vtpmd status --json"))
    found = [vtpm for vtpm in report["vtpms"] if (vtpm["domid"], vtpm["devid"]) == (domid, 0)]
    if not found:
        raise Failure(f"domain {domid} has no vTPM: {report}")
    return {**found[0], "daemon_us": report["used_us"] + found[0]["own_us"]}


def share(before, after):
    """What part of swtpm's processor time the daemon's is between two looks by processor_ns(), and
    that in words."""
    daemon, swtpm = (new - old for new, old in zip(after, before))
    if daemon <= 0 or swtpm <= 0:
        raise Failure(f"the instruments do not measure: {before} before, {after} after")
    return daemon / swtpm, (
        f"{daemon / 1e6:.0f} ms of the daemon, {swtpm / 1e6:.0f} ms of swtpm"
        f" ({100 * daemon / swtpm:.1f} %)"
    )


def log(machine):
    """What the daemons have logged so far."""
    with open(f"{machine.share}/xen-vtpmd.log", encoding="utf-8", errors="replace") as file:
        return file.read()


def no_panic(machine):
    """Fails when a daemon panicked, or is not there."""
    found = re.findall(r".*panicked at.*", log(machine))
    if found:
        raise Failure("\n".join(found))
    machine.must("kill -0 $(cat /run/xen-vtpmd.pid)")


def reasons(machine):
    """The reasons of failures that xenstore has."""
    return machine.must("xenstore-ls -f /local/domain/0/error 2>/dev/null || :")
