# SPDX-License-Identifier: GPL-2.0
"""The backend ends and is started again, twice: the guest's TPM stays the same one throughout."""

SETS = ("test",)


def run(bed):
    """An orderly end first; then one that leaves the connection to be replaced."""
    vtpm = bed.vtpm("2.0")
    bed.boot([vtpm])
    with bed.guest("reconnect", [vtpm]) as guest:
        bed.checks(guest, "module_loads")
        for _ in range(2):
            bed.checks(guest, "reconnect_hold")
            bed.stop_backend()
            bed.checks(guest, "reconnect_waits")
            bed.start_backend()
            bed.checks(guest, "reconnect_goes_on")
            guest.must("kill $(pidof python3); while pidof python3; do sleep 0.1; done")
