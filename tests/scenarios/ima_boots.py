# SPDX-License-Identifier: GPL-2.0
"""The driver built in, and many boots with two processors, where xenbus can lose a device (race
T2)."""

from testbed.guest_checks import IMA_POLICY
from testbed.report import Failure

SETS = ("deep",)
KERNEL = "intree"
ALONE = True


def boots(bed, vtpm, count):
    """Each time IMA has its TPM."""
    for number in range(1, count + 1):
        with bed.guest(f"boot{number}", [vtpm], vcpus=2, options=IMA_POLICY, memory=384) as guest:
            done = guest.run(
                "set -e; . /bed/lib.sh; . /bed/ima.sh; check_ima_has_a_tpm; "
                "if dmesg | grep 'state reset occurred'; then fail 'the device was lost'; fi"
            )
            if done.code:
                raise Failure(f"boot {number}: {done.output}")
    return f"{count} boots"


def run(bed, count=3):
    """Two processors, since it is there that the device gets lost."""
    vtpm = bed.vtpm("2.0")
    bed.boot([vtpm], cpus=2)
    bed.record(f"{count} boots: IMA has its TPM in each", boots, bed, vtpm, count)
