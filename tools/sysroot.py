# SPDX-License-Identifier: GPL-2.0
"""Where the files of the architecture's programs are: the root itself, or packages of another
architecture that are unpacked in the cache and never run here."""

import hashlib
import os
import shutil

from tools.arch import TARGET
from tools.package import debian
from tools.steps import CACHE, TOP, need_space, step

LIST = f"{TOP}/tools/env/packages.sysroot"


def _packages():
    with open(LIST, encoding="ascii") as file:
        return ",".join(" ".join(line for line in file if not line.startswith("#")).split())


def path():
    """In front of each file's path; nothing for the root."""
    if not TARGET.foreign:
        return ""
    key = hashlib.sha256(_packages().encode()).hexdigest()[:12]
    return f"{CACHE}/sysroot-{TARGET.name}-{key}"


def _unpack(target):
    need_space(2, CACHE, f"the programs of {TARGET.name}")
    shutil.rmtree(f"{target}.new", ignore_errors=True)
    with step(f"unpacking the programs of {TARGET.name} (about 140 MB to download)"):
        debian.make(_packages(), f"{target}.new", variant="extract", architecture=TARGET.name)
    os.rename(f"{target}.new", target)


def make():
    """Unpacks the packages, unless that was done; they are in use from now on."""
    target = path()
    if not target:
        return
    if not os.path.exists(target):
        _unpack(target)
    os.utime(target)
