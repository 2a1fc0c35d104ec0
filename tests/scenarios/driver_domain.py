# SPDX-License-Identifier: GPL-2.0
"""The backend in a driver domain: a guest whose vTPM another guest serves."""

import contextlib
import dataclasses
import re
import time

from testbed import event_log, qemu, wait
from testbed.guest import Guest
from testbed.lacking import lacking
from testbed.toolstack import MIGRATE_HERE, must_be, was_slow
from testbed.machine import BedError
from testbed.report import Failure
from testbed.testbed import tpm_state

SETS = ("deep",)

IN_USE = "is in use by vtpm .* of this host, whose guest runs"
REFUSED = f"{IN_USE}|: not started; the reason stays in"
START = """
modprobe -a xen-evtchn xen-gntdev
mkdir -p /run/xen-vtpmd
xen-vtpmd run >/run/xen-vtpmd.log 2>&1 &
sleep 1
kill -0 $!
"""


def gone(bed, domid):
    """The driver domain has removed the vTPM's folder, which only it can, and ended its swtpm."""
    must_be(bed.machine, f"xenstore-ls /local/domain/{domid}/backend/vtpm 2>/dev/null | wc -l", "0")
    wait.until(
        lambda: bed.driver_domain.run("pidof swtpm").code, 10, "its swtpm is still there", pause=0.5
    )


def taken_away(bed, script, domid):
    """xl does it, and need not wait for its time limit."""
    start = time.monotonic()
    output = bed.machine.must(script, 60)
    seconds = time.monotonic() - start
    gone(bed, domid)
    if was_slow(seconds, output):
        raise Failure(f"{script} took {seconds:.1f} s")
    return f"{seconds:.1f} s"


def run(bed):
    """The domain first, then the guest: it is measured, PCRs work, and what xl takes away is
    gone in both domains."""
    vtpm = dataclasses.replace(bed.vtpm("2.0"), backend="driver")
    state = tpm_state(vtpm)
    files = {
        "/boot/driver.cpio": bed.write_driver_domain_image(
            {f"/var/lib/xen-vtpmd/{vtpm.uuid}": state}
        )
    }
    bed.boot([], files=files, xen_options=qemu.GUESTS_SHARE)
    driver = Guest(bed.machine, "driver", ramdisk="'/boot/driver.cpio'", driver_domain=1)
    bed.driver_domain = driver
    driver.start()
    driver.must(START)
    domid = bed.machine.must("xl domid driver").strip()
    try:
        with bed.guest("served", [vtpm], memory=400, type="'pvh'") as guest:
            bed.checks(guest, "module_loads", "tpm20_is_found", "tpm2_pcrextend", "tpm2_nv")
            bed.record("the guest says who serves it", served_by, guest, domid)
            bed.record("dom0 hashes what the guest boots", lambda: event_log.replays(
                bed, guest, vtpm, "console=hvc0", "kernel", "initrd", backend=driver))
            if not lacking("save"):
                bed.checks(guest, "save_prepare")
                bed.record("xl migrate fails, and says why", migrates_not, bed, guest)
                bed.checks(guest, "save_kept", "save_goes_on")
            bed.record("vtpm-detach", taken_away, bed, "xl vtpm-detach served 0", domid)
            bed.machine.must(f"xl vtpm-attach served uuid={vtpm.uuid} backend=driver", 60)
            bed.checks(guest, "module_loads", "tpm2_getrandom")
            bed.record("xl destroy", taken_away, bed, "xl destroy served", domid)
            guest.start()
            bed.checks(guest, "module_loads", "tpm2_getrandom")
        bed.record("xl shutdown", gone, bed, domid)
        bed.record("the backend has not failed", no_failure, driver)
    finally:
        with open(f"{bed.machine.share}/xen-vtpmd.log", "a", encoding="utf-8") as file, \
                contextlib.suppress(BedError):
            file.write(driver.must("cat /run/xen-vtpmd.log"))


def migrates_not(bed, guest):
    """Xen does not tell a driver domain that a guest is suspended: its TPM is taken for in use."""
    code, output = bed.machine.run(MIGRATE_HERE.format(guest.name), 240)
    found = bed.driver_domain.must(f"grep '{IN_USE}' /run/xen-vtpmd.log").strip()
    if not code or "resuming at sender" not in output:
        raise Failure(f"it ended with {code}: {output[-2000:]}")
    return found


def no_failure(driver):
    """All else that was done here is in order, and is not to be logged as an error."""
    log = driver.must("cat /run/xen-vtpmd.log")
    errors = [line for line in log.splitlines() if "error:" in line]
    if not log or [line for line in errors if not re.search(REFUSED, line)]:
        raise Failure("\n".join(errors) or "no log")


def served_by(guest, domid):
    """The kernel log names the driver domain."""
    line = guest.must("dmesg | grep 'served by'").strip()
    if not line.endswith(f"served by domain {domid}"):
        raise Failure(line)
    return line
