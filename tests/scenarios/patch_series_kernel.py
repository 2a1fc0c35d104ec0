# SPDX-License-Identifier: GPL-2.0
"""A kernel with the patch series in it: its unit tests pass there, and IMA has its TPM as with the
project's source."""

from tools.series import generate
from testbed.guest_checks import IMA_FROM_THE_START, IMA_POLICY
from testbed.report import Failure

SETS = ("deep",)
KERNEL = "series"


def unit_tests(guest):
    """KUnit ran each suite that the series has, and nothing failed."""
    names = generate.suites()
    if not names:
        raise Failure("the series has no unit tests")
    passed = 0
    for name in names:
        lines = guest.must(f"cat /sys/kernel/debug/kunit/{name}/results").splitlines()
        if lines[-1] != f"ok 1 {name}":
            raise Failure("\n".join(lines))
        passed += sum(line.startswith("    ok ") for line in lines)
    return f"{passed} tests in {len(names)} suites"


def run(bed):
    """One guest."""
    vtpm = bed.vtpm("2.0")
    bed.boot([vtpm])
    with bed.guest("series", [vtpm], options=f"{IMA_POLICY} kunit.enable=1") as guest:
        bed.record("its unit tests pass", unit_tests, guest)
        bed.checks(guest, *IMA_FROM_THE_START)
