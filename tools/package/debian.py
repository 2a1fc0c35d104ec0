# SPDX-License-Identifier: GPL-2.0
"""A Debian system for the testbed, made by mmdebstrap, and how long one is kept."""

import glob
import os
import time

from tools.steps import CACHE, must

KEPT = 14 * 86400
# Nothing here reads them; what is installed later has them again.
UNREAD = [
    f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("doc", "locale", "man", "zoneinfo")
]


def make(packages, target, *more, variant="apt", architecture="amd64"):
    """Makes one with these packages: a directory, or an archive where the name ends like that."""
    must(
        [
            "mmdebstrap",
            "--mode=root",
            f"--variant={variant}",
            f"--architectures={architecture}",
            f"--include={packages}",
            '--aptopt=APT::Install-Recommends "false"',
            '--aptopt=APT::Sandbox::User "root"',
            *UNREAD,
            *more,
            "trixie",
            target,
            *glob.glob("/etc/apt/sources.list.d/*"),
        ],
        "mmdebstrap.log",
        "a Debian system cannot be made",
        env={"TMPDIR": CACHE},
    )


def keep(path, pattern):
    """This one is in use; others like it that have not been for long are removed."""
    os.utime(path)
    for old in glob.glob(f"{CACHE}/{pattern}"):
        if os.path.getmtime(old) < time.time() - KEPT:
            os.unlink(old)
