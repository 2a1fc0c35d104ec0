# SPDX-License-Identifier: GPL-2.0
"""A backend that does one named thing wrong at a time, all that we know: the guest lives on, and so does its TPM."""

from testbed import hostile_backend

SETS = ("deep",)


def run(bed):
    """One guest through all of them."""
    hostile_backend.scenario(bed, ())
