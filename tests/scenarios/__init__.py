# SPDX-License-Identifier: GPL-2.0
"""What is done on the bed, a file for each boot."""
