# SPDX-License-Identifier: GPL-2.0
"""The driver built in, and 5,000 measurements for each version of a TPM."""

from scenarios import ima

SETS = ("deep",)
KERNEL = "intree"


def run(bed):
    """As the short one, longer."""
    ima.run(bed, "ima_load_5000")
