# SPDX-License-Identifier: GPL-2.0
"""Puts the driver into a kernel tree, with the same Kbuild and Kconfig, and builds that tree: built in, for guests, and
as a module. Objects stay in the cache, so that only what changed is built anew; the results are the clone's."""

import contextlib
import dataclasses
import fcntl
import filecmp
import os
import re
import shutil

from harness import own_kernel, prepare
from harness.steps import BUILD, LOGS, TOP, StepError, must, step
from harness.suite_host import sources

FRAGMENT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "intree.config")
# Raise this when linux-source has to be unpacked anew.
RECIPE = 1
OPTION = "TCG_XEN_RUST"

# Where the driver goes in the tree, and what has to be said there.
PLACE = "drivers/char/tpm/xen-tpmfront"
PARTS = re.compile(r"Kbuild$|Kconfig$|src/|include/")
MAKEFILE_LINE = f"obj-$(CONFIG_{OPTION}) += xen-tpmfront/\n"
KCONFIG_LINE = f'source "{PLACE}/Kconfig"\n'
KCONFIG_END = "endif # TCG_TPM\n"

# What is for tests only.
EARLY_PLACE = "drivers/char/tpm/bed-early"
EARLY_LINE = "obj-y += bed-early/\n"

# What this run has built.
_built = []


@dataclasses.dataclass
class InTree:
    """The kernel with the driver in it: its places, by the same names as a stock kernel's."""

    stock: prepare.Kernel

    # Its name in the report.
    series = "intree"
    # Its image, uncompressed.
    vmlinux = f"{BUILD}/intree/vmlinux"

    @property
    def folder(self):
        """Where its source and its objects are in the cache."""
        return f"{self.stock.folder}-intree-{RECIPE}"

    @property
    def source(self):
        """linux-source with the driver in it."""
        return f"{self.folder}/source"

    @property
    def build(self):
        """The O= tree."""
        return f"{self.folder}/build"

    @property
    def release(self):
        """What `uname -r` says there."""
        return os.path.basename(self.modules)

    @property
    def modules(self):
        """Its modules, as they are installed: there are none, but modprobe wants to know what is built in."""
        parent = f"{BUILD}/intree/boot/lib/modules"
        return f"{parent}/{os.listdir(parent)[0]}"

    @property
    def make(self):
        """The kernel's own build."""
        return ["nice", "make", "-C", self.source, f"O={self.build}"]


@contextlib.contextmanager
def tree(stock):
    """The tree, for one clone at a time, with this clone's driver in it."""
    kernel = InTree(stock)
    os.makedirs(kernel.folder, exist_ok=True)
    with open(f"{kernel.folder}/lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        own_kernel.unpack(stock, kernel.folder)
        put_driver(kernel)
        os.makedirs(kernel.build, exist_ok=True)
        yield kernel
    os.utime(kernel.folder)


def copy_changed(files, target):
    """Makes a folder hold these files {name in it: path} and no other source; what is the same keeps its time."""
    for name, path in files.items():
        place = f"{target}/{name}"
        if not os.path.exists(place) or not filecmp.cmp(path, place, shallow=False):
            os.makedirs(os.path.dirname(place), exist_ok=True)
            shutil.copyfile(path, place)
    for folder, _, names in os.walk(target):
        for name in names:
            if os.path.relpath(f"{folder}/{name}", target) not in files:
                os.unlink(f"{folder}/{name}")


def add_line(path, line, before=None):
    """Adds a line to a file that does not have it, at its end or before another line."""
    with open(path, encoding="utf-8") as file:
        text = file.read()
    if line in text:
        return
    if before:
        if text.count(before) != 1:
            raise StepError(f"{path} has not the line {before!r}: this kernel is newer than {__name__} knows")
        text = text.replace(before, line + before)
    else:
        text += line
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def put_driver(kernel):
    """The driver's folder, one line in the Makefile, one in Kconfig; and what is for tests."""
    names = [name for name in sources() if PARTS.match(name)]
    copy_changed({name: f"{TOP}/{name}" for name in names}, f"{kernel.source}/{PLACE}")
    parent = os.path.dirname(f"{kernel.source}/{PLACE}")
    add_line(f"{parent}/Makefile", MAKEFILE_LINE)
    add_line(f"{parent}/Kconfig", KCONFIG_LINE, before=KCONFIG_END)
    early = f"{TOP}/tests/bed/early"
    copy_changed({name: f"{early}/{name}" for name in os.listdir(early)}, f"{kernel.source}/{EARLY_PLACE}")
    add_line(f"{parent}/Makefile", EARLY_LINE)


def build_kernel(stock, log="intree.log"):
    """The kernel with the driver built in, for guests; what took long is in the cache."""
    shutil.rmtree(f"{BUILD}/intree", ignore_errors=True)
    os.makedirs(f"{BUILD}/intree")
    with step("building a kernel with the driver in it (the first time 15 minutes of processor time)"), \
            tree(stock) as kernel:
        own_kernel.configure(kernel, kernel.make, FRAGMENT, "intree-config.log")
        must(kernel.make + ["-j2", "vmlinux", "modules"], log, "the kernel with the driver in it does not build")
        must(kernel.make + ["modules_install", f"INSTALL_MOD_PATH={BUILD}/intree/boot"], "intree-install.log",
             "cannot install what the kernel with the driver in it has of modules")
        # The last step, so that its result stands for all of them.
        must(["strip", "-g", "-o", f"{kernel.vmlinux}.new", f"{kernel.build}/vmlinux"], "intree-install.log",
             "cannot strip the kernel with the driver in it")
        os.rename(f"{kernel.vmlinux}.new", kernel.vmlinux)
    _built.append(kernel)
    return kernel


def build_once(stock):
    """The same, unless this run has built it already."""
    return _built[0] if _built else build_kernel(stock)


def build_module(stock, log="intree-module.log"):
    """The driver as a module of the same tree; returns its path."""
    path = f"{BUILD}/intree/xen-tpmfront.ko"
    with step("building the driver as a module of that kernel"), tree(stock) as kernel:
        must([f"{kernel.source}/scripts/config", "--file", f"{kernel.build}/.config", "--module", OPTION], log,
             "cannot configure the driver as a module")
        must(kernel.make + ["-j2", f"{PLACE}/xen-tpmfront.ko"], log, "the driver does not build as a module in tree")
        shutil.copyfile(f"{kernel.build}/{PLACE}/xen-tpmfront.ko", path)
    return path


def configured(stock, *lines):
    """What a configuration with these lines more comes out as: the values of TCG_XEN and of our option."""
    config, log = f"{BUILD}/intree/try.config", "intree-kconfig.log"
    with tree(stock) as kernel:
        shutil.copyfile(FRAGMENT, config)
        with open(config, "a", encoding="ascii") as file:
            file.write("".join(f"{line}\n" for line in lines))
        must(kernel.make + [f"KCONFIG_CONFIG={config}", "olddefconfig"], log, "cannot configure a kernel")
    with open(config, encoding="utf-8") as file:
        found = dict(re.findall(r"^CONFIG_(\w+)=(.*)$", file.read(), re.MULTILINE))
    os.makedirs(LOGS, exist_ok=True)
    return found.get("TCG_XEN", "n"), found.get(OPTION, "n")
