# SPDX-License-Identifier: GPL-2.0
"""Builds a kernel for guests that looks for mistakes and can make calls fail: debug.config has what is in it."""

import hashlib
import os
import shutil

from harness import own_kernel
from harness.steps import must, output, step

FRAGMENT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "debug.config")
# Raise this when the way it is built changes.
RECIPE = 1

# A kernel that has KASAN and Rust is built by clang. Its tree says so to all who build modules on it.
VARIABLES = "override CC := clang\n"
# This file's functions run in a PVH guest before KASAN's memory is there.
UNCHECKED = "KASAN_SANITIZE_enlighten_pvh.o=n"


class DebugKernel(own_kernel.OwnKernel):
    """The debug kernel of a stock kernel's version."""

    @property
    def folder(self):
        """Where its files are in the cache, by all that they depend on."""
        with open(FRAGMENT, "rb") as file:
            parts = file.read() + output("clang", "--version").encode() + f"{VARIABLES}{RECIPE}".encode()
        return f"{self.stock.folder}-debug-{hashlib.sha256(parts).hexdigest()[:12]}"

    @property
    def release(self):
        """What `uname -r` says there."""
        with open(f"{self.build}/include/config/kernel.release", encoding="ascii") as file:
            return file.read().strip()

    @property
    def series(self):
        """Its name in the report."""
        return "debug"

    @property
    def modules(self):
        """Its modules, as they are installed."""
        return f"{self.folder}/boot/lib/modules/{self.release}"


def _build(kernel):
    """A build that was broken off goes on where it was."""
    own_kernel.unpack(kernel.stock, kernel.folder)
    os.makedirs(kernel.build, exist_ok=True)
    with open(f"{kernel.build}/.kernelvariables", "w", encoding="ascii") as file:
        file.write(VARIABLES)
    make, log = ["nice", "-n", "5", "make", "-C", kernel.source, f"O={kernel.build}", UNCHECKED], "debug-kernel.log"
    with step("building the debug kernel (about 25 minutes of processor time)"):
        own_kernel.configure(kernel, make, FRAGMENT, log)
        must(make + ["-j2", "vmlinux", "modules"], log, "the debug kernel does not build")
        shutil.rmtree(f"{kernel.folder}/boot", ignore_errors=True)
        must(make + ["modules_install", f"INSTALL_MOD_PATH={kernel.folder}/boot"], log,
             "cannot install the debug kernel's modules")
        own_kernel.strip(kernel, log)


def debug_kernel(stock):
    """The debug kernel of a stock kernel's version, which is built where the cache has none."""
    kernel = DebugKernel(stock)
    with own_kernel.locked(kernel):
        if not os.path.exists(kernel.vmlinux):
            _build(kernel)
    return kernel
