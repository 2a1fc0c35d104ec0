# SPDX-License-Identifier: GPL-2.0
"""Checks of the patch series: it is written, checkpatch finds nothing, and git am takes it."""

import glob
import os
import shutil
import subprocess

from harness import intree, series
from harness.report import Failure
from harness.steps import BUILD, output, step
from harness.suite_intree import without_warnings

# Who sends the series signs it off, nobody else can. That a file is new, or that MAINTAINERS may have to be changed, is
# no mistake.
LEFT_OUT = "MISSING_SIGN_OFF,FILE_PATH_CHANGES"


def written(source):
    """A cover letter and a patch for each part."""
    names = series.make(source)
    if len(names) != len(series.PATCHES) + 1:
        raise Failure(f"{len(names)} files: {', '.join(names)}")
    return f"{len(names) - 1} patches"


def checkpatch(source):
    """Each patch keeps the kernel's style."""
    done = subprocess.run([f"{source}/scripts/checkpatch.pl", "--no-tree", "--strict", "--terse",
                           "--ignore", LEFT_OUT, *sorted(glob.glob(f"{series.OUT}/0*.patch"))],
                          cwd=BUILD, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failure(done.stdout + done.stderr)


def applies(source):
    """git am takes the patches one after the other on the tree's own files, and what comes out is what was meant."""
    work = f"{BUILD}/series-am"
    shutil.rmtree(work, ignore_errors=True)
    for name in series.CHANGED:
        os.makedirs(os.path.dirname(f"{work}/{name}"), exist_ok=True)
        shutil.copyfile(f"{source}/{name}", f"{work}/{name}")
    git = ["git", *series.AUTHOR, "-C", work]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "base"],
                    ["am", "-q", *sorted(glob.glob(f"{series.OUT}/000[1-9]-*.patch"))]):
        done = subprocess.run(git + command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Failure(f"git {command[0]}: {done.stdout}{done.stderr}")
    done = subprocess.run(["diff", "-r", "-x", ".git", "-x", ".rustfmt.toml", work, series.TREE],
                          capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failure(done.stdout[-3000:])


def builds(stock):
    """The kernel with all of it, the driver built in and as a module."""
    log = "series-build.log"
    with step("building a kernel with the series"), intree.tree(stock, series.files) as kernel:
        intree.make(kernel, log)
        without_warnings(log)
        if "xen_tpmfront" not in output("nm", f"{kernel.build}/vmlinux"):
            raise Failure("the driver is not in it")
        intree.make_module(kernel, log)
        without_warnings(log)


def run_build(report, stock):
    """What takes long; for the series that `run()` has written."""
    report.check("series", f"{stock.series} builds with it, without a warning", builds, stock)


def run(report, source):
    """Runs the suite."""
    if report.check("series", "is written", written, source):
        report.check("series", "checkpatch --strict finds nothing", checkpatch, source)
        report.check("series", "git am takes it", applies, source)
