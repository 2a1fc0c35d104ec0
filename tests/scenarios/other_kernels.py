# SPDX-License-Identifier: GPL-2.0
"""The same module source on the other stock kernels that the archive has."""

from testbed import guest_checks

SETS = ("test",)
OTHER_KERNELS = True


def run(bed):
    """What could differ between kernels: binding, sysfs, the TPM core's calls, unloading."""
    vtpms = [bed.vtpm("1.2"), bed.vtpm("2.0")]
    bed.boot(vtpms)
    with bed.guest("tpm12", vtpms[:1]) as guest:
        bed.checks(guest, *guest_checks.LOAD, "tpm12_is_found", "tpm12_pcr_extend", "sysfs_pcrs")
    with bed.guest("tpm20", vtpms[1:]) as guest:
        bed.checks(
            guest,
            *guest_checks.LOAD,
            "tpm20_is_found",
            "tpm2_getcap",
            "tpm2_pcrextend",
            "hwrng",
            "tpm20_cancel_while_a_key_is_made",
            *guest_checks.COMMON,
            "reload_5"
        )
