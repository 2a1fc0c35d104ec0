# SPDX-License-Identifier: GPL-2.0
"""All TPMs are ended with the backend, twice, and started anew: the guest's /dev/tpm0 stays the
same one throughout."""

SETS = ("test",)


def run(bed):
    """With `xen-vtpmd stop`, and the policy that a guest whose TPM was lost gets a fresh one."""
    vtpm = bed.vtpm("2.0")
    bed.boot([vtpm], config='on-death = "restart"')
    with bed.guest("reconnect", [vtpm]) as guest:
        bed.checks(guest, "module_loads", "interrupt_has_the_device_name", "traced_command",
                   "no_spurious_events")
        # The first connection of a TPM is what those that follow are compared with.
        for turn in range(2):
            bed.checks(guest, "reconnect_hold", *(["watching"] if turn else []))
            bed.stop_backend()
            bed.checks(guest, "reconnect_waits")
            bed.start_backend()
            bed.checks(guest, "reconnect_goes_on")
            if turn:
                bed.checks(guest, "traced_connection", "uevent_of_reset", "one_line_for_each")
            guest.must("kill $(pidof python3); while pidof python3; do sleep 0.1; done")
