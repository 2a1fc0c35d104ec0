# SPDX-License-Identifier: GPL-2.0
"""The report: a line for each check while it runs, then JSON and Markdown."""

import json
import os
import threading
import time

from tools import steps

STATUSES = ("pass", "fail", "skip")


class Failure(Exception):
    """A check failed; the message is its detail."""


class Skip(Exception):
    """A check cannot be made here; the message says why."""


class Report:
    """The checks of one run."""

    def __init__(self, name):
        self.name = name
        self.checks = []
        # Where the first part of a suite's name is a thing to compare: those things.
        self.columns = ()
        self._lock = threading.Lock()

    def add(self, suite, name, status, seconds, detail=""):
        """Takes down how a check ended."""
        assert status in STATUSES
        lines = [f"{status.upper():4} {suite}: {name} ({seconds:.1f} s)"]
        if status != "pass":
            lines += [f"       {line}" for line in detail.strip().splitlines()[-25:]]
        with self._lock:
            self.checks.append({"suite": suite, "name": name, "status": status,
                                "seconds": round(seconds, 1), "detail": detail.strip()})
            print("\n".join(lines), flush=True)

    def check(self, suite, name, function, *arguments):
        """Runs a check that is a Python function; what it returns is the detail. True if it did not fail."""
        start = time.monotonic()
        status, detail = "pass", ""
        try:
            detail = function(*arguments) or ""
        except Skip as why:
            status, detail = "skip", str(why)
        except (Failure, steps.StepError) as why:
            status, detail = "fail", str(why)
        self.add(suite, name, status, time.monotonic() - start, detail)
        return status != "fail"

    def count(self, status):
        """How many checks ended so."""
        return sum(check["status"] == status for check in self.checks)

    def write(self):
        """Writes both files."""
        os.makedirs(steps.REPORT, exist_ok=True)
        with open(f"{steps.REPORT}/{self.name}.json", "w", encoding="utf-8") as file:
            json.dump(self.checks, file, indent=1)
            file.write("\n")
        with open(f"{steps.REPORT}/{self.name}.md", "w", encoding="utf-8") as file:
            file.write(self._markdown())

    def _markdown(self):
        lines = [f"# Report: {self.name}", "", self.totals(), ""]
        try:
            with open(f"{steps.REPORT}/versions.lock", encoding="ascii") as file:
                lines += ["```", file.read().strip(), "```", ""]
        except FileNotFoundError:
            pass
        if self.columns:
            lines += self._comparison()
        for suite in dict.fromkeys(check["suite"] for check in self.checks):
            lines += [f"## {suite}", "", "| check | status | seconds | detail |", "| --- | --- | --- | --- |"]
            for check in self.checks:
                if check["suite"] == suite:
                    detail = check["detail"].replace("|", "\\|").splitlines()[-1:] or [""]
                    lines.append(f"| {check['name']} | {check['status']} | {check['seconds']} | {detail[0][:160]} |")
            lines.append("")
        failed = [check for check in self.checks if check["status"] == "fail"]
        for check in failed:
            lines += [f"### Failed: {check['suite']}: {check['name']}", "", "```", check["detail"], "```", ""]
        return "\n".join(lines)

    def _comparison(self):
        cells = {}
        for check in self.checks:
            column, _, suite = check["suite"].partition("/")
            cells.setdefault((suite, check["name"]), {})[column] = check["status"]
        lines = ["## Side by side", "", "| check | " + " | ".join(self.columns) + " |", "| --- " * (len(self.columns) + 1) + "|"]
        for (suite, name), found in cells.items():
            lines.append(f"| {suite}: {name} | " + " | ".join(found.get(name, "-") for name in self.columns) + " |")
        return lines + [""]

    def totals(self):
        """The closing line."""
        return f"{self.count('pass')} passed, {self.count('fail')} failed, {self.count('skip')} skipped"
