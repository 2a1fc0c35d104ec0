# SPDX-License-Identifier: GPL-2.0
"""The misbehaving backend with a TPM 1.2: where that one's answers are others than a TPM 2.0's."""

from testbed import hostile_backend

SETS = ("deep",)

NAMES = ("honest", "length-max", "header-longer", "tpm-failure", "tpm-retry", "random-more", "random-boundless",
         "version-changes", "secret-answered", "probe-failure", "probe-other-version", "durations-endless",
         "durations-none")


def run(bed):
    """The rest is the same for both versions."""
    hostile_backend.scenario(bed, NAMES, "1.2")
