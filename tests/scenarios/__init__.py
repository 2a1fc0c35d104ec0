# SPDX-License-Identifier: GPL-2.0
"""What is done on the testbed, a file for each boot."""
