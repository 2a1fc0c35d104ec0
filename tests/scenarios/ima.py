# SPDX-License-Identifier: GPL-2.0
"""A kernel with the driver built in: IMA, keys and the random number generator have a TPM from the
start."""

from testbed.guest_checks import IMA_FROM_THE_START, IMA_POLICY

SETS = ("intree",)
KERNEL = "intree"
VARIANTS = {"deep": {"sets": ("deep",), "load": "ima_load_5000"}}

KEYS = ("trusted_keys", "evm_by_a_trusted_key", "ima_appraisal")


def run(bed, load="ima_load_500"):
    """Each version of a TPM, and a PVH guest beside the PV guests."""
    new, old, hvm = bed.vtpm("2.0"), bed.vtpm("1.2"), bed.vtpm("2.0")
    bed.boot([new, old, hvm])
    with bed.guest("ima20", [new], options=IMA_POLICY) as guest:
        bed.checks(guest, *IMA_FROM_THE_START)
        bed.checks(guest, load, "ima_violation", "ima_custom_policy", "ima_evmctl", limit=600)
        # With its key, EVM forbids changes of files that it does not know.
        bed.checks(guest, *KEYS)
    with bed.guest("ima12", [old], options=IMA_POLICY) as guest:
        bed.checks(guest, *IMA_FROM_THE_START)
        bed.checks(guest, load, "ima_violation", "ima_custom_policy", "ima_evmctl", limit=600)
    # Whatever is to be probed while the boot goes on, a TPM is not.
    with bed.guest(
        "pvh", [hvm], options=f"{IMA_POLICY} driver_async_probe=*", type="'pvh'"
    ) as guest:
        bed.checks(guest, *IMA_FROM_THE_START)
