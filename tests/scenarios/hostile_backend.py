# SPDX-License-Identifier: GPL-2.0
"""A backend that does one named thing wrong at a time, the worst of them: the guest lives on, and so does its TPM."""

from testbed import hostile_backend

SETS = ("test", "debug", "race")

WORST = ("honest", "silent", "length-max", "length-changes", "extra-pages", "states-4-to-255", "finish-late", "closing",
         "feature-huge", "secret-refused", "secret-wedged")


def run(bed):
    """One guest through all of them."""
    hostile_backend.scenario(bed, WORST)
