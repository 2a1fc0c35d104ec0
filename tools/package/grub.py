# SPDX-License-Identifier: GPL-2.0
"""GRUB as xl boots it in a PVH guest, in place of a kernel: from Debian's grub-xen-host."""

import glob
import os
import shutil

from tools.kernels.prepare import download, versions
from tools.steps import CACHE, StepError, must, step

PACKAGE = "grub-xen-host"


def image():
    """Its path."""
    found = versions(PACKAGE)
    if not found:
        raise StepError(f"the archive's index has no {PACKAGE}")
    folder = f"{CACHE}/grub-{found[0].replace('~', '_')}"
    if not os.path.exists(folder):
        with step(f"downloading {PACKAGE}"):
            for old in glob.glob(f"{CACHE}/grub-*"):
                shutil.rmtree(old)
            archive, = download(f"{folder}.new", PACKAGE)
            must(["dpkg-deb", "-x", archive, f"{folder}.new"], "grub.log", "cannot unpack GRUB")
            os.rename(f"{folder}.new", folder)
    return f"{folder}/usr/lib/grub-xen/grub-i386-xen_pvh.bin"
