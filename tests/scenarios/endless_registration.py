# SPDX-License-Identifier: GPL-2.0
"""A vTPM is attached whose backend makes the registration of its TPM go on for ever: the thread
that takes xenstore's watches is free again within a stated time, the vTPM can be detached, and the
guest can go down meanwhile."""

import time

from testbed import hostile_backend, programs
from testbed.report import Failure

SETS = ("deep",)

# By the version of the TPM, what goes on for ever.
BEHAVIOURS = {"1.2": ("probe-selftest",), "2.0": ("probe-drip", "register-retry")}


def attach(trial, name):
    """The vTPM is attached; a key that the toolstack presses is seen within the time that a probe
    may take."""
    machine, guest, limit = (
        trial.machine,
        trial.guest,
        hostile_backend.PROBE + hostile_backend.PROMPT,
    )
    trial.tell(f"behave {name}")
    guest.must("dmesg -c >>/run/dmesg")
    machine.must(f"xl vtpm-attach {guest.name} uuid={trial.vtpm.uuid} backend=0", 60)
    begun = trial.begun()
    machine.must(f"xl sysrq {guest.name} h")
    seconds = trial.python(
        f"watch {limit * trial.bed.slowness}", limit * trial.bed.slowness + 60
    ).split()[1]
    if seconds == "never":
        raise Failure(f"the guest's other watches wait for more than {limit} s")
    if not begun:
        raise Failure("the backend has seen no command")
    return f"another watch is served after {seconds} s"


def detach(trial):
    """And taken away again, by the same thread."""
    start = time.monotonic()
    trial.machine.must(f"xl vtpm-detach {trial.guest.name} {trial.vtpm.uuid}", 60)
    trial.guest.must(
        "for i in $(seq 100); do [ -e /sys/bus/xen/devices/vtpm-0 ] || exit 0; sleep 0.1; done;"
        " exit 1"
    )
    return f"after {time.monotonic() - start:.1f} s"


def goes_down(trial):
    """The guest reboots while the registration goes on."""
    start, limit = time.monotonic(), 15 * trial.bed.slowness
    trial.guest.type("sh script cmVib290IC1m")
    while trial.guest.alive():
        if time.monotonic() > start + limit:
            raise Failure(f"it still runs after {limit} s")
        time.sleep(0.2)
    return f"after {time.monotonic() - start:.1f} s"


def run(bed):
    """A guest for each version; it has the driver, and no vTPM at first."""
    vtpms = {version: bed.vtpm(version) for version in BEHAVIOURS}
    bed.boot(list(vtpms.values()), dom0_memory=1792,
             files={hostile_backend.PROGRAM: programs.hostile_backend_path()})
    for version, names in BEHAVIOURS.items():
        trial = hostile_backend.Trial(bed, vtpms[version], attached=False)
        trial.serve()
        trial.guest.start()
        trial.ready_guest()
        for name in names:
            bed.record(f"{name}: vtpm-attach, and another watch", attach, trial, name)
            bed.record(f"{name}: vtpm-detach", detach, trial)
        bed.record(f"{names[-1]}: vtpm-attach, and another watch", attach, trial, names[-1])
        bed.record(f"{names[-1]}: the guest reboots", goes_down, trial)
        trial.stop()
