# SPDX-License-Identifier: GPL-2.0
"""The report: a line for each check while it runs, then JSON, Markdown and JUnit's XML, written
anew after each check. Until the run ends they say "interrupted"."""

import datetime
import json
import os
import platform
import threading
import time
import traceback
from xml.sax.saxutils import quoteattr

from tools import steps

# `noted` is a result to be compared, which is neither good nor bad.
STATUSES = ("pass", "fail", "skip", "noted")
# Checks that may be skipped, with what is missing for them. Any other skip is a failure: it looked
# at nothing.
MAY_SKIP = {"trusted_keys": "the stock kernels have no CONFIG_TRUSTED_KEYS",
            "counters": "the C driver has none",
            "isolation::landlock_is_on_where_the_kernel_has_it": "the host's kernel may have none",
            "counters::tests::processor_time_of_another_process": "nor schedstat"}
if steps.ordinary_user():
    MAY_SKIP |= {
        "cgroup::tests::a_process_moves_and_what_is_left_is_killed": "cgroups are root's",
        "neighbours::of_a_state_directory_that_hangs": "so can be /dev/fuse",
    }
# In all other reports than these, a skip is a failure.
COMPARED = ("compare", "bench", "demo")
# These have results of another kind, and no report.
UNWRITTEN = ("bench", "demo")


class Failure(Exception):
    """A check failed; the message is its detail."""


class Skip(Exception):
    """A check cannot be made here; the message says why."""


class Noted(Exception):
    """What was found is for comparison; the message says it."""


class Report:
    """The checks of one run."""

    def __init__(self, name, selection=""):
        """`selection` is what of it was asked for, in words."""
        self.name = name
        self.checks = []
        # Where the first part of a suite's name is a thing to compare: those things.
        self.columns = ()
        self.ended = False
        self._lock = threading.Lock()
        self._about = {
            "report": name,
            "selection": selection or "all",
            "commit": os.environ.get("XT_COMMIT") or "unknown",
            "host": f"{os.cpu_count()} processors, Linux {platform.release()}",
            "began": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        }
        self.write()

    def add(self, suite, name, status, seconds, detail=""):
        """Takes down how a check ended."""
        assert status in STATUSES
        if (
            status == "skip"
            and self.name not in COMPARED
            and name.rpartition(": ")[2] not in MAY_SKIP
        ):
            status, detail = (
                "fail",
                f"skipped, and nothing may be skipped here but {', '.join(MAY_SKIP)}: {detail}",
            )
        lines = [f"{status.upper():4} {suite}: {name} ({seconds:.1f} s)"]
        if status != "pass":
            lines += [f"       {line}" for line in detail.strip().splitlines()[-25:]]
        with self._lock:
            self.checks.append({"suite": suite, "name": name, "status": status,
                                "seconds": round(seconds, 1), "detail": detail.strip()})
            print("\n".join(lines), flush=True)
            self.write()

    def take(self, checks):
        """Takes over what another run has reported, and has said."""
        with self._lock:
            self.checks += checks
            self.write()

    def check(self, suite, name, function, *arguments):
        """Runs a check that is a Python function; what it returns is the detail. True if it did not
        fail. Whatever a check raises is its own failure, and ends no other."""
        start = time.monotonic()
        status, detail = "pass", ""
        try:
            detail = function(*arguments) or ""
        except Skip as why:
            status, detail = "skip", str(why)
        except Noted as what:
            status, detail = "noted", str(what)
        except (Failure, steps.StepError) as why:
            status, detail = "fail", str(why)
        except Exception:  # pylint: disable=broad-except
            status, detail = "fail", traceback.format_exc()
        self.add(suite, name, status, time.monotonic() - start, detail)
        return status != "fail"

    def count(self, status):
        """How many checks ended so."""
        return sum(check["status"] == status for check in self.checks)

    def end(self):
        """The run has come to its end."""
        self.ended = True
        self.write()

    def write(self):
        """Writes the files; each is whole at any time."""
        if self.name in UNWRITTEN:
            return
        about = {
            **self._about,
            "state": "complete" if self.ended else "interrupted",
            "totals": self.totals(),
        }
        for ending, text in (
            ("json", json.dumps({**about, "checks": self.checks}, indent=1) + "\n"),
            ("md", self._markdown(about)),
            ("xml", self._junit()),
        ):
            path = f"{steps.REPORT}/{self.name}.{ending}"
            os.makedirs(steps.REPORT, exist_ok=True)
            with open(f"{path}.new", "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(f"{path}.new", path)

    def _markdown(self, about):
        state = "" if self.ended else " **interrupted: the run did not come to its end**"
        lines = [f"# Report: {self.name}", "", f"{self.totals()}{state}", ""]
        lines += [
            f"- {name}: {about[name]}" for name in ("commit", "began", "host", "selection")
        ] + [""]
        try:
            with open(f"{steps.REPORT}/versions.lock", encoding="ascii") as file:
                lines += ["```", file.read().strip(), "```", ""]
        except FileNotFoundError:
            pass
        if self.columns:
            lines += self._comparison()
        for suite in dict.fromkeys(check["suite"] for check in self.checks):
            lines += [
                f"## {suite}",
                "",
                "| check | status | seconds | detail |",
                "| --- | --- | --- | --- |",
            ]
            for check in self.checks:
                if check["suite"] == suite:
                    detail = check["detail"].replace("|", "\\|").splitlines()[-1:] or [""]
                    lines.append(
                        f"| {check['name']} | {check['status']} | {check['seconds']} |"
                        f" {detail[0][:160]} |"
                    )
            lines.append("")
        failed = [check for check in self.checks if check["status"] == "fail"]
        for check in failed:
            lines += [
                f"### Failed: {check['suite']}: {check['name']}",
                "",
                "```",
                check["detail"],
                "```",
                "",
            ]
        return "\n".join(lines)

    def _junit(self):
        lines = [f'<testsuite name={quoteattr(self.name)} tests="{len(self.checks)}" '
                 f'failures="{self.count("fail")}" skipped="{self.count("skip")}">']
        for check in self.checks:
            detail = quoteattr(
                "".join(
                    sign for sign in check["detail"][-2000:] if sign.isprintable() or sign in "\n\t"
                )
            )
            inner = {
                "fail": f"<failure message={detail}/>",
                "skip": f"<skipped message={detail}/>",
            }.get(check["status"], "")
            lines.append(
                f'<testcase classname={quoteattr(check["suite"])} name={quoteattr(check["name"])} '
                f'time="{check["seconds"]}">{inner}</testcase>'
            )
        return "\n".join(lines + ["</testsuite>"]) + "\n"

    def _comparison(self):
        cells = {}
        for check in self.checks:
            column, _, suite = check["suite"].partition("/")
            cells.setdefault((suite, check["name"]), {})[column] = check["status"]
        lines = ["## Side by side", "", "| check | " + " | ".join(self.columns) + " |",
                 "| --- " * (len(self.columns) + 1) + "|"]
        for (suite, name), found in cells.items():
            lines.append(
                f"| {suite}: {name} | "
                + " | ".join(found.get(name, "-") for name in self.columns)
                + " |"
            )
        return lines + [""]

    def totals(self):
        """The closing line."""
        line = (
            f"{self.count('pass')} passed, {self.count('fail')} failed, {self.count('skip')}"
            " skipped"
        )
        return f"{line}, {self.count('noted')} noted" if self.count("noted") else line
