# SPDX-License-Identifier: GPL-2.0
"""Runs scenarios on the testbed: each is a file in tests/scenarios with SETS and a function `run(bed)`. Some run at a
time, but for those that say ALONE."""

import functools
import importlib
import os
import time
from concurrent.futures import ThreadPoolExecutor

from testbed import programs
from testbed.machine import BedError
from testbed.report import Failure
from testbed.testbed import Testbed
from tools import build
from tools.kernels import debug_kernel, intree
from tools.series import generate
from tools.steps import TOP, StepError, step

SCENARIOS = f"{TOP}/tests/scenarios"
# A scenario's name with one of these behind it, as in reconnect-debug, is that scenario with this kernel in its guests.
DEBUG = {kind.series: kind for kind in (debug_kernel.DebugKernel, debug_kernel.RaceKernel)}
# QEMU has one processor's work to do in each, but half of the time a scenario waits for a limit or for an answer.
AT_ONCE = min(os.cpu_count() or 1, 2) + 1


def selected(word):
    """The scenarios of a set (test, deep; debug and race, which are with these kernels and part of deep), or those
    named in a comma-separated list."""
    words = word.split(",")
    names = sorted(name[:-3] for name in os.listdir(SCENARIOS) if name.endswith(".py") and name[0] != "_")
    found = {name: importlib.import_module(f"scenarios.{name}") for name in names}
    chosen = {name: module for name, module in found.items() if word in set(module.SETS) - set(DEBUG) or name in words}
    for kind in DEBUG:
        chosen |= {f"{name}-{kind}": module for name, module in found.items()
                   if word in (kind, "deep") and kind in module.SETS or f"{name}-{kind}" in words}
    if not chosen:
        raise StepError(f"no scenario '{word}': there are {', '.join(names)}, each also as NAME-{' and NAME-'.join(DEBUG)}")
    return chosen


def booted(kernels):
    """The kernels that can be booted; the first, the oldest, is that of most scenarios."""
    return [kernel for kernel in kernels if kernel.bootable]


def prepare_debug(kind, kernel):
    """A debug kernel, and what is built for it."""
    debug = debug_kernel.build_kernel(kernel, kind)
    with step(f"building the module for the {debug.series} kernel"):
        build.build_module(debug)
        programs.build_inject(debug)
    return debug


# What a kernel of our own is called, and what builds it. A scenario names its guests' kernel by KERNEL.
OWN = {
    **{name: (f"{name} kernel and its modules", functools.partial(prepare_debug, kind)) for name, kind in DEBUG.items()},
    "intree": ("kernel with the driver in it", intree.build_kernel),
    "series": ("kernel with the series", generate.build_kernel),
}


def own_kernel(name, module):
    """Which of them a scenario's guests have; None if theirs is a stock kernel."""
    kind = name.rpartition("-")[2]
    return kind if kind in DEBUG else getattr(module, "KERNEL", None)


def prepared(report, what, function, kernel):
    """A kernel of our own; None where it cannot be built."""
    try:
        return function(kernel)
    except StepError as why:
        report.add("bed", what, "fail", 0, str(why))
        return None


def run(report, kernels, xen, scenarios, driver="rust"):
    """Builds what the bed needs and runs the scenarios."""
    first, *others = booted(kernels)
    try:
        with step("building the module and the backend for the bed"):
            for kernel in (first, *others):
                build.build_module(kernel)
            build.build_backend()
    except StepError as why:
        report.add("bed", "module and backend for the bed", "fail", 0, str(why))
        return
    wanted = {own_kernel(*scenario) for scenario in scenarios.items()} - {None}
    jobs, own = [], {kind: prepared(report, *OWN[kind], first) for kind in sorted(wanted)}
    for name, module in scenarios.items():
        # What a scenario needs beside that, while no other one runs.
        if hasattr(module, "prepare") and not report.check(f"bed/{name}", "is prepared", module.prepare):
            continue
        if kind := own_kernel(name, module):
            if own[kind]:
                jobs.append((module, Testbed(report, first, xen, name, driver, own[kind])))
            continue
        if not getattr(module, "OTHER_KERNELS", False):
            jobs.append((module, Testbed(report, first, xen, name, driver)))
            continue
        for kernel in others:
            jobs.append((module, Testbed(report, kernel, xen, f"{name}-{kernel.series}", driver)))
        if not others:
            report.add(f"bed/{name}", "boots", "skip", 0, f"the archive has no kernel to boot beside {first.release}")
    _run_together([job for job in jobs if not getattr(job[0], "ALONE", False)])
    for module, bed in jobs:
        if getattr(module, "ALONE", False):
            _run_one(module, bed)


def _run_together(jobs):
    """Runs scenarios, some at a time; an interruption ends those that run, and no other begins."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        runs = [pool.submit(_run_one, *job) for job in jobs]
        try:
            for running in runs:
                running.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for _, bed in jobs:
                bed.stop()
            raise


def _run_one(module, bed):
    with step(f"{bed.suite} on {bed.guest_kernel.release}: {module.__doc__.strip().splitlines()[0]}"):
        start = time.monotonic()
        try:
            module.run(bed)
        except (BedError, StepError, Failure) as why:
            bed.report.add(bed.suite, "runs to its end", "fail", time.monotonic() - start, str(why))
        finally:
            bed.stop()
