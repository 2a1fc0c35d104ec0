# SPDX-License-Identifier: GPL-2.0
"""What runs inside the root: preparing kernels, building, suites of checks and their report."""
