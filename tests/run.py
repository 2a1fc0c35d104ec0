# SPDX-License-Identifier: GPL-2.0
"""What `make` runs inside the root for tests: one command, by its name."""

import os
import sys

TESTS = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.dirname(TESTS), TESTS]

import demo  # noqa: E402
from suites import arm64, bench, deep, documents, ending, guest_package, host, intree  # noqa: E402
from suites import lint, module, package, scenarios, series  # noqa: E402
from testbed.report import Report  # noqa: E402
from testbed.testbed import Testbed  # noqa: E402
from tools import cargo_cache  # noqa: E402
from tools.arch import SUFFIX, TARGET  # noqa: E402
from tools.run import build_all, main  # noqa: E402


def begin(name, have):
    """A report, with the kernels of the archive that could not be prepared as its first
    failures."""
    asked = ("SCENARIOS", "KERNEL", "PART", "SEED", "SLOWNESS", "BEHAVIOURS", "VERSIONS")
    report = Report(
        name, " ".join(f"{word}={os.environ[word]}" for word in asked if os.environ.get(word))
    )
    for kernel, why in have.failed.items():
        report.add("kernels", f"{kernel} is prepared", "fail", 0, why)
    return report


def finish(report):
    """Ends the report; the totals are the last line."""
    report.end()
    print(report.totals())
    return 1 if report.count("fail") or not report.count("pass") else 0


def named():
    """The scenarios that SCENARIOS= names, if any."""
    return os.environ.get("SCENARIOS")


def command_test(have):
    """make test: every suite; scenarios named by SCENARIOS= alone, where given."""
    report = begin(f"tests{SUFFIX}", have)
    short = not named() and TARGET.name == "amd64"
    if short:
        arm64.prepare()
    if not named() and TARGET.foreign:
        module.run(report, have.kernels)
        package.run_built(report)
        guest_package.run(report, have.kernels)
    elif not named():
        lint.run(report)
        ending.run(report)
        host.run(report, have.kernels)
        documents.run(report)
        module.run(report, have.kernels)
        package.run(report)
        guest_package.run(report, have.kernels)
        series.run(report, have.kernels[0].source)
    scenarios.run(report, have.kernels, have.xen, scenarios.selected(named() or "test"))
    if short:
        arm64.run(report)
    if not named() and not TARGET.foreign:
        documents.run_last(report)
        if not report.count("fail"):
            cargo_cache.keep()
    return finish(report)


def command_short(have):
    """What make test has of another architecture."""
    report = begin(arm64.SUITE, have)
    arm64.run_short(report, have)
    return finish(report)


def command_deep(have):
    """make test-deep: what takes long; scenarios named by SCENARIOS= alone, where given."""
    part = os.environ.get("PART") or ""
    name = f"deep{SUFFIX}"
    report = begin(f"{name}-part-{part.replace('/', '-of-')}" if part else name, have)
    deep.run(report, have.kernels, have.xen, named(), part)
    return finish(report)


def command_intree(have):
    """make intree: the driver in a kernel tree, and that kernel in guests."""
    report = begin("intree", have)
    intree.run(report, scenarios.booted(have.kernels)[0])
    scenarios.run(report, have.kernels, have.xen, scenarios.selected("intree"))
    return finish(report)


def command_series(have):
    """make series: patches for a kernel tree, that of KERNEL= or of the newest stock kernel, in
    build/series."""
    report = begin("series", have)
    series.run(report, os.environ.get("XT_TREE") or have.kernels[0].source)
    return finish(report)


def command_compare(have):
    """make compare: the guest's checks with our driver and with the C driver, whose failures stop
    nothing."""
    report = begin("compare", have)
    for driver in ("rust", "c"):
        chosen = [one for one in scenarios.selected(named() or "compare")
                  if one.arguments.get("driver", driver) == driver]
        scenarios.run(report, have.kernels, have.xen, chosen, driver)
    report.columns = ("rust", "c")
    finish(report)
    return (
        1
        if any(
            check["status"] == "fail"
            for check in report.checks
            if check["suite"].startswith("rust/")
        )
        else 0
    )


def command_demo(have):
    """make demo: a vTPM, shown to a person."""
    kernel = scenarios.booted(build_all(have.kernels))[0]
    return demo.run(Testbed(Report("demo"), kernel, have.xen, "demo"), os.environ.get("SHELL_IN"))


def command_bench(have):
    """make bench: what commands cost."""
    return bench.run(have.kernels, have.xen, Report("bench"))


COMMANDS = {
    "test": command_test,
    "test-deep": command_deep,
    "compare": command_compare,
    "intree": command_intree,
    "series": command_series,
    "demo": command_demo,
    "bench": command_bench,
    "short": command_short,
}
# It is a part of a run that has the lock.
UNLOCKED = ("short",)


if __name__ == "__main__":
    sys.exit(main(COMMANDS, UNLOCKED))
