# SPDX-License-Identifier: GPL-2.0
"""The same module source on the other stock kernels that the archive has."""

from scenarios import tpm_functions

SETS = ("test",)
OTHER_KERNELS = True


def run(bed):
    """What could differ between kernels: binding, sysfs, the TPM core's calls, unloading."""
    vtpms = [bed.vtpm("1.2"), bed.vtpm("2.0")]
    bed.boot(vtpms)
    with bed.guest("tpm12", vtpms[:1]) as guest:
        bed.checks(guest, *tpm_functions.LOAD, *tpm_functions.TPM12)
    with bed.guest("tpm20", vtpms[1:]) as guest:
        bed.checks(guest, *tpm_functions.LOAD, "tpm20_is_found", "tpm2_getcap", "tpm2_pcrextend", "hwrng",
                   "tpm20_cancel_while_a_key_is_made", *tpm_functions.COMMON, "reload_5")
