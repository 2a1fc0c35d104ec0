# SPDX-License-Identifier: GPL-2.0
"""Builds kernels for guests that look for mistakes: `debug`, which can make calls fail, too
(debug.config has what is in it), and `race`, which looks for data races, in C and in Rust
(race.config has what is otherwise)."""

import hashlib
import os
import shutil

from tools.arch import TARGET
from tools.kernels import common
from tools.steps import JOBS, StepError, must, output, step

HERE = os.path.dirname(os.path.abspath(__file__))
FRAGMENT = f"{HERE}/debug.config"
# Raise this when the way they are built changes.
RECIPE = 1

# A kernel that has a sanitizer and Rust is built by clang. Its tree says so to all who build
# modules on it.
CLANG = "override CC := clang\n"
# KCSAN is told of each access by calls that the compiler makes. Linux has them made for C alone;
# rustc can make them, for a target that is said to know that.
RUST_RACES = (
    "KRUSTFLAGS += -Zsanitizer=thread"
    + "".join(
        f" -Cllvm-args=-tsan-{option}"
        for option in ("distinguish-volatile=1", "instrument-func-entry-exit=0")
    )
    + "\n"
)
# The C code that it looks at: xenbus, grants, the TPM core, and what Rust calls of C's inline
# functions.
NEIGHBOURS = (
    "grant-table",
    "xenbus_client",
    "xenbus_comms",
    "xenbus_probe",
    "xenbus_probe_frontend",
    "xenbus_xs",
    "tpm-buf",
    "tpm-chip",
    "tpm-dev",
    "tpm-dev-common",
    "tpm-interface",
    "tpm-sysfs",
    "tpm1-cmd",
    "tpm2-cmd",
    "tpm2-space",
    "tpmrm-dev",
    "helpers",
)
RUST_TARGET = "scripts/generate_rust_target.rs"
SANITIZERS = '["kcfi", "kernel-address"]'
AND_THREAD = '["kcfi", "kernel-address", "thread"]'


class DebugKernel(common.OwnKernel):
    """The debug kernel of a stock kernel's version."""

    # Its name in the report, and in `uname -r`.
    series = "debug"
    variables = CLANG
    # Which objects are looked at, for make. This one's functions run in a PVH guest before KASAN's
    # memory is there.
    looked_at = ("KASAN_SANITIZE_enlighten_pvh.o=n",)
    # Modules of tests/inject, the guests' processors, what their kernels are told, and their last
    # checks.
    inject = ("inject", "mistakes")
    vcpus = 1
    options = ""
    checks = ("kernel_log", "debug_reports")

    @property
    def config(self):
        """What it has beside tinyconfig."""
        return common.otherwise(FRAGMENT, [])

    @property
    def folder(self):
        """Where its files are in the cache, by all that they depend on."""
        parts = (
            self.config.encode()
            + output("clang", "--version").encode()
            + f"{self.variables}{RECIPE}".encode()
        )
        return f"{self.stock.folder}-{self.series}-{hashlib.sha256(parts).hexdigest()[:12]}"

    @property
    def release(self):
        """What `uname -r` says there."""
        with open(f"{self.build}/include/config/kernel.release", encoding="ascii") as file:
            return file.read().strip()

    @property
    def modules(self):
        """Its modules, as they are installed."""
        return f"{self.folder}/boot/lib/modules/{self.release}"

    def prepare_source(self):
        """Changes linux-source where that is needed."""


class RaceKernel(DebugKernel):
    """The one that looks for data races."""

    series = "race"
    variables = CLANG + RUST_RACES
    # KCSAN looks at one access of many: none of those by the rest of the kernel are among them.
    looked_at = ("KCSAN_SANITIZE=n", *(f"KCSAN_SANITIZE_{name}.o=y" for name in NEIGHBOURS))
    inject = ("races",)
    vcpus = 2
    # KCSAN's reports go to the log only. The machine has one processor (with two, QEMU mixes up PVH
    # guests' registers with Xen's): for another thread to run meanwhile, KCSAN watches for longer,
    # and more often.
    options = "loglevel=3 kcsan.skip_watch=20 kcsan.udelay_task=1000 kcsan.udelay_interrupt=100"
    checks = ("kernel_log", "race_reports")

    @property
    def config(self):
        """What it has beside tinyconfig."""
        with open(f"{HERE}/race.config", encoding="ascii") as file:
            return common.otherwise(FRAGMENT, file)

    def prepare_source(self):
        """The target of rustc's is said to have this sanitizer, too."""
        path = f"{self.source}/{RUST_TARGET}"
        with open(path, encoding="utf-8") as file:
            text = file.read()
        if SANITIZERS in text:
            with open(path, "w", encoding="utf-8") as file:
                file.write(text.replace(SANITIZERS, AND_THREAD))
        elif AND_THREAD not in text:
            raise StepError(
                f"{RUST_TARGET} has not {SANITIZERS}: this kernel is newer than {__name__} knows"
            )


def _build(kernel):
    """A build that was broken off goes on where it was."""
    common.unpack(kernel.stock, kernel.folder)
    kernel.prepare_source()
    os.makedirs(kernel.build, exist_ok=True)
    with open(f"{kernel.build}/.kernelvariables", "w", encoding="ascii") as file:
        file.write(kernel.variables)
    fragment = f"{kernel.folder}/{kernel.series}.config"
    with open(fragment, "w", encoding="ascii") as file:
        file.write(kernel.config)
    make, log = [
        "nice",
        "-n",
        "5",
        "make",
        "-C",
        kernel.source,
        f"O={kernel.build}",
        *kernel.looked_at,
    ], f"{kernel.series}-kernel.log"
    with step(f"building the {kernel.series} kernel (about 25 minutes of processor time)"):
        common.configure(kernel, make, fragment, log)
        must(
            make + [f"-j{JOBS}", os.path.basename(TARGET.image), "modules"],
            log,
            f"the {kernel.series} kernel does not build",
        )
        shutil.rmtree(f"{kernel.folder}/boot", ignore_errors=True)
        must(make + ["modules_install", f"INSTALL_MOD_PATH={kernel.folder}/boot"], log,
             f"cannot install the {kernel.series} kernel's modules")
        common.keep_image(kernel, log)


def build_kernel(stock, kind):
    """Such a kernel of a stock kernel's version, which is built where the cache has none."""
    kernel = kind(stock)
    with common.locked(kernel):
        if not os.path.exists(kernel.vmlinux):
            _build(kernel)
    return kernel
