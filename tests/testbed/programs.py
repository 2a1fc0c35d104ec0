# SPDX-License-Identifier: GPL-2.0
"""Builds the programs and modules that tests bring along, and says where they are. Cargo builds the
programs with the daemon (tools/build.py)."""

import os

from tools.arch import TOOLS
from tools.build import program
from tools.steps import BUILD, TOP, must


def inject_paths(kernel):
    """For a debug kernel: modules that let our driver's calls fail, or make mistakes."""
    return [f"{BUILD}/module/{kernel.release}/inject/{name}.ko" for name in kernel.inject]


def build_hostile_swtpm():
    """Builds what takes swtpm's place; returns its path."""
    path = f"{BUILD}/hostile-swtpm"
    must([f"{TOOLS}gcc", "-O1", "-static", "-o", path,
          f"{TOP}/backend/tests/native/standins/swtpm.c"],
         "hostile-swtpm.log", "the hostile swtpm does not build")
    return path


def build_nosync():
    """Builds what keeps a daemon from making anything durable; returns its path."""
    path = f"{BUILD}/nosync.so"
    must([f"{TOOLS}gcc", "-shared", "-fPIC", "-O1", "-o", path, f"{TOP}/tests/dom0/nosync.c"],
         "nosync.log", "tests/dom0/nosync.c does not build")
    return path


def build_inject(kernel):
    """Builds them."""
    out = f"{BUILD}/module/{kernel.release}/inject"
    os.makedirs(out, exist_ok=True)
    must(["make", "-C", kernel.build, f"M={TOP}/tests/inject", f"MO={out}", "modules"],
         f"inject-{kernel.release}.log", "the modules of tests/inject do not build")


def hostile_path():
    """The frontend that breaks every rule."""
    return program("xen-hostile-frontend")


def hostile_backend_path():
    """The backend that does one named thing wrong."""
    return program("xen-hostile-backend")


def bench_path(name):
    """A program or a module of tests/bench."""
    return f"{BUILD}/bench/module/{name}" if name.endswith(".ko") else program(name)


def build_bench_modules(kernel):
    """Builds the modules that stand beside ours where time is taken."""
    target = f"{BUILD}/bench/module"
    os.makedirs(target, exist_ok=True)
    must(
        ["make", "-C", kernel.build, f"M={TOP}/tests/bench", f"MO={target}", "modules"],
        "bench-modules.log",
        f"the modules of tests/bench do not build for {kernel.release}",
    )
