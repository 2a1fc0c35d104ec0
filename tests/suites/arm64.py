# SPDX-License-Identifier: GPL-2.0
"""What make test has of arm64: the module for pages of both sizes, and a boot. A run is for one
architecture: this is one of its own, whose checks go into the report that there is."""

import json
import os
import subprocess

from suites import module, scenarios
from tools.steps import REPORT, TOP, step

SUITE = "arm64"


def run_short(report, have):
    """The run of its own."""
    module.run_builds(report, have.kernels)
    scenarios.run(report, have.kernels, have.xen, scenarios.selected("short"))


def _call(program, command):
    """Runs a command of the project's for that; returns its code."""
    # What was asked for is about kernels of the other architecture, and what is made anew was
    # forgotten by this run.
    environment = {**os.environ, "XT_ARCH": SUITE, "XT_SHORT": "1", "XT_VERSIONS": "",
                   "KERNEL": "", "COLD": ""}
    return subprocess.call(["python3", f"{TOP}/{program}", command], env=environment)


def prepare():
    """Downloads and prepares what that takes. It comes before all that takes long, so that an
    archive that is away by then fails nothing. What fails here fails once more in run()."""
    with step("preparing what there is of arm64, in short"):
        _call("tools/run.py", "kdir")


def run(report):
    """Runs that, and takes what it reports."""
    path = f"{REPORT}/{SUITE}.json"
    if os.path.exists(path):
        os.unlink(path)
    with step("what there is of arm64, in short"):
        code = _call("tests/run.py", "short")
    checks = []
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            checks = json.load(file)["checks"]
    report.take(checks)
    wrong = any(check["status"] == "fail" for check in checks)
    if code and not wrong or not checks:
        report.add(SUITE, "runs to its end", "fail", 0, f"code {code}, {len(checks)} checks")
