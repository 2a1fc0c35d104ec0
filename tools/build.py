# SPDX-License-Identifier: GPL-2.0
"""Builds the module for a kernel, and the backend with Debian's crates."""

import os

from tools import cargo_cache
from tools.arch import TARGET, TOOLS
from tools.steps import BUILD, JOBS, TOP, must

CARGO_CONFIG = """\
[source.crates-io]
replace-with = "debian"
[source.debian]
directory = "/usr/share/cargo/registry"
[net]
offline = true
"""
# The programs of the testbed's machines.
ON_TESTBED = ("xen-vtpmd", "xen-hostile-frontend", "xen-hostile-backend")


def module_path(kernel):
    """The module built for a kernel."""
    return f"{BUILD}/module/{kernel.release}/xen-tpmfront.ko"


def build_module(kernel):
    """Builds the module; the log is build/log/module-RELEASE.log."""
    must(["make", f"-j{JOBS}", "modules", f"KDIR={kernel.build}"], f"module-{kernel.release}.log",
         f"the module does not build for {kernel.release}")


def cargo_environment():
    """Makes cargo use Debian's crates, with its files under build/."""
    home = f"{BUILD}/cargo-home"
    os.makedirs(home, exist_ok=True)
    with open(f"{home}/config.toml", "w", encoding="ascii") as file:
        file.write(CARGO_CONFIG)
    cargo_cache.fetch()
    environment = {"CARGO_HOME": home, "CARGO_TARGET_DIR": f"{BUILD}/cargo",
                   "CARGO_BUILD_JOBS": str(JOBS), "CARGO_TERM_COLOR": "never"}
    if TARGET.foreign:
        linker = f"CARGO_TARGET_{TARGET.cargo.upper().replace('-', '_')}_LINKER"
        environment |= {"CARGO_BUILD_TARGET": TARGET.cargo, linker: f"{TOOLS}gcc",
                        "PKG_CONFIG_ALLOW_CROSS": "1"}
    return environment


def program(name):
    """A program that Cargo has built as it is installed."""
    target = f"{TARGET.cargo}/" if TARGET.foreign else ""
    return f"{BUILD}/cargo/{target}release/{name}"


def backend_path():
    """The backend daemon."""
    return program("xen-vtpmd")


def build_backend():
    """Builds the workspace as it is installed; of another architecture, what the testbed runs."""
    packages = [f"--package={name}" for name in ON_TESTBED] if TARGET.foreign else ["--workspace"]
    must(
        ["cargo", "build", "--release", *packages],
        "backend.log",
        "the backend does not build",
        cwd=TOP,
        env=cargo_environment(),
    )
