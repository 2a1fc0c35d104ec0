# SPDX-License-Identifier: GPL-2.0
"""What a guest with one vTPM holds on account of it: event channels, grants, devices, memory. A
leak in its driver shows as more of it after some cycles than before."""

from testbed import wait
from testbed.report import Failure

GUEST = """
modprobe -q xen-gntalloc
sync; echo 3 >/proc/sys/vm/drop_caches
echo "TPMs: $(ls /sys/class/tpm | tr '\\n' ' ')"
echo "devices: $(ls /sys/bus/xen/devices | grep vtpm | tr '\\n' ' ')"
echo "interrupts: $(grep -cE 'vtpm|tpmif' /proc/interrupts)"
echo "grants: $(python3 -E -s /bed/grants.py)"
echo "users of the module: $(cat /sys/module/xen_tpmfront/refcnt)"
# The debug kernel keeps memory that was freed, to see who uses it after that. What is lost there
# kmemleak finds.
[ ! -e /sys/kernel/debug/kmemleak ] || exit 0
page=$(python3 -E -s -c 'import os; print(os.sysconf("SC_PAGESIZE") >> 10)')
# Of vmalloc's areas, the kernel keeps those that were given back until there are many: each script
# leaves two.
areas=$(awk '$1 == "vmap_area" { print '$page' * $6 * $15 }' /proc/slabinfo)
echo "slab KiB: $(($(sed -n 's/^SUnreclaim: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo) - ${areas:-0}))"
# Free pages that a processor keeps at hand are free, though MemAvailable leaves them out.
pages=$(awk '$1 == "count:" { pages += $2 } END { print pages }' /proc/zoneinfo)
free=$(sed -n 's/^MemAvailable: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo)
echo "free KiB: $((free + page * pages))"
"""
DOM0 = """
domid=$(xl domid {name})
echo "ring-ref: $(xenstore-read /local/domain/$domid/device/vtpm/0/ring-ref)"
echo "event channels: $(event-channels $domid | wc -l)"
xl dmesg -c >/dev/null
xl debug-keys g
echo "mapped grants: $(xl dmesg -c |
	sed -n "/for remote d$domid (/,/print_all ] done\\|for remote d/p" | grep -cE '^\\(XEN\\) *\\[0x')"
"""

# What there may be more of than before, and less: memory is not to be had to the KiB, for the
# counters of each processor and a shell's pages.
MORE = {"slab KiB": 160}
LESS = {"free KiB": 1024}
# The kernel keeps back a grant that the backend still maps, and looks each second whether it does;
# in seconds.
PATIENCE = 10
# How many free references the guest's grants.py tells.
REFERENCES = 32


# With a connected vTPM, each of these shows something: an instrument that shows nothing does not
# measure.
COUNTED = ("interrupts", "users of the module", "event channels", "mapped grants")
NUMBERS = COUNTED + ("slab KiB", "free KiB")


def take(guest):
    """What there is now, with a vTPM that is connected: text by name."""
    found = look(guest)
    blind = [f"{name}: {found[name]!r}" for name in NUMBERS
             if name in found and not (found[name].isdigit() and int(found[name]))]
    blind += [name for name in ("TPMs", "devices", "grants", *COUNTED) if not found.get(name)]
    if blind:
        raise Failure(
            f"the instruments do not measure, with a vTPM connected to {guest.name}:"
            f" {'; '.join(blind)}"
        )
    return found


def look(guest):
    """What there is now: text by name."""
    lines = (
        guest.must(GUEST).splitlines()
        + guest.machine.must(DOM0.format(name=guest.name)).splitlines()
    )
    found = {
        name: value.strip() for name, mark, value in (line.partition(":") for line in lines) if mark
    }
    # The reference that the driver uses and those that are free are all there are, whichever it
    # uses.
    references = (found["grants"] + " " + found.pop("ring-ref")).split()
    if len(references) < REFERENCES:
        raise Failure(f"{guest.name} does not say which grant references are free: {lines}")
    return {**found, "grants": ranges({int(reference) for reference in references})}


def ranges(numbers):
    """8-39 for 8 to 39."""
    firsts = sorted(number for number in numbers if number - 1 not in numbers)
    lasts = sorted(number for number in numbers if number + 1 not in numbers)
    return " ".join(f"{first}-{last}" for first, last in zip(firsts, lasts))


def same(before, guest, more=MORE):
    """Fails when something was not given back; returns what there is."""
    found = [[], []]

    def unchanged():
        found[:] = compare(before, look(guest), more)
        return not found[0]

    wait.until(unchanged, PATIENCE, lambda: "; ".join(found[0]), pause=1)
    return "; ".join(found[1])


def compare(before, after, more=MORE):
    """What was not given back, and all that there is, in words."""
    wrong, told = [], []
    for name, old in before.items():
        new = after[name]
        told.append(f"{name} {old or 'none'} before, {new or 'none'} now")
        if name in more and new:
            bad = int(new) > int(old) + more[name]
        elif name in LESS:
            bad = int(new) < int(old) - LESS[name]
        else:
            bad = new != old
        if bad:
            wrong.append(told[-1])
    return wrong, told
