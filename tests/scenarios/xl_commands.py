# SPDX-License-Identifier: GPL-2.0
"""What xl can do to a guest with vTPMs: attach, detach, reboot, destroy; and starts that have to fail."""

import re
import time

from testbed import backend_resources
from testbed.guest import Guest
from testbed.report import Failure

SETS = ("test",)

# xl itself waits ten seconds for a backend. "At once" is less, also under emulation.
QUICK = 8.0
BASE = "/local/domain/0/backend/vtpm"
# A TPM that takes long to answer.
KEY = "while :; do tpm2 createprimary -Q -C o -G rsa2048 -c /tmp/key; done >/dev/null 2>&1 &"


def must_be(machine, script, wanted, limit=10):
    """Waits until a script in dom0 prints what is wanted."""
    until = time.monotonic() + limit
    while (found := machine.run(script)[1].strip()) != wanted:
        if time.monotonic() > until:
            raise Failure(f"{script!r} still says {found!r}, not {wanted!r}, after {limit} s")
        time.sleep(0.2)


def listed(bed, guest, uuids):
    """xl vtpm-list shows these, all connected."""
    output = bed.machine.must(f"xl vtpm-list {guest.name}")
    rows = [line.split() for line in output.splitlines()[1:]]
    # Idx BE Uuid handle state evt-ch ring-ref BE-path
    found = {row[2].lower(): row[4] for row in rows if len(row) > 4}
    if found != {uuid: "4" for uuid in uuids}:
        raise Failure(output)


def attach(bed, guest, vtpm):
    """Adds a vTPM to the running guest."""
    bed.machine.must(f"xl vtpm-attach {guest.name} uuid={vtpm.uuid} backend=0", 60)
    must_be(bed.machine, f"xl vtpm-list {guest.name} | grep -ci {vtpm.uuid}", "1")


def detach(bed, guest, uuid, left):
    """Takes a vTPM away: quickly, and its folder and its swtpm go."""
    domid = bed.machine.must(f"xl domid {guest.name}").strip()
    start = time.monotonic()
    bed.machine.must(f"xl vtpm-detach {guest.name} {uuid}", 60)
    seconds = time.monotonic() - start
    if seconds > QUICK:
        raise Failure(f"xl vtpm-detach took {seconds:.1f} s")
    folders = f"xenstore-list {BASE}/{domid} 2>/dev/null | wc -l"
    must_be(bed.machine, f"xenstore-exists {BASE}/{domid} && {folders} || echo 0", str(left))
    must_be(bed.machine, "pidof swtpm | wc -w", str(left))


def reboots(bed, guest):
    """xl reboot: a new domain of the same name, and the same vTPM."""
    old = bed.machine.must(f"xl domid {guest.name}").strip()
    bed.machine.must(f"xl reboot {guest.name}")
    guest.wait_ready(anew=True)
    guest.attach()
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


def refused(bed, vtpm, pattern):
    """xl create fails at once, and says why in the log and in xenstore."""
    machine, logged = bed.machine, len(backend_resources.log(bed.machine))
    machine.run("xenstore-rm /local/domain/0/error")
    machine.must(f"xenstore-watch {BASE} >/run/watch 2>&1 & echo $! >/run/watch.pid")
    bad = Guest(machine, "bad", [vtpm])
    bad.write_config()
    start = time.monotonic()
    code, output = machine.run(bad.create, 120)
    seconds = time.monotonic() - start
    machine.must("kill $(cat /run/watch.pid)")
    shown, log = backend_resources.reasons(machine), backend_resources.log(machine)[logged:]
    wrong = []
    if code == 0:
        bad.destroy()
        wrong.append("xl create made the guest")
    if seconds > QUICK:
        wrong.append(f"xl create took {seconds:.1f} s")
    if not re.search(pattern, shown):
        wrong.append(f"xenstore does not say /{pattern}/ but {shown!r}")
    if not re.search(pattern, log):
        wrong.append(f"the log does not say /{pattern}/ but {log!r}")
    if "hotplug-error" not in machine.must("cat /run/watch"):
        wrong.append("no hotplug-error was written")
    if bad.alive():
        wrong.append("the domain is still there")
    if wrong:
        raise Failure("; ".join(wrong) + "\n" + output)
    return f"in {seconds:.1f} s: {shown.strip().splitlines()[-1]}"


def no_protocol(bed, guest):
    """A guest that does not say feature-protocol-v2 is refused with a reason. Dom0 writes what such a guest would."""
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
    bed.machine.must(f"xenstore-rm {front}/ring-ref; xenstore-rm {front}/event-channel; xenstore-write {front}/state 1")
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
