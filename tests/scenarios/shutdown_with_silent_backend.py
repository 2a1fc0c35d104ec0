# SPDX-License-Identifier: GPL-2.0
"""A guest that goes down, or parts with its TPM, while the backend is silent; and that tells the
TPM where it can."""

import time

from testbed import wait

SETS = ("test",)

# One second for last words, and what the testbed needs to go down. A command that is waited for
# takes a minute.
LIMIT = 15


def goes_down(bed, guest):
    """The guest reboots while the backend is silent: it does not wait for that."""
    start = time.monotonic()
    guest.type("sh script cmVib290IC1m")
    runs = f"xl list {guest.name} | tail -n 1 | awk '{{ print $5 }}' | grep -q '^..----$'"
    wait.until(lambda: bed.machine.run(runs)[0], LIMIT * bed.slowness, "it still runs")
    return f"after {time.monotonic() - start:.1f} s"


def run(bed):
    """With xen-vtpmd stopped nobody answers, and nobody closes."""
    vtpm = bed.vtpm("2.0")
    bed.boot([vtpm])
    with bed.guest("leaving", [vtpm], on_reboot="'restart'") as guest:
        bed.checks(guest, "module_loads", "stall_no_reader")
        bed.machine.must("kill -STOP $(pidof xen-vtpmd)")
        bed.checks(guest, "stall_unbind")
        bed.machine.must("kill -CONT $(pidof xen-vtpmd)")
        bed.checks(guest, "stall_bind")
        bed.machine.must("kill -STOP $(pidof xen-vtpmd)")
        bed.record("reboots while the backend is silent", goes_down, bed, guest)
        bed.machine.must("kill -CONT $(pidof xen-vtpmd)")
        bed.record("comes back", guest.wait_ready, True)
        # The guest could not send TPM2_Shutdown; the daemon does when it ends the TPM.
        bed.checks(guest, "module_loads", "orderly")
        bed.machine.must(f"xl reboot {guest.name}")
        bed.record("reboots", guest.wait_ready, True)
        bed.checks(guest, "module_loads", "orderly")
