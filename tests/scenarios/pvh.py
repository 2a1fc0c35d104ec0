# SPDX-License-Identifier: GPL-2.0
"""A PVH guest with a TPM of each version: the checks of a PV guest, in short; deep with two
processors."""

from testbed import event_log, guest_checks

SETS = ("test", "short")
# Two processors of a guest share one of the emulated machine, and wait for each other.
VARIANTS = {"smp": {"sets": ("deep",), "vcpus": 2}}

# Under emulation a program takes a second to start there.
CHECKS = (
    "tpm20_is_found",
    "tpm2_pcrextend",
    "hwrng",
    "tpm20_cancel_while_a_key_is_made",
    "locality_arrives",
    "two_vtpms",
    "reload_1",
)


def run(bed, vcpus=1):
    """Events reach it in another way than a PV guest, its grant table is another, and so is its
    memory."""
    pair = [bed.vtpm("2.0"), bed.vtpm("1.2")]
    bed.boot(pair)
    with bed.guest("pvh", pair, type="'pvh'", vcpus=vcpus) as guest:
        guest.must(f"[ $(grep -c ^processor /proc/cpuinfo) = {vcpus} ]")
        bed.checks(guest, "is_pvh", *guest_checks.LOAD, *CHECKS, limit=120)
        # libxl says in another place than of a PV guest what it boots.
        bed.record("event log", event_log.replays, bed, guest, pair[0], "console=hvc0", "kernel")
