# SPDX-License-Identifier: GPL-2.0
"""What `make` runs inside the root for tests: one command, by its name."""

import os
import sys

TESTS = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.dirname(TESTS), TESTS]

import demo  # noqa: E402
from suites import bench, host, intree, module, package, proof, scenarios, series  # noqa: E402
from testbed.report import Report  # noqa: E402
from testbed.testbed import Testbed  # noqa: E402
from tools import cargo_cache  # noqa: E402
from tools.run import build_all, main  # noqa: E402


def finish(report):
    """Writes the report; the totals are the last line."""
    report.write()
    print(report.totals())
    return 1 if report.count("fail") or not report.count("pass") else 0


def command_test(kernels, xen):
    """make test: every suite; scenarios named by SCENARIOS= alone, where given."""
    report = Report("tests")
    if not os.environ.get("SCENARIOS"):
        host.run(report, kernels)
        module.run(report, kernels)
        package.run(report)
        series.run(report, kernels[0].source)
        if not report.count("fail"):
            cargo_cache.keep()
    scenarios.run(report, kernels, xen, scenarios.selected(os.environ.get("SCENARIOS") or "test"))
    return finish(report)


def command_deep(kernels, xen):
    """make test-deep: what takes long; scenarios named by SCENARIOS= alone, where given."""
    report = Report("deep")
    if not os.environ.get("SCENARIOS"):
        host.run_deep(report)
        proof.run(report)
        intree.run(report, scenarios.booted(kernels)[0])
        intree.run_corners(report, kernels[0])
        for kernel in reversed(kernels):
            series.run(report, kernel.source)
            if kernel != kernels[0]:
                series.run_part(report, kernel)
        series.run_build(report, kernels[0])
    scenarios.run(report, kernels, xen, scenarios.selected(os.environ.get("SCENARIOS") or "deep"))
    return finish(report)


def command_intree(kernels, xen):
    """make intree: the driver in a kernel tree, and that kernel in guests."""
    report = Report("intree")
    intree.run(report, scenarios.booted(kernels)[0])
    scenarios.run(report, kernels, xen, scenarios.selected("intree"))
    return finish(report)


def command_series(kernels, _):
    """make series: patches for a kernel tree, that of KERNEL= or of the first stock kernel, in build/series."""
    report = Report("series")
    series.run(report, os.environ.get("KERNEL") or kernels[0].source)
    return finish(report)


def command_compare(kernels, xen):
    """make compare: the guest's checks with our driver and with the C driver, whose failures stop nothing."""
    report = Report("compare")
    for driver in ("rust", "c"):
        scenarios.run(report, kernels, xen, scenarios.selected(os.environ.get("SCENARIOS") or "compare"), driver)
    report.columns = ("rust", "c")
    finish(report)
    return 1 if any(check["status"] == "fail" for check in report.checks if check["suite"].startswith("rust/")) else 0


def command_demo(kernels, xen):
    """make demo: a vTPM, shown to a person."""
    build_all(kernels)
    return demo.run(Testbed(Report("demo"), scenarios.booted(kernels)[0], xen, "demo"), os.environ.get("SHELL_IN"))


def command_bench(kernels, xen):
    """make bench: what commands cost."""
    return bench.run(kernels, xen, Report("bench"))


COMMANDS = {"test": command_test, "test-deep": command_deep, "compare": command_compare, "intree": command_intree,
            "series": command_series, "demo": command_demo, "bench": command_bench}


if __name__ == "__main__":
    sys.exit(main(COMMANDS))
