# SPDX-License-Identifier: GPL-2.0
"""A PVH guest with two processors, and a TPM of each version: the checks of a PV guest, in
short."""

from testbed import guest_checks

SETS = ("test",)

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


def run(bed):
    """Events reach it in another way than a PV guest, its grant table is another, and so is its
    memory."""
    pair = [bed.vtpm("2.0"), bed.vtpm("1.2")]
    bed.boot(pair)
    with bed.guest("pvh", pair, type="'pvh'", vcpus=2) as guest:
        bed.checks(guest, "is_pvh", *guest_checks.LOAD, *CHECKS, limit=120)
