# SPDX-License-Identifier: GPL-2.0
"""vTPMs come and go in a running guest: also with a command running and the device open, and
nothing is left behind."""

import time

from testbed import guest_resources, toolstack
from testbed.guest_scripts import GONE, THERE, WORKS, in_guest
from testbed.report import Failure

SETS = ("test", "compare")
# So often a vTPM is attached and detached.
VARIANTS = {"deep": {"sets": ("deep",), "count": 40}}


def in_turn(bed, guest, vtpms):
    """Each is attached, is tpm0, works, is detached and gone."""
    start = time.monotonic()
    for number, vtpm in enumerate(vtpms, 1):
        try:
            toolstack.attach(bed, guest, vtpm)
            in_guest(guest, f"{THERE.format('tpm0')}; {WORKS}")
            toolstack.detach(bed, guest, vtpm.uuid, 0)
            in_guest(guest, GONE)
        except Failure as why:
            raise Failure(f"{number} of {len(vtpms)}: {why}") from None
    return f"{len(vtpms)} in {time.monotonic() - start:.0f} s"


def while_running(bed, guest, vtpm, stay):
    """Detached while a command runs, which swtpm has been kept from answering: it ends soon, with
    an errno. With `stay` its process keeps the device open."""
    toolstack.attach(bed, guest, vtpm)
    in_guest(guest, f"{THERE.format('tpm0')}; {WORKS}; rm -f /run/running*")
    bed.machine.must("kill -STOP $(pidof swtpm)")
    in_guest(
        guest,
        f"python /bed/lifecycle.py running {stay}; wait_for 10 grep -q running /run/running;"
        " sleep 1",
    )
    bed.machine.must("(sleep 2; kill -CONT $(pidof swtpm)) >/dev/null 2>&1 & "
                     f"xl vtpm-detach {guest.name} {vtpm.uuid}", 60)
    word, seconds = in_guest(
        guest, "wait_for 90 grep -q '[0-9]$' /run/running; tail -n 1 /run/running", 120
    ).split()
    in_guest(guest, "wait_for 20 sh -c '[ ! -e /sys/bus/xen/devices/vtpm-0 ]'")
    said = f"the command ended with {word}, {seconds} s after it began"
    if word not in ("EPIPE", "ECANCELED") or float(seconds) > bed.cancel_limit:
        raise Failure(said)
    return said


def again(bed, guest, vtpm, name):
    """Attached again it has this name, and works."""
    toolstack.attach(bed, guest, vtpm)
    in_guest(guest, f"{THERE.format(name)}; python /bed/held.py works /dev/{name} {vtpm.version}")


def run(bed, count=5):
    """The guest has none at boot: the C driver could lose that (race T2)."""
    version = "1.2" if bed.driver == "c" else "2.0"
    vtpms = [bed.vtpm(version) for _ in range(10)]
    bed.boot(vtpms)
    with bed.guest("hotplug", [], options=f"bed.tpms={version}") as guest:
        guest.must(". /bed/lib.sh; load_driver")
        # What the kernel makes once and keeps is there afterwards.
        bed.record("one vTPM", in_turn, bed, guest, vtpms[:1])
        bed.record("vtpm-attach", again, bed, guest, vtpms[0], "tpm0")
        before = guest_resources.take(guest)
        bed.record("vtpm-detach", toolstack.detach, bed, guest, vtpms[0].uuid, 0)
        turns = [vtpms[number % len(vtpms)] for number in range(count)]
        bed.record(f"{count} vTPMs in turn", in_turn, bed, guest, turns)
        bed.record(
            "vtpm-detach while a command runs, and the device stays open",
            while_running,
            bed,
            guest,
            vtpms[1],
            1,
        )
        # The one that is open has the number.
        bed.record("vtpm-attach while the old device is open", again, bed, guest, vtpms[1], "tpm1")
        guest.must("touch /run/running.stop")
        bed.record(
            "vtpm-detach, and the old device is closed",
            toolstack.detach,
            bed,
            guest,
            vtpms[1].uuid,
            0,
        )
        bed.record("vtpm-detach while a command runs", while_running, bed, guest, vtpms[0], 0)
        bed.record("vtpm-attach again", again, bed, guest, vtpms[0], "tpm0")
        bed.record("nothing is left", lambda: guest_resources.same(before, guest))
