# SPDX-License-Identifier: GPL-2.0
"""A guest with a TPM 1.2, one with a TPM 2.0, and one with both."""

from testbed import backend_resources
from testbed.report import Failure

SETS = ("test", "compare")

# The daemon's own processor time, as a part of swtpm's.
OWN_SHARE = 0.1
# How long a domain runs before another may run in its place, in us. Dom0's kernel counts as the daemon's what a
# guest does with the processor as soon as the daemon has notified it.
PREEMPT = "xl sched-credit2 -s -p Pool-0 -r {}"

LOAD = ("module_loads", "ours_is_loaded", "module_is_pinned_while_bound")
COMMON = ("locality_values", "locality_arrives", "locality_link", "request_sizes", "partial_reads", "busy_device",
          "counters")
TPM12 = ("tpm12_is_found", "sysfs_pubek", "sysfs_pcrs", "sysfs_enabled", "sysfs_active", "sysfs_owned",
         "sysfs_temp_deactivated", "sysfs_caps", "sysfs_cancel", "sysfs_durations", "sysfs_timeouts",
         "tpm12_pcr_extend")
TROUSERS = ("tpm_version", "tpm_takeownership", "tpm_getpubek", "tpm_sealdata")
TPM20 = ("tpm20_is_found", "tpm2_getcap", "tpm2_pcrread", "tpm2_pcrextend", "tpm2_getrandom", "tpm2_createprimary",
         "tpm2_seal_unseal_pcr_policy", "tpm2_nv", "tpm2_quote", "trusted_keys", "hwrng",
         "tpm20_cancel_while_a_key_is_made")
SELFTESTS = ("kernel_selftest_smoke", "kernel_selftest_space", "kernel_selftest_async")


def own_share(before, after):
    """The daemon takes little processor time beside a swtpm that has something to do, as keys to make."""
    share, numbers = backend_resources.share(before, after)
    if share > OWN_SHARE:
        raise Failure(f"the daemon takes too much: {numbers}")
    return numbers


def run(bed):
    """Runs the checks of each guest."""
    old, fresh, new = bed.vtpm("1.2"), bed.vtpm("1.2", key=False), bed.vtpm("2.0")
    pair = [bed.vtpm("1.2"), bed.vtpm("2.0")]
    bed.boot([old, fresh, new, *pair])
    with bed.guest("tpm12", [old, fresh]) as guest:
        bed.checks(guest, *LOAD, *TPM12, *COMMON, "tpm12_cancel_while_a_key_is_made")
        # tcsd listens on TCP, and the debug kernel has no network.
        bed.checks(guest, *(() if bed.debug else TROUSERS))
    with bed.guest("tpm20", [new]) as guest:
        bed.checks(guest, *LOAD, *TPM20, *COMMON)
        bed.machine.must(PREEMPT.format(100000))
        before = backend_resources.counters(bed.machine, guest)
        bed.checks(guest, *SELFTESTS, limit=240)
        bed.record("the daemon's share of the time", own_share, before, backend_resources.counters(bed.machine, guest))
        bed.machine.must(PREEMPT.format(1000))
    with bed.guest("two", pair) as guest:
        bed.checks(guest, "module_loads", "two_vtpms")
