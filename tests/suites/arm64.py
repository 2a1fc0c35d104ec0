# SPDX-License-Identifier: GPL-2.0
"""What make test has of arm64: the module for pages of both sizes, and a boot. A run is for one
architecture: this is one of its own, whose checks go into the report that there is."""

import json
import os
import subprocess

from suites import module, scenarios
from tools.arch import TARGET
from tools.steps import REPORT, TOP, step

SUITE = "arm64"


def run_short(report, have):
    """The run of its own."""
    module.run_builds(report, have.kernels)
    scenarios.run(report, have.kernels, have.xen, scenarios.selected("short"))


def run(report):
    """Runs that, and takes what it reports."""
    if TARGET.name != "amd64":
        return
    path = f"{REPORT}/{SUITE}.json"
    if os.path.exists(path):
        os.unlink(path)
    # What was asked for is about kernels of the other architecture, and what is made anew was
    # forgotten by this run.
    environment = {**os.environ, "XT_ARCH": SUITE, "XT_SHORT": "1", "XT_VERSIONS": "",
                   "KERNEL": "", "COLD": ""}
    with step("what there is of arm64, in short"):
        code = subprocess.call(["python3", f"{TOP}/tests/run.py", "short"], env=environment)
    checks = []
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            checks = json.load(file)["checks"]
    report.take(checks)
    wrong = any(check["status"] == "fail" for check in checks)
    if code and not wrong or not checks:
        report.add(SUITE, "runs to its end", "fail", 0, f"code {code}, {len(checks)} checks")
