# SPDX-License-Identifier: GPL-2.0
"""Where the files of the architecture's programs are: the root itself, or packages of another
architecture that are unpacked in the cache and never run here."""

import glob
import hashlib
import os
import shutil

from tools.arch import TARGET
from tools.steps import CACHE, TOP, must, need_space, step

LIST = f"{TOP}/tools/env/packages.sysroot"


def _packages():
    with open(LIST, encoding="ascii") as file:
        return " ".join(line for line in file.read().splitlines() if not line.startswith("#"))


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
        must(
            [
                "mmdebstrap",
                "--mode=root",
                "--variant=extract",
                f"--architectures={TARGET.name}",
                f"--include={','.join(_packages().split())}",
                '--aptopt=APT::Install-Recommends "false"',
                '--aptopt=APT::Sandbox::User "root"',
                "trixie",
                f"{target}.new",
                *glob.glob("/etc/apt/sources.list.d/*"),
            ],
            "sysroot.log",
            f"the programs of {TARGET.name} cannot be unpacked",
            env={"TMPDIR": CACHE},
        )
    os.rename(f"{target}.new", target)


def make():
    """Unpacks the packages, unless that was done; they are in use from now on."""
    target = path()
    if not target:
        return
    if not os.path.exists(target):
        _unpack(target)
    os.utime(target)
