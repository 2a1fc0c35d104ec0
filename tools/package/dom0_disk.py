# SPDX-License-Identifier: GPL-2.0
"""A disk with a Debian system that has systemd, apt and Xen's tools, for a dom0 that packages are
installed in."""

import hashlib
import os
import shutil

from tools.package import debian
from tools.steps import CACHE, TOP, must, need_space, output, step

RECIPE = f"{TOP}/tools/package/dom0"
# Libraries and tools that swtpm needs are there, as on most machines; swtpm itself is not.
PACKAGES = "systemd-sysv,udev,kmod,procps,xen-utils-4.20,xen-utils-common,xenstore-utils," \
    "adduser,apparmor,gnutls-bin,libjson-glib-1.0-0,libtpms0,openssl,tpm2-tools," \
    "libtss2-tcti-device0t64,libtss2-tcti-swtpm0t64"
SIZE = "1G"


def key():
    """By the recipe, and by what has to fit to the package that is built in the root."""
    fits = output("dpkg-query", "-W", "libc6", "libxenstore4", "swtpm")
    parts = [PACKAGES, SIZE, *debian.UNREAD, fits]
    for name in (
        __file__,
        debian.__file__,
        *(f"{RECIPE}/{name}" for name in ("customize", "bed-agent.service", "agent")),
    ):
        with open(name, encoding="utf-8") as file:
            parts.append(file.read())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def dom0_disk():
    """The disk, made once; it is not to be written to."""
    disk = f"{CACHE}/dom0-{key()}.img"
    if not os.path.exists(disk):
        need_space(2, CACHE, "a Debian system for dom0")
        with step("making a Debian system for dom0 (about 80 MB to download, 2 minutes)"):
            _make(disk)
    debian.keep(disk, "dom0-*.img")
    return disk


def _make(disk):
    tree, new = f"{disk}.tree-{os.getpid()}", f"{disk}.new-{os.getpid()}"
    try:
        debian.make(
            PACKAGES,
            tree,
            "--skip=cleanup/apt",
            f'--customize-hook={RECIPE}/customize "$1" {RECIPE}',
        )
        # No journal: each run starts from this file again.
        must(
            ["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", tree, new, SIZE],
            "mke2fs.log",
            "the disk for dom0 cannot be made",
        )
        os.rename(new, disk)
    finally:
        shutil.rmtree(tree, ignore_errors=True)
