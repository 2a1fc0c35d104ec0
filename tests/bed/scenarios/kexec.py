# SPDX-License-Identifier: GPL-2.0
"""What a kexec or kdump kernel finds: a PVH guest boots with its vTPM shown as connected, by both ends, to a kernel that
is gone. It works all the same."""

from bed.guest import Guest
from bed.scenarios.hotplug import THERE, in_guest

SETS = ("deep",)

# A real kexec ends the domain: Linux asks Xen for a soft reset, and libxl 4.20 does that to HVM guests only. So dom0
# writes what the old kernel would have left.
LEFT = """
front=/local/domain/$(xl domid kexec)/device/vtpm/0 back=/local/domain/0/backend/vtpm/$(xl domid kexec)/0
xenstore-write $front/ring-ref 8 $front/event-channel 7 $front/feature-protocol-v2 1 $front/state 4 $back/state 4
"""


def boots(bed, guest):
    """Made, but not started, before its states are written."""
    def before():
        bed.stop_backend("kill -9 $pid")
        bed.machine.must(LEFT)
        bed.start_backend()

    guest.start(before)
    return in_guest(guest, "dmesg | grep -i 'xenbus: frontend device/vtpm/0 Connected'")


def works(guest):
    """The driver finds a device that xenbus has reset."""
    in_guest(guest, f"load_driver; {THERE.format('tpm0')}", 90)
    return in_guest(guest, "python /bed/held.py extend")


def run(bed):
    """The daemon takes over, and tries to map the page that nobody grants any more."""
    vtpm = bed.vtpm("2.0")
    bed.boot([vtpm])
    guest = Guest(bed.machine, "kexec", [vtpm], type="'pvh'", options="bed.driver=rust bed.tpms=2.0")
    bed.record("a kernel finds the vTPM connected", boots, bed, guest)
    bed.record("the driver brings it to work", works, guest)
    bed.checks(guest, "kernel_log")
    bed.record("shuts down", guest.shutdown)
