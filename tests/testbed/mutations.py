# SPDX-License-Identifier: GPL-2.0
"""The bugs of tests/mutations, which are put into a copy of the source to see that the checks find
them: on the host (suites/proof.py) and in a guest (the scenarios hostile_backend_seeded and
driver_mutations)."""

import filecmp
import functools
import glob
import hashlib
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

# What dom0 does between two of the checks that a line Found-by: of the driver's names.
STEPS = ("stop swtpm", "stop the backend", "go on", "end the backend", "start the backend")
# The driver does not build with that bug.
BUILD_FAILS = "the build"
# Where what is named on a line Found-by: is defined, and how; of the daemon's tests in tests/.
CHECKS = {
    "driver": (r"tests/guest/\w+\.sh$", r"^check_{}\(\)"),
    "daemon": (r"backend/src/.*\.rs$", r"\bfn {}\(\)"),
    "testbed": (r"tests/unit/\w+\.py$", r"\bdef {}\("),
}


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


@functools.cache
def texts(pattern):
    """All files whose names are like that, as one text."""
    return "\n".join(read(name) for name in sources() if re.match(pattern, name))


def not_there(kind, path):
    """Which words of its line Found-by: name no check that there is."""
    found = []
    for word in found_by(path):
        files, definition = CHECKS[kind]
        target, _, name = word.rpartition(" ") if kind == "daemon" else ("", "", word)
        if target:
            files = rf"backend/tests/{target}/\w+\.rs$"
        defined = re.compile(definition.format(re.escape(name.rpartition("::")[2])), re.MULTILINE)
        if word not in (*STEPS, BUILD_FAILS) and not defined.search(texts(files)):
            found.append(word)
    return found


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
    where only what the bug touches is compiled again, and none twice of the same sources."""
    name, folder = name_of(path), f"{BUILD}/seeded/{kernel.release}"
    parts = sorted(filter(intree.PARTS.match, sources()))
    texts = "".join(map(read, [os.path.relpath(path, TOP), *parts])).encode()
    module = f"{folder}-{name}-{hashlib.sha256(texts).hexdigest()[:12]}.ko"
    with _building:
        if os.path.exists(module):
            return module
        for source in parts:
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
            shutil.copyfile(f"{folder}/xen-tpmfront.ko", f"{module}.new")
            os.rename(f"{module}.new", module)
        finally:
            seed(path, folder, "-R")
    return module
