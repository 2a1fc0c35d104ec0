# SPDX-License-Identifier: GPL-2.0
"""What `make` runs inside the root: one command, by its name."""

import fcntl
import os
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from harness import (  # noqa: E402
    bench, build, crates, suite_bed, suite_host, suite_intree, suite_module, suite_package, suite_proof,
    suite_series)
from harness.prepare import prepare  # noqa: E402
from harness.report import Report  # noqa: E402
from harness.steps import BUILD, StepError, step  # noqa: E402


def build_all(kernels):
    """Builds the module for every kernel, and the backend."""
    for kernel in kernels:
        with step(f"building the module for {kernel.release}"):
            build.build_module(kernel)
    with step("building the backend"):
        build.build_backend()


def finish(report):
    """Writes the report; the totals are the last line."""
    report.write()
    print(report.totals())
    return 1 if report.count("fail") or not report.count("pass") else 0


def command_build(kernels, _):
    """make: all that can be built."""
    build_all(kernels)
    print(f"built: {', '.join(build.module_path(kernel) for kernel in kernels)}, {build.backend_path()}")
    return 0


def command_test(kernels, xen):
    """make test: every suite; scenarios named by SCENARIOS= alone, where given."""
    report = Report("tests")
    if not os.environ.get("SCENARIOS"):
        suite_host.run(report, kernels)
        suite_module.run(report, kernels)
        suite_package.run(report)
        suite_series.run(report, kernels[0].source)
        if not report.count("fail"):
            crates.keep()
    suite_bed.run(report, kernels, xen, suite_bed.selected(os.environ.get("SCENARIOS") or "test"))
    return finish(report)


def command_deep(kernels, xen):
    """make test-deep: what takes long; scenarios named by SCENARIOS= alone, where given."""
    report = Report("deep")
    if not os.environ.get("SCENARIOS"):
        suite_host.run_deep(report)
        suite_proof.run(report)
        suite_intree.run(report, suite_bed.booted(kernels)[0])
        suite_intree.run_corners(report, kernels[0])
        for kernel in reversed(kernels):
            suite_series.run(report, kernel.source)
            if kernel != kernels[0]:
                suite_series.run_part(report, kernel)
        suite_series.run_build(report, kernels[0])
    suite_bed.run(report, kernels, xen, suite_bed.selected(os.environ.get("SCENARIOS") or "deep"))
    return finish(report)


def command_intree(kernels, xen):
    """make intree: the driver in a kernel tree, and that kernel in guests."""
    report = Report("intree")
    suite_intree.run(report, suite_bed.booted(kernels)[0])
    suite_bed.run(report, kernels, xen, suite_bed.selected("intree"))
    return finish(report)


def command_series(kernels, _):
    """make series: patches for a kernel tree, that of KERNEL= or of the first stock kernel, in build/series."""
    report = Report("series")
    suite_series.run(report, os.environ.get("KERNEL") or kernels[0].source)
    return finish(report)


def command_compare(kernels, xen):
    """make compare: the guest's checks with our driver and with the C driver, whose failures stop nothing."""
    report = Report("compare")
    for driver in ("rust", "c"):
        suite_bed.run(report, kernels, xen, suite_bed.selected(os.environ.get("SCENARIOS") or "compare"), driver)
    report.columns = ("rust", "c")
    finish(report)
    return 1 if any(check["status"] == "fail" for check in report.checks if check["suite"].startswith("rust/")) else 0


def command_demo(kernels, xen):
    """make demo: a vTPM, shown to a person."""
    build_all(kernels)
    from bed import demo
    return demo.run(suite_bed.Bed(Report("demo"), suite_bed.booted(kernels)[0], xen, "demo"), os.environ.get("SHELL_IN"))


def command_deb(*_):
    """make deb: the backend's package."""
    with step("building the package of the backend"):
        path = suite_package.build_deb()
    print(f"built: {path}")
    return 0


def command_bench(kernels, xen):
    """make bench: what commands cost."""
    return bench.run(kernels, xen, Report("bench"))


def command_kdir(kernels, _):
    """make kdir: the prepared trees."""
    for kernel in kernels:
        print(f"{kernel.release}: KDIR={kernel.build}")
    return 0


def command_shell(*_):
    """make shell: a look around."""
    return subprocess.call(["bash", "-i"])


COMMANDS = {"build": command_build, "test": command_test, "test-deep": command_deep, "compare": command_compare,
            "intree": command_intree, "series": command_series, "demo": command_demo, "deb": command_deb, "kdir": command_kdir,
            "shell": command_shell, "bench": command_bench}


def lock_build():
    """Two runs in one clone would take each other's files away."""
    os.makedirs(BUILD, exist_ok=True)
    lock = open(f"{BUILD}/lock", "ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("    another run works in this clone: waiting for it")
        fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def main():
    """Runs the command; what stops it is one line."""
    sys.stdout.reconfigure(line_buffering=True)
    try:
        if sys.argv[1] in ("kdir", "shell"):
            return COMMANDS[sys.argv[1]](*prepare())
        with lock_build():
            return COMMANDS[sys.argv[1]](*prepare())
    except StepError as why:
        print(f"error: {why}", file=sys.stderr)
    except OSError as why:
        print(f"error: {why}", file=sys.stderr)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
