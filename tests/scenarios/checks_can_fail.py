# SPDX-License-Identifier: GPL-2.0
"""Each check of a TPM has to fail when the TPM is the other version, and when there is none."""

from testbed import guest_checks
from testbed.report import Failure

SETS = ("deep",)

# These say that something is absent, or ask the driver and not the TPM, and pass without one.
NEED_NO_TPM = (
    "locality_values",
    "locality_link",
    "sysfs_durations",
    "sysfs_timeouts",
    "tpm12_is_found",
    "tpm20_is_found",
    "trusted_keys",
)
# These are for both versions, or depend on the driver.
ANY_VERSION = ("trusted_keys", "hwrng", "sysfs_cancel", "tpm12_pcr_extend", "tpm2_pcrextend")


def must_fail(guest, name):
    """A check that has to fail here."""
    done = guest.check(name)
    if done.code in (0, 77):
        raise Failure(f"it ended with {done.code}: {done.output}")
    return (done.output.strip().splitlines() or [f"code {done.code}"])[-1]


def all_fail(bed, guest, names, why):
    """Records that each of the checks fails."""
    for name in names:
        bed.record(f"{guest.name}: {name} fails {why}", must_fail, guest, name)


def run(bed):
    """The checks of the other version first, then everything without a backend."""
    old, new = bed.vtpm("1.2"), bed.vtpm("2.0")
    bed.boot([old, new], config='on-death = "restart"')
    with bed.guest("old", [old]) as guest:
        bed.checks(guest, "module_loads")
        all_fail(
            bed,
            guest,
            [name for name in guest_checks.TPM20 if name not in ANY_VERSION],
            "with a TPM 1.2",
        )
    with bed.guest("new", [new]) as guest:
        bed.checks(guest, "module_loads")
        all_fail(
            bed,
            guest,
            [
                name
                for name in guest_checks.TPM12 + guest_checks.TROUSERS
                if name not in ANY_VERSION
            ],
            "with a TPM 2.0",
        )
    for name, vtpm, names in (
        ("old2", old, guest_checks.TPM12 + guest_checks.COMMON + guest_checks.TROUSERS),
        ("new2", new, guest_checks.TPM20 + guest_checks.COMMON + guest_checks.SELFTESTS),
    ):
        with bed.guest(name, [vtpm]) as guest:
            bed.checks(guest, "module_loads")
            bed.stop_backend()
            all_fail(
                bed, guest, [name for name in names if name not in NEED_NO_TPM], "without a backend"
            )
            bed.start_backend()
