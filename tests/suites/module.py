# SPDX-License-Identifier: GPL-2.0
"""Checks of the module's build: for every kernel, without warnings, installed where modprobe
prefers it."""

import glob
import os
import re
import shutil
import subprocess

from tools.arch import TARGET, TOOLS
from tools.build import build_module, module_path
from testbed.report import Failure, Skip
from tools.steps import BUILD, JOBS, LOGS, TOP, logged, output
from tools.sources import sources

WARNING = re.compile(
    r"^(warning|error)\b|: (warning|error):|WARNING: modpost|undefined!", re.MULTILINE
)
# Debian's header trees cannot have these; they say nothing on our code.
EXPECTED = re.compile(r"warning: the compiler differs|Skipping BTF generation", re.MULTILINE)
FIELDS = {"name": r"xen_tpmfront|xen-tpmfront", "license": r"GPL", "alias": r"xen:vtpm",
          "author": r"\S", "description": r"\S"}


def warnings(log):
    """The lines of a log that warn."""
    with open(f"{LOGS}/{log}", encoding="utf-8", errors="replace") as file:
        return [line.strip() for line in file if WARNING.search(line) and not EXPECTED.search(line)]


def build(kernel):
    """Builds from nothing; a warning is a failure."""
    shutil.rmtree(f"{BUILD}/module/{kernel.release}", ignore_errors=True)
    before = sources()
    build_module(kernel)
    found = warnings(f"module-{kernel.release}.log")
    if found:
        raise Failure("\n".join(found))
    added = [name for name in sources() if name not in before]
    if added:
        raise Failure("the build wrote among the sources: " + ", ".join(added))
    return f"{os.path.getsize(module_path(kernel)) >> 10} kB"


def build_with(kernel, what, option, ran):
    """Builds apart from the other builds with an option; the log has to show that what it asks for
    `ran`."""
    folder = f"{BUILD}/{what}/{kernel.release}"
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    log = f"{what}-{kernel.release}.log"
    code = logged(
        ["make", f"-j{JOBS}", "-C", kernel.build, f"M={TOP}", f"MO={folder}", option, "modules"],
        log,
    )
    found = warnings(log)
    if code or found:
        raise Failure("\n".join(found) or f"code {code}: see build/log/{log}")
    with open(f"{LOGS}/{log}", encoding="utf-8") as file:
        if ran not in file.read():
            raise Failure(f"the kernel's build did not run {what}")


def clippy(kernel):
    """Clippy with the kernel's rules, which ask for a SAFETY comment at every unsafe block."""
    build_with(kernel, "clippy", "CLIPPY=1", "CLIPPY")


def rustdoc(kernel):
    """The documentation of everything, private items too."""
    build_with(kernel, "rustdoc", "DOC=1", "RUSTDOC")


def checkpatch(kernel):
    """The C files keep the kernel's style."""
    files = [
        name
        for name in sources()
        if name.startswith(("src/", "include/"))
        and name.endswith((".c", ".h"))
        or name == "Kconfig"
    ]
    if not files:
        raise Skip("no C file")
    done = subprocess.run(
        [
            f"{kernel.source}/scripts/checkpatch.pl",
            "--no-tree",
            "--strict",
            "--terse",
            "--file",
            "--ignore",
            "FILE_PATH_CHANGES,CONFIG_DESCRIPTION",
            *files,
        ],
        cwd=TOP,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Failure(done.stdout + done.stderr)


def modinfo(kernel):
    """The module says what it is, and is for this very kernel."""
    path = module_path(kernel)
    for field, wanted in FIELDS.items():
        found = output("modinfo", "-F", field, path)
        if not re.search(wanted, found):
            raise Failure(f"modinfo: {field} is {found.strip()!r}")
    magic = output("modinfo", "-F", "vermagic", path)
    if magic.split()[0] != kernel.release:
        raise Failure(f"the module is for {magic}")


def install(kernel):
    """modules_install puts it under updates/."""
    target = f"{BUILD}/install"
    shutil.rmtree(target, ignore_errors=True)
    code = logged(
        ["make", "modules_install", f"KDIR={kernel.build}", f"INSTALL_MOD_PATH={target}"],
        "install.log",
    )
    if code:
        raise Failure("make modules_install failed: see build/log/install.log")
    found = [
        path[len(target) :]
        for path in glob.glob(f"{target}/lib/modules/*/**/*.ko*", recursive=True)
    ]
    if [path.split(".ko")[0] for path in found] != [
        f"/lib/modules/{kernel.release}/updates/xen-tpmfront"
    ]:
        raise Failure(f"installed: {found}")
    return found[0]


def refused(kernel, change, wanted):
    """`make modules` on a tree that will not do is one clear error."""
    tree = f"{BUILD}/refused"
    shutil.rmtree(tree, ignore_errors=True)
    os.makedirs(f"{tree}/include/config")
    os.makedirs(f"{tree}/rust")
    with open(f"{kernel.build}/.config", encoding="utf-8") as file:
        config = file.read()
    with open(f"{tree}/.config", "w", encoding="utf-8") as file:
        file.write(change(config))
    done = subprocess.run(
        ["make", "modules", f"KDIR={tree}"], cwd=TOP, capture_output=True, text=True, check=False
    )
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    if done.returncode == 0 or len(errors) != 1 or not re.search(wanted, errors[0]):
        raise Failure(f"code {done.returncode}: {done.stdout}{done.stderr}")
    return errors[0]


# What a processor that reorders accesses is told by, in the functions that the module calls for the
# page's state and for flags (architecture.rst, "The order of accesses").
ORDERS = {
    "rust_helper_atomic_i8_read_acquire": r"\tldarb\t",
    "rust_helper_atomic_i8_set_release": r"\tstlrb\t",
    "rust_helper_atomic_i8_xchg": r"\tdmb\tish\b|\tswpalb\t",
}


def orders(kernel):
    """The module's acquires, releases and full barriers are such instructions on arm64."""
    called = output(f"{TOOLS}nm", "-u", module_path(kernel))
    helpers = f"{kernel.build}/rust/helpers/helpers.o"
    for name, wanted in ORDERS.items():
        if not re.search(rf" {name}$", called, re.MULTILINE):
            raise Failure(f"the module does not call {name}")
        code = output(f"{TOOLS}objdump", f"--disassemble={name}", helpers)
        if not re.search(wanted, code):
            raise Failure(f"{name} has no such instruction: {code}")


def run_builds(report, kernels):
    """It builds, and says what for."""
    for kernel in kernels:
        if report.check("module", f"builds for {kernel.release} without a warning", build, kernel):
            report.check("module", f"modinfo for {kernel.release}", modinfo, kernel)
            if TARGET.name == "arm64":
                report.check("module", f"ordered accesses for {kernel.release}", orders, kernel)


def run(report, kernels):
    """Runs the suite."""
    run_builds(report, kernels)
    for kernel in kernels:
        report.check("module", f"clippy finds nothing for {kernel.release}", clippy, kernel)
        report.check("module", f"rustdoc finds nothing for {kernel.release}", rustdoc, kernel)
    first = next(kernel for kernel in kernels if kernel.bootable)
    report.check("module", "checkpatch finds nothing", checkpatch, first)
    report.check("module", "modules_install puts it under updates/", install, first)
    report.check(
        "module",
        "a kernel without CONFIG_RUST is refused",
        refused,
        first,
        lambda config: config.replace("CONFIG_RUST=y", "# CONFIG_RUST is not set"),
        "CONFIG_RUST",
    )
    report.check(
        "module",
        "a kernel of another rustc is refused",
        refused,
        first,
        lambda config: re.sub(r'(RUSTC_VERSION_TEXT="rustc )', r"\g<1>9.", config),
        r"rustc 9\..*rustc 1\.",
    )
    report.check("module", "a kernel tree without Rust's metadata is refused", refused, first,
                 lambda config: config, "metadata")
