# SPDX-License-Identifier: GPL-2.0
"""Runs scenarios on the testbed: each is a file in tests/scenarios with SETS and a function
`run(bed)`, and VARIANTS where that function takes other arguments under another name. Some run at a
time, but for those that say ALONE."""

import dataclasses
import functools
import importlib
import os
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

from testbed import programs
from testbed.lacking import lacking
from testbed.machine import BedError
from testbed.report import Failure
from testbed.testbed import Testbed
from tools import build
from tools.arch import SUFFIX, TARGET
from tools.kernels import debug_kernel, intree
from tools.series import generate
from tools.steps import BUILD, JOBS, TOP, StepError, memory_mb, need_space, step

SCENARIOS = f"{TOP}/tests/scenarios"
# A scenario's name with one of these behind it, as in backend_restart-debug, is that scenario with
# this kernel in its guests.
DEBUG = {kind.series: kind for kind in (debug_kernel.DebugKernel, debug_kernel.RaceKernel)}
# What one machine takes of the host's memory (MiB): QEMU's own 4096, and what holds its image.
MACHINE = 4600


@dataclasses.dataclass
class Scenario:
    """One that can be run by its name."""

    name: str
    module: object
    sets: tuple
    arguments: dict
    # A kernel of our own in its guests, by its name in OWN.
    kernel: str | None = None

    @property
    def alone(self):
        """Whether no other scenario may run meanwhile."""
        return getattr(self.module, "ALONE", False)

    @property
    def needs(self):
        """What not every architecture has."""
        own = [f"{self.kernel} kernel"] if self.kernel else []
        return (*getattr(self.module, "NEEDS", ()), *own)

    @property
    def says(self):
        """What it is about, in a line."""
        return self.module.__doc__.strip().splitlines()[0]


def known():
    """All scenarios by their names: NAME, NAME_VARIANT, and each as NAME-debug and NAME-race."""
    found = {}
    for file in sorted(os.listdir(SCENARIOS)):
        name, ending = os.path.splitext(file)
        if ending != ".py" or name.startswith("_"):
            continue
        module = importlib.import_module(f"scenarios.{name}")
        own = getattr(module, "KERNEL", None)
        found[name] = Scenario(name, module, module.SETS, {}, own)
        for variant, arguments in getattr(module, "VARIANTS", {}).items():
            arguments = dict(arguments)
            found[f"{name}_{variant}"] = Scenario(
                f"{name}_{variant}", module, arguments.pop("sets"), arguments, own
            )
    for kind in DEBUG:
        found |= {
            f"{name}-{kind}": dataclasses.replace(
                one,
                name=f"{name}-{kind}",
                kernel=kind,
                sets=(kind, "deep") if kind in one.sets else (),
            )
            for name, one in list(found.items())
            if "-" not in name
        }
        found |= {name: dataclasses.replace(one, sets=tuple(set(one.sets) - {kind}))
                  for name, one in found.items() if "-" not in name}
    return found


def selected(word):
    """The scenarios of a set (test, deep; debug and race, which are with these kernels and part of
    deep), or those named in a comma-separated list."""
    found = known()
    chosen = [one for one in found.values() if word in one.sets]
    if chosen:
        return chosen
    unknown = [name for name in word.split(",") if name not in found]
    if unknown:
        plain = [name for name in found if "-" not in name]
        raise StepError(
            f"no scenario '{unknown[0]}': there are {', '.join(plain)}, each also as NAME-"
            f"{' and NAME-'.join(DEBUG)}"
        )
    return [found[name] for name in word.split(",")]


def booted(kernels):
    """The kernels that can be booted; the first, the newest, is that of most scenarios."""
    return [kernel for kernel in kernels if kernel.bootable]


def at_once(most):
    """How many machines run at a time: so many, if there is memory for them. Says what that
    takes."""
    count = max(1, min(most, memory_mb() // MACHINE))
    print(
        f"    {count} machines at a time, which take up to {count * MACHINE / 1024:.0f} GiB of"
        f" memory ({memory_mb() / 1024:.0f} GiB are available; JOBS={JOBS})",
        flush=True,
    )
    return count


def prepare_debug(kind, kernel):
    """A debug kernel, and what is built for it."""
    debug = debug_kernel.build_kernel(kernel, kind)
    with step(f"building the module for the {debug.series} kernel"):
        build.build_module(debug)
        programs.build_inject(debug)
    return debug


# What a kernel of our own is called, and what builds it. A scenario names its guests' kernel by
# KERNEL.
OWN = {
    **{
        name: (f"{name} kernel and its modules", functools.partial(prepare_debug, kind))
        for name, kind in DEBUG.items()
    },
    "intree": ("kernel with the driver in it", intree.build_kernel),
    "hmac": ("kernel with CONFIG_TCG_TPM2_HMAC", intree.build_hmac_kernel),
    "series": ("kernel with the series", generate.build_kernel),
}


def prepared(report, what, function, *arguments):
    """What a step makes; None where it fails, which is a check's failure."""
    made = []
    report.check("testbed", what, lambda: made.append(function(*arguments)))
    return made[0] if made else None


def with_module(kernel):
    """A kernel that the module was built for."""
    build.build_module(kernel)
    return kernel


def run(report, kernels, xen, scenarios, driver="rust"):
    """Builds what the testbed needs and runs the scenarios. A kernel that nothing can be built for
    fails, and the others go on."""
    need_space(4, BUILD, "scenarios")
    with step("building the module and the backend for the testbed"):
        usable = [kernel for kernel in booted(kernels)
                  if prepared(report, f"module for {kernel.release}", with_module, kernel)]
        ready = report.check("testbed", "backend for the testbed", build.build_backend)
    if not ready or not usable:
        return
    first, *others = usable
    own = {
        kind: prepared(report, *OWN[kind], first)
        for kind in sorted({one.kernel for one in scenarios if not lacking(*one.needs)} - {None})
    }
    jobs = []
    for one in scenarios:
        suite = f"testbed{SUFFIX}/{one.name}"
        if why := lacking(*one.needs):
            report.add(suite, f"is none for {TARGET.name}", "noted", 0, why)
            continue
        # What a scenario needs beside that, while no other one runs.
        if hasattr(one.module, "prepare") and not report.check(
            suite, "is prepared", one.module.prepare
        ):
            continue
        if one.kernel:
            if own[one.kernel]:
                jobs.append((one, Testbed(report, first, xen, one.name, driver, own[one.kernel])))
        elif not getattr(one.module, "OTHER_KERNELS", False):
            jobs.append((one, Testbed(report, first, xen, one.name, driver)))
        else:
            jobs += [
                (one, Testbed(report, kernel, xen, f"{one.name}-{kernel.series}", driver))
                for kernel in others
            ]
            if not others:
                report.add(
                    suite,
                    "boots",
                    "noted",
                    0,
                    f"the archive has no kernel to boot beside {first.release}",
                )
    together = [job for job in jobs if not job[0].alone]
    # QEMU has one processor's work to do in each, but half of the time a scenario waits for a
    # timeout or for a response. A guest that looks for mistakes has work to do all the time, and a
    # driver in the kernel waits for its backend as long on a busy host as on any other.
    _run_together([job for job in together if not job[0].kernel], JOBS + 1)
    _run_together([job for job in together if job[0].kernel], JOBS)
    for job in jobs:
        if job[0].alone:
            _run_one(*job)


def _run_together(jobs, most):
    """Runs scenarios, so many at a time; an interruption ends those that run, and no other
    begins."""
    if not jobs:
        return
    with ThreadPoolExecutor(at_once(most)) as pool:
        runs = [pool.submit(_run_one, *job) for job in jobs]
        try:
            for running in runs:
                running.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for _, bed in jobs:
                bed.stop()
            raise


def _run_one(one, bed):
    with step(f"{bed.suite} on {bed.guest_kernel.release}: {one.says}"):
        start, why = time.monotonic(), None
        try:
            one.module.run(bed, **one.arguments)
        except (BedError, StepError, Failure) as error:
            why = str(error)
        except Exception:  # pylint: disable=broad-except
            why = traceback.format_exc()
        finally:
            bed.stop()
        bed.report.add(
            bed.suite, "runs to its end", "fail" if why else "pass", time.monotonic() - start,
            f"{why}\nWhat it had to check after this was not checked." if why else "")
