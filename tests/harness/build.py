# SPDX-License-Identifier: GPL-2.0
"""Builds the module for a kernel, and the backend with Debian's crates."""

import os

from harness import crates
from harness.steps import BUILD, TOP, must

CARGO_CONFIG = """\
[source.crates-io]
replace-with = "debian"
[source.debian]
directory = "/usr/share/cargo/registry"
[net]
offline = true
"""


def module_path(kernel):
    """The module built for a kernel."""
    return f"{BUILD}/module/{kernel.release}/xen-tpmfront.ko"


def build_module(kernel):
    """Builds the module; the log is build/log/module-RELEASE.log."""
    must(["make", "-j2", "modules", f"KDIR={kernel.build}"], f"module-{kernel.release}.log",
         f"the module does not build for {kernel.release}")


def inject_paths(kernel):
    """For a debug kernel: modules that let our driver's calls fail, or make mistakes."""
    return [f"{BUILD}/module/{kernel.release}/inject/{name}.ko" for name in kernel.inject]


def build_inject(kernel):
    """Builds them."""
    out = f"{BUILD}/module/{kernel.release}/inject"
    os.makedirs(out, exist_ok=True)
    must(["make", "-C", kernel.build, f"M={TOP}/tests/bed/inject", f"MO={out}", "modules"],
         f"inject-{kernel.release}.log", "the modules of tests/bed/inject do not build")


def cargo_environment():
    """Makes cargo use Debian's crates, with its files under build/."""
    home = f"{BUILD}/cargo-home"
    os.makedirs(home, exist_ok=True)
    with open(f"{home}/config.toml", "w", encoding="ascii") as file:
        file.write(CARGO_CONFIG)
    crates.fetch()
    return {"CARGO_HOME": home, "CARGO_TARGET_DIR": f"{BUILD}/cargo", "CARGO_BUILD_JOBS": "2",
            "CARGO_TERM_COLOR": "never"}


def backend_path():
    """The backend daemon."""
    return f"{BUILD}/cargo/release/xen-vtpmd"


def hostile_path():
    """The frontend that breaks every rule."""
    return f"{BUILD}/cargo/release/xen-hostile-frontend"


def hostile_backend_path():
    """The backend that does one named thing wrong."""
    return f"{BUILD}/cargo/release/xen-hostile-backend"


def bench_path(name):
    """A program or a module of tests/bench."""
    return f"{BUILD}/bench/module/{name}" if name.endswith(".ko") else f"{BUILD}/cargo/release/{name}"


def build_bench_modules(kernel):
    """Builds the modules that stand beside ours where time is taken."""
    target = f"{BUILD}/bench/module"
    os.makedirs(target, exist_ok=True)
    must(["make", "-C", kernel.build, f"M={TOP}/tests/bench", f"MO={target}", "modules"], "bench-modules.log",
         f"the modules of tests/bench do not build for {kernel.release}")


def build_backend():
    """Builds the workspace as it is installed."""
    must(["cargo", "build", "--release", "--workspace"], "backend.log", "the backend does not build",
         cwd=TOP, env=cargo_environment())
