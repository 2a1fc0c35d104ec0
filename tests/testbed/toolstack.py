# SPDX-License-Identifier: GPL-2.0
"""What xl does to a guest and its vTPM: attach, detach, refuse, save, restore. Each fails where xl,
xenstore or dom0's processes are not as they have to be afterwards."""

import re
import time

from testbed import backend_resources, wait
from testbed.guest import Guest
from testbed.report import Failure

# xl itself waits ten seconds for a backend. "At once" is less, also under emulation.
QUICK = 8.0
# libxl's ERROR_TIMEDOUT, as its log has it.
TIMED_OUT = "rc -9"
BASE = "/local/domain/0/backend/vtpm"
FILE = "/run/save.file"
# By xl's own way to receive on the host that sends.
MIGRATE_HERE = "xl migrate -s '' {} 'xl migrate-receive' 2>&1"


def must_be(machine, script, wanted, seconds=10):
    """Waits until a script in dom0 prints what is wanted."""
    found = [None]

    def is_wanted():
        found[0] = machine.run(script)[1].strip()
        return found[0] == wanted

    wait.until(is_wanted, seconds, lambda: f"{script!r} still says {found[0]!r}, not {wanted!r}")


def was_slow(seconds, output, limit=QUICK):
    """Whether xl has waited for a backend until its own time limit: as it says itself, or by the
    time that it took, which on a slow host is longer without that."""
    return seconds > wait.stretch(limit) or TIMED_OUT in output


def attach(bed, guest, vtpm):
    """Adds a vTPM to the running guest."""
    bed.machine.must(f"xl vtpm-attach {guest.name} uuid={vtpm.uuid} backend=0", 60)
    must_be(bed.machine, f"xl vtpm-list {guest.name} | grep -ci {vtpm.uuid}", "1")


def detach(bed, guest, uuid, left):
    """Takes a vTPM away: quickly, and its directory and its swtpm go; so many of these are left."""
    domid = bed.machine.must(f"xl domid {guest.name}").strip()
    start = time.monotonic()
    output = bed.machine.must(f"xl vtpm-detach {guest.name} {uuid}", 60)
    seconds = time.monotonic() - start
    if was_slow(seconds, output):
        raise Failure(f"xl vtpm-detach took {seconds:.1f} s")
    count = f"xenstore-list {BASE}/{domid} 2>/dev/null | wc -l"
    must_be(bed.machine, f"xenstore-exists {BASE}/{domid} && {count} || echo 0", str(left))
    must_be(bed.machine, "pidof swtpm | wc -w", str(left))


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
    if was_slow(seconds, output):
        wrong.append(f"xl create took {seconds:.1f} s: {output}")
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


def save(bed, guest, options=""):
    """Saves the guest."""
    bed.machine.must(f"xl save {options} {guest.name} {FILE}", 120)


def restore(bed, guest):
    """Makes it anew from what was saved."""
    bed.machine.must(f"xl restore {FILE}; code=$?; rm {FILE}; exit $code", 120)
    guest.attach()


def save_and_restore(bed, guest):
    """Saves the guest and makes it anew from that."""
    save(bed, guest)
    restore(bed, guest)


def checkpoint(bed, guest):
    """Saves the guest, which goes on."""
    save(bed, guest, "-c")
    bed.machine.must(f"rm {FILE}")


def serve_disks(machine):
    """Prepares dom0 for guests' disks: what xl's script for them finds in every other dom0."""
    machine.must(
        "modprobe -a virtio_pci virtio_blk xen-blkback; ln -sf /proc/self/fd/0 /dev/stdin"
    )


def migrate_here(machine, guest):
    """Moves a PVH guest to the host that it runs on; returns what xl says last. Xen as Debian
    builds it migrates no PV guest."""
    code, output = machine.run(MIGRATE_HERE.format(guest.name), 240)
    if code:
        raise Failure(f"xl migrate ended with {code}: {output[-2000:]}")
    guest.migrated()
    return output.strip().splitlines()[-1]


def while_running(bed, guest, function, *more):
    """Does it while a command runs that cannot end: swtpm is stopped."""
    bed.checks(guest, "saved_wait")
    bed.machine.must("kill -STOP $(pidof swtpm)")
    bed.checks(guest, "saved_runs")
    try:
        function(bed, guest, *more)
    finally:
        bed.machine.must("kill -CONT $(pidof swtpm)")
