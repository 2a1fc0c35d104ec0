# SPDX-License-Identifier: GPL-2.0
"""`make results`: what the last runs said, from build/report/ and build/bench/ into
Documentation/results/DATE/, with commit and host. Parts of test-deep become one page if they are of
one commit."""

import json
import os
import re
import sys
import textwrap

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [TOP]

from tools.steps import BUILD, REPORT, StepError  # noqa: E402

# What is kept, by the beginning of a report's name.
KEPT = {
    "tests": "make test",
    "deep": "make test-deep",
    "compare": "make compare",
    "tests-arm64": "ARCH=arm64 make test",
    "deep-arm64": "ARCH=arm64 make test-deep",
}
PART = re.compile(r"(?P<kind>deep(-arm64)?)-part-(?P<number>\d+)-of-(?P<count>\d+)$")
STATUSES = ("pass", "fail", "noted", "skip")


def reports(folder=REPORT):
    """The reports of whole runs, by what they are of; what somebody selected is no result."""
    found = {}
    for file in sorted(os.listdir(folder)):
        name, ending = os.path.splitext(file)
        part = PART.match(name)
        kind = part["kind"] if part else name
        if kind in KEPT and ending == ".json":
            with open(f"{folder}/{file}", encoding="utf-8") as text:
                report = json.load(text)
            if not re.search("(SCENARIOS|BEHAVIOURS)=", report["selection"]):
                found.setdefault(kind, []).append(report)
    return found


def judged(kind, parts):
    """Fails where parts are not of one run: commits or numbers that differ. Returns what has to be
    said of them."""
    commits = sorted({part["commit"] for part in parts})
    if len(commits) > 1:
        raise StepError(f"{KEPT[kind]}: no one result of several commits: {', '.join(commits)}")
    said = []
    if commits[0].endswith("-dirty"):
        said.append("the sources had **changes that are in no commit**")
    said += [f"{part['report']} was **interrupted**" for part in parts
             if part["state"] != "complete"]
    numbers = [PART.match(part["report"]) for part in parts]
    if any(numbers):
        counts = {int(number["count"]) if number else 1 for number in numbers}
        if len(counts) > 1:
            raise StepError(f"{KEPT[kind]}: no one result of reports of {sorted(counts)} parts")
        count = counts.pop()
        missing = set(range(1, count + 1)) - {int(number["number"]) for number in numbers}
        said += [f"part {number} of {count} was **not run**" for number in sorted(missing)]
    return said


def cell(text):
    """Text that docutils takes as it is."""
    return re.sub(r"([\\*`|_])", r"\\\1", " ".join(text.split()))[:300]


def described(text):
    """Text in lines of at most 100 columns."""
    return textwrap.wrap(cell(text), 90, initial_indent="    ", subsequent_indent="    ",
                         break_long_words=False, break_on_hyphens=False) or ["    no detail"]


def page(kind, parts):
    """A report as a document."""
    first = parts[0]
    title = f"{KEPT[kind]}, {first['began'][:10]}"
    checks = [check for part in parts for check in part["checks"]]
    lines = [".. SPDX-License-Identifier: GPL-2.0", "",
             "=" * len(title), title, "=" * len(title), "",
             f"Written by ``make results``. Commit {first['commit']}; {first['host']}.", ""]
    lines += [f"* {cell(part['report'])} ({cell(part['selection'])}): began {part['began']}, "
              f"{part['totals']}" for part in parts]
    lines += [f"* {text}" for text in judged(kind, parts)]
    lines += ["", ".. csv-table::",
              "   :header: suite, passed, failed, noted, skipped, seconds", ""]
    for suite in dict.fromkeys(check["suite"] for check in checks):
        mine = [check for check in checks if check["suite"] == suite]
        counts = [sum(check["status"] == status for check in mine) for status in STATUSES]
        # A scenario's own time has what is between its checks, too.
        whole = sum(check["seconds"] for check in mine if check["name"] == "runs to its end")
        seconds = whole or sum(check["seconds"] for check in mine)
        lines.append(f"   {suite}, {', '.join(map(str, counts))}, {seconds:.0f}")
    for status, what in (("fail", "Failed"), ("skip", "Skipped"), ("noted", "Noted")):
        found = [check for check in checks if check["status"] == status]
        lines += ["", what, "=" * len(what), ""] if found else []
        for check in found:
            lines += [cell(f"{check['suite']}: {check['name']}"),
                      *described("".join(check["detail"].splitlines()[-1:]))]
    return "\n".join(lines) + "\n"


def bench(date):
    """The tables of make bench, as they are; None where they are not of that day."""
    try:
        with open(f"{BUILD}/bench/latency.md", encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError:
        return None
    head = "<!-- SPDX-License-Identifier: GPL-2.0 -->\n# make bench\n\n"
    return head + text if date in text else None


def main():
    """Writes a page for each kind of run."""
    found = reports()
    if not found:
        raise StepError(f"no report of a whole run in {REPORT}: make test, or all parts of "
                        "make test-deep")
    for kind, parts in found.items():
        date = parts[0]["began"][:10]
        folder = f"{TOP}/Documentation/results/{date}"
        os.makedirs(folder, exist_ok=True)
        for name, text in ((f"{kind}.rst", page(kind, parts)), ("latency.md", bench(date))):
            if text:
                with open(f"{folder}/{name}", "w", encoding="utf-8") as file:
                    file.write(text)
                print(f"{folder}/{name}: name it in Documentation/index.rst")


if __name__ == "__main__":
    try:
        main()
    except (StepError, OSError) as why:
        sys.exit(f"error: {why}")
