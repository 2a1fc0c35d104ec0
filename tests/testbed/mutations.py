# SPDX-License-Identifier: GPL-2.0
"""The bugs of tests/mutations, which are put into a copy of the source to see that the ways of looking for bugs find them:
on the host (suite_proof) and in a guest (the scenarios hostile_backend_seeded and races, which has its own)."""

import glob
import os
import shutil
import subprocess

from tools.kernels import intree
from tools.steps import BUILD, TOP, StepError, must
from tools.sources import read, sources


def patches():
    """All of them, as patches."""
    return sorted(glob.glob(f"{TOP}/tests/mutations/protocol/*.patch"))


def name_of(path):
    """What a bug is called."""
    return os.path.basename(path)[:-len(".patch")]


def says(path):
    """What is wrong in it, in a line."""
    return read(os.path.relpath(path, TOP)).splitlines()[1]


def seed(path, folder, *how):
    """Puts a bug into a copy, or takes it out again; says why it cannot be done."""
    done = subprocess.run(["patch", "-p1", "-s", "--fuzz=0", "-d", folder, "-i", path, *how], capture_output=True, text=True,
                          check=False)
    return f"the patch does not fit the code any more: {done.stdout}{done.stderr}" if done.returncode else None


def build_module(kernel, path):
    """The driver with that bug, as a module; returns its path."""
    name = name_of(path)
    folder = f"{BUILD}/seeded/{name}"
    shutil.rmtree(folder, ignore_errors=True)
    for source in filter(intree.PARTS.match, sources()):
        os.makedirs(os.path.dirname(f"{folder}/{source}"), exist_ok=True)
        shutil.copy(f"{TOP}/{source}", f"{folder}/{source}")
    if why := seed(path, folder):
        raise StepError(f"{name}: {why}")
    must(["nice", "make", "-C", kernel.build, f"M={folder}", "modules"], f"seeded-{name}.log",
         f"the module with the bug {name} does not build")
    return f"{folder}/xen-tpmfront.ko"
