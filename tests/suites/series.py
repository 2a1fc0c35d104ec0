# SPDX-License-Identifier: GPL-2.0
"""Checks of the patch series: it is written, checkpatch finds nothing, and git am takes it."""

import glob
import os
import re
import shutil
import subprocess

from tools.kernels import intree
from tools.series import generate
from testbed.report import Failure
from tools.steps import BUILD, JOBS, LOGS, must, output, step
from suites.intree import without_warnings

# Who sends the series signs it off, nobody else can. That a file is new, or that MAINTAINERS may
# have to be changed, is no mistake; and the commits that are fixed are not in the project's
# history.
LEFT_OUT = "MISSING_SIGN_OFF,FILE_PATH_CHANGES,UNKNOWN_COMMIT_ID"

# Who has to see a patch to the TPM core, one to Xen's part of the kernel, and all others.
TPM_LISTS = {"linux-integrity@vger.kernel.org"}
XEN_LISTS = {"xen-devel@lists.xenproject.org"}
LISTS = TPM_LISTS | XEN_LISTS | {"rust-for-linux@vger.kernel.org"}

READ_ABI = """
import logging, sys
sys.path.insert(0, sys.argv[1])
from abi.abi_parser import AbiParser
logging.basicConfig()
parser = AbiParser(sys.argv[2])
parser.parse_abi()
parser.check_issues()
print(*(found[0] for found in parser.doc()))
"""

# Of what rustdoc wants, the tree that is unpacked has neither its picture nor some files that it
# refers to.
LOGO = {f"Documentation/images/{name}": "" for name in ("logo.svg", "COPYING-logo")}
NOT_THERE = re.compile("srctree/ link to (Documentation|samples|tools)/")

# What is to come has no user before the driver is there.
STAND_IN = """\
config TCG_XEN_RUST
	bool "What the driver will want"
	depends on TCG_TPM=y && XEN && RUST && SYSFS
	select RUST_TPM_ABSTRACTIONS
	select RUST_XENBUS_ABSTRACTIONS

"""


def written(source):
    """A cover letter and a patch for each part."""
    names = generate.make(source)
    if len(names) != len(generate.CORE) + len(generate.PATCHES) + 1:
        raise Failure(f"{len(names)} files: {', '.join(names)}")
    return f"{len(names) - 1} patches"


def checkpatch(source):
    """Each patch keeps the kernel's style."""
    done = subprocess.run([f"{source}/scripts/checkpatch.pl", "--no-tree", "--strict", "--terse",
                           "--ignore", LEFT_OUT, *sorted(glob.glob(f"{generate.OUT}/0*.patch"))],
                          cwd=BUILD, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failure(done.stdout + done.stderr)


def applies(source):
    """git am takes the patches one after the other on the tree's own files, and what comes out is
    what was meant."""
    work = f"{BUILD}/series-am"
    shutil.rmtree(work, ignore_errors=True)
    for name in generate.CHANGED:
        os.makedirs(os.path.dirname(f"{work}/{name}"), exist_ok=True)
        shutil.copyfile(f"{source}/{name}", f"{work}/{name}")
    git = ["git", *generate.AUTHOR, "-C", work]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "base"],
                    ["am", "-q", *generate.patches()]):
        done = subprocess.run(git + command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Failure(f"git {command[0]}: {done.stdout}{done.stderr}")
    done = subprocess.run(["diff", "-r", "-x", ".git", "-x", ".rustfmt.toml", work, generate.TREE],
                          capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failure(done.stdout[-3000:])


def lists(number):
    """Who has to see a patch, by its number in the series, from 0 on."""
    if number >= len(generate.CORE):
        return LISTS
    return XEN_LISTS if generate.CORE[number].startswith("xen-") else TPM_LISTS


def posted(source):
    """The tree's own scripts send each patch to the lists that have to see it."""
    for number, patch in enumerate(generate.patches()):
        done = subprocess.run(
            [
                "perl",
                f"{source}/scripts/get_maintainer.pl",
                "--no-tree",
                "--nogit",
                "--nogit-fallback",
                "--no-m",
                "--no-r",
                "--no-rolestats",
                patch,
            ],
            cwd=generate.TREE,
            capture_output=True,
            text=True,
            check=False,
        )
        if missing := lists(number) - set(done.stdout.split()):
            raise Failure(
                f"{os.path.basename(patch)} is not sent to {', '.join(missing)}:"
                f" {done.stdout}{done.stderr}"
            )


def documents(source):
    """The kernel's own reader of Documentation/ABI takes ours, as `make htmldocs` does. There is no
    other document."""
    done = subprocess.run(
        [
            "python3",
            "-c",
            READ_ABI,
            f"{source}/tools/lib/python",
            f"{generate.TREE}/Documentation/ABI",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode or done.stderr:
        raise Failure(done.stdout + done.stderr)
    if "tpmN" not in done.stdout:
        raise Failure(f"it finds no attribute: {done.stdout}")


def until_then(files):
    """The tree's files after a patch before the driver's, with an option that wants what the driver
    will."""
    config = f"{os.path.dirname(generate.DRIVER)}/Kconfig"
    if generate.DRIVER in files[config]:
        return files
    return files | {
        config: files[config].replace("endif # TCG_TPM\n", f"{STAND_IN}endif # TCG_TPM\n")
    }


def builds(stock, commit, log):
    """What Rust has, the TPM core and xenbus after one of the patches; the rest of the kernel is
    compiled when all are there."""
    with intree.tree(stock, lambda _: until_then(generate.files(commit))) as kernel:
        intree.make_part(kernel, log)
    without_warnings(log)


def builds_whole(stock):
    """The kernel with all of it, the driver built in and as a module."""
    kernel = generate.build_kernel(stock)
    without_warnings("series-build.log")
    if "xen_tpmfront" not in output("nm", kernel.vmlinux):
        raise Failure("the driver is not in it")
    log = "series-module.log"
    with step("building the driver as a module of that kernel"), generate.tree(stock) as kernel:
        intree.make_module(kernel, log)
    without_warnings(log)


def in_files(log, names):
    """What clippy finds in these files of a tree, in the text of a log. The kernel has findings of
    its own: 7.3.4 in rust/kernel/cpufreq.rs."""
    found = re.findall(r"^((?:warning|error).*)\n +--> (\S+?):\d+", log, re.MULTILINE)
    return [
        f"{said} in {path}"
        for said, path in found
        if any(f"/{path}".endswith(f"/{name}") for name in names)
    ]


def lints(stock):
    """Clippy, of the kernel crate and of the driver, and rustdoc, of the kernel crate, by the
    kernel's own rules for them."""
    with step("clippy and rustdoc on a kernel with the series"), generate.tree(
        stock, LOGO
    ) as kernel:
        must(
            kernel.kbuild + [f"-j{JOBS}", "CLIPPY=1", "prepare", f"{generate.DRIVER}/"],
            "series-clippy.log",
            "clippy refuses the series",
        )
        must(
            kernel.kbuild + [f"-j{JOBS}", "rustdoc"],
            "series-rustdoc.log",
            "rustdoc does not take the series",
        )
    with open(f"{LOGS}/series-clippy.log", encoding="utf-8", errors="replace") as file:
        if found := in_files(file.read(), generate.files("HEAD")):
            raise Failure("\n".join(found))
    without_warnings("series-rustdoc.log", NOT_THERE)


def run_parts(report, stock):
    """The series for a kernel that is, and the kernel's part that it changes after each patch."""
    run(report, stock.source)
    for number, commit in enumerate(generate.commits(), 1):
        report.check("series", f"{stock.series} builds after patch {number}, without a warning",
                     builds, stock, commit, f"series-build-{number}.log")


def run_whole(report, stock):
    """The same, and the whole kernel with it."""
    run_parts(report, stock)
    report.check(
        "series", f"{stock.series} builds with it built in and as a module", builds_whole, stock
    )
    report.check("series", f"{stock.series}: clippy and rustdoc have nothing to say", lints, stock)


def run(report, source):
    """Runs the suite."""
    if report.check("series", "is written", written, source):
        report.check("series", "checkpatch --strict finds nothing", checkpatch, source)
        report.check("series", "git am takes it", applies, source)
        report.check("series", "get_maintainer.pl sends it to those concerned", posted, source)
        report.check(
            "series", "what htmldocs makes of Documentation/ABI takes it", documents, source
        )
