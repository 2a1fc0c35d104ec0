# SPDX-License-Identifier: GPL-2.0
"""The driver built in, and a backend that connects 1, 5 and 30 s late: up to 20 s the
kernel waits for it."""

from testbed.guest import Guest
from testbed.guest_checks import IMA_POLICY

SETS = ("deep", "intree")
KERNEL = "intree"

# When the guest has offered its page, the backend, which was stopped before the guest ran, sleeps
# on for a while.
LATE = """
daemon=$(pidof xen-vtpmd)
kill -STOP $daemon
state=/local/domain/$(xl domid {name})/device/vtpm/0/state
(
	until [ "$(xenstore-read $state)" = 3 ]; do sleep 0.05; done
	sleep {seconds}
	kill -CONT $daemon
) >/dev/null 2>&1 &
"""

IN_TIME = ("ima_has_a_tpm", "ima_boot_aggregate", "ima_replay")


def late(bed, vtpm, seconds, *checks):
    """A guest whose backend is late."""
    guest = Guest(
        bed.machine,
        f"late{seconds}",
        [vtpm],
        options=f"bed.tpms={vtpm.version} initcall_debug {IMA_POLICY}",
    )
    late_by = LATE.format(name=guest.name, seconds=seconds)
    bed.record(f"{guest.name}: starts", guest.start, lambda: bed.machine.must(late_by))
    bed.checks(guest, *checks, "kernel_log")
    bed.record(f"{guest.name}: shuts down", guest.shutdown)


def run(bed):
    """One guest after another."""
    vtpms = [bed.vtpm("2.0"), bed.vtpm("1.2"), bed.vtpm("2.0")]
    bed.boot(vtpms)
    late(bed, vtpms[0], 1, "wait_of_1_s", *IN_TIME)
    late(bed, vtpms[1], 5, "wait_of_5_s", *IN_TIME)
    late(bed, vtpms[2], 30, "wait_of_20_s", "boot_ends_within_45_s", "ima_came_too_early")
