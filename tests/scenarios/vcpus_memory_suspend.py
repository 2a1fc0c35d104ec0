# SPDX-License-Identifier: GPL-2.0
"""Processors and memory come and go under a guest that uses its TPM, xl suspends it and lets it go
on, and it suspends its own devices: no command is lost."""

import time

from testbed import ledger, wait
from testbed.report import Failure

SETS = ("deep",)
NEEDS = ("save",)

# As suspend-to-idle: all that is not a wakeup, which this guest has none of. The kernel wakes up by
# itself after 5 s.
SUSPEND_DEVICES = """
echo devices >/sys/power/pm_test
echo freeze >/sys/power/state
code=$?
echo none >/sys/power/pm_test
exit $code
"""


def becomes(guest, script, wanted):
    """Waits until a script in the guest says so."""
    def is_wanted():
        return guest.run(script).output.strip() == wanted

    wait.until(is_wanted, 60, lambda: f"{script!r} says {guest.run(script).output!r}")


def processors(bed, guest):
    """One of two goes, and comes back; the host may have but one."""
    for count in (1, 2):
        bed.machine.must(f"xl vcpu-set -i {guest.name} {count}")
        if count == 2:
            # Linux leaves it to udev.
            guest.must("echo 1 >/sys/devices/system/cpu/cpu1/online 2>/dev/null || :")
        becomes(guest, "nproc", str(count))
        ledger.progress(guest)


def memory(bed, guest):
    """A part goes to Xen, and comes back."""
    def has():
        return int(guest.must("sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo"))

    before = has()
    bed.machine.must(f"xl mem-set {guest.name} 330")
    wait.until(lambda: has() < before - (40 << 10), 60, lambda: f"it has {has()} kB of {before}")
    ledger.progress(guest)
    bed.machine.must(f"xl mem-set {guest.name} 400")
    wait.until(lambda: has() > before - (20 << 10), 60, lambda: f"it has {has()} kB of {before}")
    ledger.progress(guest)
    return f"{before} kB"


def suspended(bed, guest):
    """By xl, for some seconds."""
    bed.machine.must(f"xl suspend {guest.name}", 120)
    time.sleep(3)
    state = bed.machine.must(f"xl list {guest.name}").split()[-2]
    bed.machine.must(f"xl resume {guest.name}", 60)
    if "s" not in state:
        raise Failure(f"xl list showed {state}")
    ledger.progress(guest)


def suspends_devices(guest):
    """By itself."""
    guest.must(SUSPEND_DEVICES, 90)
    ledger.progress(guest)
    return guest.must("dmesg | grep -c 'PM: suspend exit'").strip()


def run(bed):
    """One guest."""
    vtpm = bed.vtpm("2.0")
    bed.boot([vtpm])
    with bed.guest("changes", [vtpm], vcpus=2, memory=400, type="'pvh'") as guest:
        bed.checks(guest, "module_loads", "ledger_counter")
        ledger.start(guest, "closed", ledger.LOAD_PAUSE)
        ledger.says(guest, "working")
        bed.record("xl vcpu-set", processors, bed, guest)
        bed.record("xl mem-set", memory, bed, guest)
        bed.record("xl suspend, xl resume", suspended, bed, guest)
        bed.record("the guest suspends its devices", suspends_devices, guest)
        bed.record("no command is lost or counts twice", ledger.ends_well, (guest,))
