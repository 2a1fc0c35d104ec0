# SPDX-License-Identifier: GPL-2.0
"""The bugs of tests/mutations, which are put into a copy of the source to see that the checks find
them: on the host (suites/proof.py) and in a guest (the scenarios hostile_backend_seeded and
driver_mutations)."""

import filecmp
import glob
import os
import re
import shutil
import subprocess
import threading

from tools.kernels import intree
from tools.steps import BUILD, JOBS, TOP, StepError, must
from tools.sources import read, sources

# Scenarios run side by side.
_building = threading.Lock()


def patches(kind="protocol"):
    """All of a kind, as patches."""
    return sorted(glob.glob(f"{TOP}/tests/mutations/{kind}/*.patch"))


def name_of(path):
    """What a bug is called."""
    return os.path.basename(path)[:-len(".patch")]


def says(path):
    """What is wrong in it, in a line."""
    return read(os.path.relpath(path, TOP)).splitlines()[1]


def found_by(path):
    """What has to find it, by the patch's line Found-by: the last of these words fails, and all
    before it do not."""
    match = re.search(r"^Found-by: (.*)$", read(os.path.relpath(path, TOP)), re.MULTILINE)
    if not match:
        raise StepError(f"{path} has no line Found-by: that names the check that finds it")
    return [word.strip() for word in match[1].split(",")]


def copy(folder, wanted):
    """A copy of the sources that `wanted` says yes to, to be broken. With the time of now: what was
    built of the last mutant would be taken for newer than an older file."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in filter(wanted, sources()):
        os.makedirs(os.path.dirname(f"{folder}/{name}"), exist_ok=True)
        shutil.copy(f"{TOP}/{name}", f"{folder}/{name}")


def seed(path, folder, *how):
    """Puts a bug into a copy, or takes it out again; says why it cannot be done."""
    done = subprocess.run(
        ["patch", "-p1", "-s", "--fuzz=0", "-d", folder, "-i", path, *how],
        capture_output=True,
        text=True,
        check=False,
    )
    return (
        f"the patch does not fit the code any more: {done.stdout}{done.stderr}"
        if done.returncode
        else None
    )


def build_module(kernel, path):
    """The driver with that bug, as a module; returns its path. All are built in one directory,
    where only what the bug touches is compiled anew."""
    name, folder = name_of(path), f"{BUILD}/seeded/{kernel.release}"
    module = f"{BUILD}/seeded/{kernel.release}-{name}.ko"
    with _building:
        for source in filter(intree.PARTS.match, sources()):
            target = f"{folder}/{source}"
            if not os.path.exists(target) or not filecmp.cmp(f"{TOP}/{source}", target, False):
                os.makedirs(os.path.dirname(target), exist_ok=True)
                shutil.copy(f"{TOP}/{source}", target)
        if why := seed(path, folder):
            raise StepError(f"{name}: {why}")
        try:
            must(
                ["nice", "make", f"-j{JOBS}", "-C", kernel.build, f"M={folder}", "modules"],
                f"seeded-{name}.log",
                f"the module with the bug {name} does not build",
            )
            shutil.copyfile(f"{folder}/xen-tpmfront.ko", module)
        finally:
            seed(path, folder, "-R")
    return module
