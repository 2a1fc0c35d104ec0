# SPDX-License-Identifier: GPL-2.0
"""The testbed: Xen, dom0 and guests in QEMU, driven from Python inside the root."""
