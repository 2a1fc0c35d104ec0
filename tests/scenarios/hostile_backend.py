# SPDX-License-Identifier: GPL-2.0
"""A backend that does one named thing wrong at a time, the worst of them: the guest lives on, and
so does its TPM."""

from testbed import hostile_backend

SETS = ("test", "debug")

WORST = (
    "honest",
    "silent",
    "length-max",
    "length-changes",
    "extra-pages",
    "states-4-to-255",
    "finish-late",
    "closing",
    "feature-huge",
    "secret-refused",
    "secret-wedged",
)
# Where the answers of a TPM 1.2 are others than a TPM 2.0's; the rest is the same for both
# versions.
TPM12 = (
    "honest",
    "length-max",
    "header-longer",
    "tpm-failure",
    "tpm-retry",
    "random-more",
    "random-boundless",
    "version-changes",
    "stale-response",
    "unbind-busy",
    "secret-answered",
    "probe-failure",
    "probe-other-version",
    "durations-endless",
    "durations-none",
    "pcrs-many",
    "probe-selftest",
)
# () is all that we know. The stock C driver is compared: what it does is noted, and a guest that is
# no longer well is replaced.
VARIANTS = {"12": {"sets": ("deep",), "names": TPM12, "version": "1.2"},
            "deep": {"sets": ("deep",), "names": ()},
            "c": {"sets": ("compare",), "names": (), "version": "1.2", "driver": "c"}}


def run(bed, names=WORST, version="2.0", driver=None):
    """One guest through all of them."""
    bed.driver = driver or bed.driver
    hostile_backend.scenario(bed, names, version)
