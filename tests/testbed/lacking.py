# SPDX-License-Identifier: GPL-2.0
"""What scenarios take that not every architecture has, and why it has not."""

from tools.arch import TARGET

LACKING = {} if TARGET.name == "amd64" else {
    "save": "libxl saves no guest there (LIBXL_HAVE_NO_SUSPEND_RESUME in libxl.h)",
    "stock driver": "Debian's kernels for it have no CONFIG_TCG_XEN",
    "debug kernel": "its configuration is for x86",
    "race kernel": "its configuration is for x86",
    "dom0 on a disk": "its packages would be configured by programs of that architecture",
    "host's TPM": "QEMU's Arm machine was not tried with one",
    "GRUB for Xen": "Debian has none for it",
    "HVM": "Xen has no device model there",
    "counted time": "QEMU's counting of instructions was not tried there",
}


def lacking(*needs):
    """Why some of it is not there; nothing where all of it is."""
    return "; ".join(LACKING[need] for need in needs if need in LACKING)
