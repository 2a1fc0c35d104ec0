# SPDX-License-Identifier: GPL-2.0
"""What a guest with one vTPM holds on account of it: event channels, grants, devices, memory. A leak in its driver shows
as more of it after some cycles than before."""

from harness.report import Failure

GUEST = """
sync; echo 3 >/proc/sys/vm/drop_caches
echo "TPMs: $(ls /sys/class/tpm | tr '\\n' ' ')"
echo "devices: $(ls /sys/bus/xen/devices | grep vtpm | tr '\\n' ' ')"
echo "interrupts: $(grep -cE 'vtpm|tpmif' /proc/interrupts)"
echo "users of the module: $(cat /sys/module/xen_tpmfront/refcnt)"
# Of vmalloc's areas, the kernel keeps those that were given back until there are many: each script leaves two.
areas=$(awk '$1 == "vmap_area" { print 4 * $6 * $15 }' /proc/slabinfo)
echo "slab KiB: $(($(sed -n 's/^SUnreclaim: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo) - ${areas:-0}))"
# Free pages that a processor keeps at hand are free, though MemAvailable leaves them out.
pages=$(awk '$1 == "count:" { pages += $2 } END { print pages }' /proc/zoneinfo)
echo "free KiB: $(($(sed -n 's/^MemAvailable: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo) + 4 * pages))"
"""
DOM0 = """
domid=$(xl domid {name})
echo "grant: $(xenstore-read /local/domain/$domid/device/vtpm/0/ring-ref)"
echo "event channels: $(lsevtchn $domid | wc -l)"
xl dmesg -c >/dev/null
xl debug-keys g
echo "mapped grants: $(xl dmesg -c | sed -n "/for remote d$domid (/,/print_all ] done\\|for remote d/p" | grep -cE '^\\(XEN\\) *\\[0x')"
"""

# What there may be more of than before, and less. The kernel gives out the grant that was given back last, but keeps one
# back that the backend still maps. Its memory is not to be had to the KiB: counters of each processor, a shell's pages.
MORE = {"grant": 3, "slab KiB": 160}
LESS = {"free KiB": 1024}


def take(guest):
    """What there is now: text by name."""
    lines = guest.must(GUEST).splitlines() + guest.machine.must(DOM0.format(name=guest.name)).splitlines()
    return {name: value.strip() for name, mark, value in (line.partition(":") for line in lines) if mark}


def same(before, after):
    """Fails when something was not given back; returns what there is."""
    wrong, told = [], []
    for name, old in before.items():
        new = after[name]
        told.append(f"{name} {old or 'none'} before, {new or 'none'} now")
        if name in MORE and new:
            bad = int(new) > int(old) + MORE[name]
        elif name in LESS:
            bad = int(new) < int(old) - LESS[name]
        else:
            bad = new != old
        if bad:
            wrong.append(told[-1])
    if wrong:
        raise Failure("; ".join(wrong))
    return "; ".join(told)
