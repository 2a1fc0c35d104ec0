# SPDX-License-Identifier: GPL-2.0
"""Loading and unloading the driver again and again, with two processors."""

from testbed.report import Failure

SETS = ("compare", "deep")
# It has two processors, and with less than that it takes ten times as long.
ALONE = True

# The debug kernel is for what a turn leaves behind or does wrong; the race is the stock kernel's to
# find.
ON_DEBUG = 5

STATE = "/local/domain/$(xl domid {name})/device/vtpm/0/state"


def cycles(bed, guest, count):
    """Unloads and loads. Each time the device is as it is after boot: then xenbus can lose it (race
    T2)."""
    folder = bed.machine.must(f"echo {STATE.format(name=guest.name)}").strip()
    for number in range(1, count + 1):
        for script in ("unload", "load_fresh"):
            done = guest.run(f"set -e; . /bed/lib.sh; . /bed/load.sh; {script}")
            if done.code:
                raise Failure(f"cycle {number}: {done.output}")
            if script == "unload":
                bed.machine.must(f"xenstore-write {folder} 1")
    return f"{count} cycles"


def run(bed, count=8):
    """Two processors, since it is there that the device gets lost."""
    count = ON_DEBUG if bed.debug else count
    vtpm = bed.vtpm("2.0")
    bed.boot([vtpm], cpus=2)
    with bed.guest("reload", [vtpm], vcpus=2) as guest:
        bed.checks(guest, "module_loads")
        bed.record(f"reload: {count} times unloaded and loaded", cycles, bed, guest, count)
