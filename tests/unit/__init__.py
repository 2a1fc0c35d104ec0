# SPDX-License-Identifier: GPL-2.0
"""Unit tests of the tools and of the testbed, with made-up input: python3 -m unittest discover -s
tests/unit -t ."""

import os
import sys

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path[:0] = [TOP, f"{TOP}/tests"]
