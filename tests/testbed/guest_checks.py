# SPDX-License-Identifier: GPL-2.0
"""Names of the checks of tests/guest, by what they are about: scenarios choose among them."""

LOAD = ("module_loads", "ours_is_loaded", "module_is_pinned_while_bound")
COMMON = (
    "locality_values",
    "locality_arrives",
    "locality_link",
    "request_sizes",
    "partial_reads",
    "busy_device",
    "counters",
)
TPM12 = (
    "tpm12_is_found",
    "sysfs_pubek",
    "sysfs_pcrs",
    "sysfs_enabled",
    "sysfs_active",
    "sysfs_owned",
    "sysfs_temp_deactivated",
    "sysfs_caps",
    "sysfs_cancel",
    "sysfs_durations",
    "sysfs_timeouts",
    "tpm12_pcr_extend",
)
TROUSERS = ("tpm_version", "tpm_takeownership", "tpm_getpubek", "tpm_sealdata")
TPM20 = (
    "tpm20_is_found",
    "tpm2_getcap",
    "tpm2_pcrread",
    "tpm2_pcrextend",
    "tpm2_getrandom",
    "tpm2_createprimary",
    "tpm2_seal_unseal_pcr_policy",
    "tpm2_nv",
    "tpm2_quote",
    "trusted_keys",
    "hwrng",
    "tpm20_cancel_while_a_key_is_made",
)
SELFTESTS = ("kernel_selftest_smoke", "kernel_selftest_space", "kernel_selftest_async")

# With the driver built in: what IMA's guests are told, and what has a TPM from the start.
IMA_POLICY = "ima_policy=tcb"
IMA_FROM_THE_START = (
    "module_loads",
    "ima_has_a_tpm",
    "ima_boot_aggregate",
    "ima_replay",
    "hwrng_at_boot",
)
