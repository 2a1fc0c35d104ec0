# SPDX-License-Identifier: GPL-2.0
"""What xl can do to a guest with vTPMs: attach, detach, reboot, destroy; and starts that have to
fail."""

import time

from testbed.report import Failure
from testbed.toolstack import BASE, attach, detach, must_be, refused

SETS = ("test",)

# A TPM that takes long to answer.
KEY = "while :; do tpm2 createprimary -Q -C o -G rsa2048 -c /tmp/key; done >/dev/null 2>&1 &"


def listed(bed, guest, uuids):
    """xl vtpm-list shows these, all connected."""
    output = bed.machine.must(f"xl vtpm-list {guest.name}")
    rows = [line.split() for line in output.splitlines()[1:]]
    # Idx BE Uuid handle state evt-ch ring-ref BE-path
    found = {row[2].lower(): row[4] for row in rows if len(row) > 4}
    if found != {uuid: "4" for uuid in uuids}:
        raise Failure(output)


def reboots(bed, guest):
    """xl reboot: a new domain of the same name, and the same vTPM."""
    old = bed.machine.must(f"xl domid {guest.name}").strip()
    bed.machine.must(f"xl reboot {guest.name}")
    guest.wait_ready(anew=True)
    new = bed.machine.must(f"xl domid {guest.name}").strip()
    if old == new:
        raise Failure("it is the same domain")
    must_be(bed.machine, f"xenstore-list {BASE}", new)


def destroyed(bed, guest):
    """xl destroy while a command runs: nothing is left."""
    guest.must(KEY)
    time.sleep(1)
    guest.destroy()
    must_be(bed.machine, "pidof swtpm | wc -w", "0")
    must_be(bed.machine, f"xenstore-ls {BASE} 2>/dev/null | wc -l", "0")


def no_protocol(bed, guest):
    """A guest that does not say feature-protocol-v2 is refused with a reason. Dom0 writes what such
    a guest would."""
    domid = bed.machine.must(f"xl domid {guest.name}").strip()
    front, back = f"/local/domain/{domid}/device/vtpm/0", f"{BASE}/{domid}/0"
    bed.machine.must(f"xenstore-write {front}/ring-ref 8 {front}/event-channel 1 {front}/state 3")
    must_be(bed.machine, f"xenstore-read {back}/state", "5")
    reason = bed.machine.must(f"xenstore-read /local/domain/0/error/backend/vtpm/{domid}/0/error")
    if f"{front}/feature-protocol-v2" not in reason:
        raise Failure(reason)
    # It closes, and may try again: then as a new one.
    bed.machine.must(f"xenstore-write {front}/state 6")
    must_be(bed.machine, f"xenstore-read {back}/state", "2")
    bed.machine.must(
        f"xenstore-rm {front}/ring-ref; xenstore-rm {front}/event-channel; xenstore-write"
        f" {front}/state 1"
    )
    return reason


def run(bed):
    """One guest that lives through all of it, and others that never start."""
    vtpm, second, both = bed.vtpm("2.0"), bed.vtpm("2.0"), bed.vtpm("2.0")
    bed.boot([vtpm, second, both])
    bed.machine.must(f"cd /var/lib/xen-vtpmd/{both.uuid}; cp tpm2-00.permall tpm-00.permall")
    with bed.guest("life", [vtpm], on_reboot="'restart'") as guest:
        bed.record("a guest without feature-protocol-v2 is refused", no_protocol, bed, guest)
        bed.checks(guest, "module_loads", "held_make")
        bed.record("vtpm-attach", attach, bed, guest, second)
        bed.checks(guest, "held_open")
        bed.record("vtpm-list", listed, bed, guest, [vtpm.uuid, second.uuid])
        bed.record("vtpm-detach while it is open", detach, bed, guest, second.uuid, 1)
        bed.checks(guest, "held_gone")
        bed.record("vtpm-attach again", attach, bed, guest, second)
        bed.checks(guest, "held_second")
        bed.record("vtpm-detach", detach, bed, guest, second.uuid, 1)
        bed.record("a second domain with the same uuid is refused", refused, bed, vtpm, vtpm.uuid)
        bed.record("state of both versions is refused", refused, bed, both, both.uuid)
        bed.record("xl reboot", reboots, bed, guest)
        bed.checks(guest, "module_loads", "held_restarted")
        bed.record("xl destroy while a command runs", destroyed, bed, guest)
        guest.start()
        bed.checks(guest, "module_loads", "held_restarted")
