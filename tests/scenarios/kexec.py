# SPDX-License-Identifier: GPL-2.0
"""What a kexec or kdump kernel finds: a PVH guest boots with its vTPM shown as connected, by both
ends, to a kernel that is gone. It works all the same. One that is shown as closed is lost until
somebody says that it is new."""

import base64
import json
import time

from testbed import wait
from testbed.guest_scripts import THERE, in_guest
from testbed.report import Failure

SETS = ("deep",)

# A real kexec ends the domain: Linux asks Xen for a soft reset, and libxl 4.20 does that to HVM
# guests only. So dom0 writes what the old kernel would have left.
NODES = (
    "front=/local/domain/$(xl domid {name})/device/vtpm/0 back=/local/domain/0/backend/vtpm/$(xl"
    " domid {name})/0; "
)
CRASHED = (
    "xenstore-write $front/ring-ref 8 $front/event-channel 7 $front/feature-protocol-v2 1"
    " $front/state 4 $back/state 4"
)
# How long it may take to go down: xenbus waits 5 s for a backend.
LIMIT = 30


def boots(bed, guest, left, state):
    """Made, but not started, before its states are written; xenbus says what it finds."""
    def is_up():
        status = json.loads(bed.machine.must("xen-vtpmd status --json"))
        return [vtpm for vtpm in status["vtpms"] if vtpm["pid"]]

    def before():
        # A TPM that was not up yet has served no kernel.
        wait.until(is_up, 60, "no TPM is up")
        bed.stop_backend("kill -9 $(pidof xen-vtpmd)")
        bed.machine.must(NODES.format(name=guest.name) + left)
        bed.start_backend()

    guest.start(before)
    return in_guest(guest, f"dmesg | grep -i 'xenbus: frontend device/vtpm/0 {state}'")


def works(guest):
    """The driver finds a device that xenbus has reset."""
    in_guest(guest, f"load_driver; {THERE.format('tpm0')}", 90)
    return in_guest(guest, "python /bed/held.py extend")


def leaves(bed, guest):
    """The guest goes down in good order, as for a kexec, and the toolstack keeps what it leaves."""
    guest.type(f"sh script {base64.b64encode(b'poweroff -f').decode()}")
    start = time.monotonic()
    wait.until(lambda: "---s--" in bed.machine.must(f"xl list {guest.name}"), LIMIT,
               lambda: f"it still runs: {bed.machine.must('xl list')}")
    seconds = time.monotonic() - start
    states = bed.machine.must(
        NODES.format(name=guest.name) + "xenstore-read $front/state $back/state"
    ).split()
    if states != ["6", "2"]:
        raise Failure(f"frontend and backend are in {states}, not in Closed (6) and InitWait (2)")
    return f"down after {seconds:.1f} s"


def is_new(bed, guest):
    """xenbus has no device of a closed frontend. Somebody says that it is new: now it has."""
    in_guest(
        guest, "load_driver; [ ! -e /sys/bus/xen/devices/vtpm-0 ] || fail 'there is a device'", 90
    )
    bed.machine.must(NODES.format(name=guest.name) + "xenstore-write $front/state 1")
    in_guest(guest, THERE.format("tpm0"), 120)
    return in_guest(guest, "python /bed/held.py extend")


def run(bed):
    """The daemon takes over, and tries to map the page that nobody grants any more."""
    crashed, closed = bed.vtpm("2.0"), bed.vtpm("2.0")
    bed.boot([crashed, closed])
    options = {"type": "'pvh'", "options": "bed.driver=rust bed.tpms=2.0"}
    guest = bed.new_guest("kdump", [crashed], on_poweroff="'preserve'", **options)
    bed.record("a kernel finds the vTPM connected", boots, bed, guest, CRASHED, "Connected")
    bed.record("the driver brings it to work", works, guest)
    bed.checks(guest, *bed.last_checks())
    bed.record("in good order it leaves the vTPM closed", leaves, bed, guest)
    guest.destroy()
    guest = bed.new_guest("kexec", [closed], **options)
    bed.record(
        "a kernel finds the vTPM closed",
        boots,
        bed,
        guest,
        "xenstore-write $front/state 6",
        "Closed",
    )
    bed.record("it works when its state is that of a new one", is_new, bed, guest)
    bed.checks(guest, *bed.last_checks())
    bed.record("shuts down", guest.shutdown)
