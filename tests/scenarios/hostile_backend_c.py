# SPDX-License-Identifier: GPL-2.0
"""The same misbehaving backend with the stock C driver and a TPM 1.2: what it does is taken down, and fails nothing."""

from testbed import hostile_backend

SETS = ("deep",)


def run(bed):
    """A guest that is no longer well is replaced."""
    bed.driver = "c"
    hostile_backend.scenario(bed, (), "1.2")
