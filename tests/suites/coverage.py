# SPDX-License-Identifier: GPL-2.0
"""How much of the daemon and of the protocol the native tests run, by LLVM's counters. These are
memory that is mapped from a file: a process that is killed, or whose sandbox lets it write none, is
counted, too."""

import collections
import json
import os
import re
import shutil

from suites.host import MUST
from testbed.report import Failure
from tools.build import cargo_environment
from tools.steps import BUILD, LOGS, REPORT, TOP, logged, output

TARGET = f"{BUILD}/coverage"
PROFILES = f"{TARGET}/profiles"
# What is of interest, by the beginning of its files' names.
PARTS = {"daemon": "backend/src/", "protocol": "src/protocol/"}
PACKAGES = ("xen-vtpmd", "xen-tpm-protocol", "xen-tpm-model")


def lines_of(export):
    """Lines that ran and lines there are, by part and by file, of what llvm-cov exports."""
    parts, files = collections.Counter(), {}
    for file in json.loads(export)["data"][0]["files"]:
        name = os.path.relpath(file["filename"], TOP)
        for part, start in PARTS.items():
            if name.startswith(start):
                count = file["summary"]["lines"]
                files[name] = count["covered"], count["count"]
                parts[part, "covered"] += count["covered"]
                parts[part, "count"] += count["count"]
    return parts, files


def measured():
    """Runs the tests with counters; the table of all files is build/report/coverage.md."""
    shutil.rmtree(PROFILES, ignore_errors=True)
    environment = {
        **cargo_environment(),
        **MUST,
        "CARGO_TARGET_DIR": TARGET,
        "RUSTFLAGS": "-C instrument-coverage -C llvm-args=-runtime-counter-relocation",
        "LLVM_PROFILE_FILE": f"{PROFILES}/%m%c.profraw",
    }
    log = "coverage.log"
    command = ["nice", "cargo", "test", "--no-fail-fast", *(f"-p={name}" for name in PACKAGES)]
    logged(command, log, env=environment)
    with open(f"{LOGS}/{log}", encoding="utf-8", errors="replace") as file:
        text = file.read()
    results = re.findall(r"^test result: .* (\d+) passed; (\d+) failed", text, re.MULTILINE)
    passed, failed = (sum(int(numbers[n]) for numbers in results) for n in (0, 1))
    if not passed:
        raise Failure(text[-3000:])
    programs = [f"{TARGET}/debug/xen-vtpmd"]
    programs += [
        os.path.join(TOP, path) for path in re.findall(r"Running .*\(([^)]*/deps/[^)]*)\)", text)
    ]
    profiles = [f"{PROFILES}/{name}" for name in os.listdir(PROFILES)]
    output("llvm-profdata-19", "merge", "-sparse", "--failure-mode=all",
           *profiles, "-o", f"{TARGET}/all")
    objects = [word for program in programs[1:] for word in ("-object", program)]
    parts, files = lines_of(
        output("llvm-cov-19", "export", "-summary-only", "-instr-profile", f"{TARGET}/all",
               programs[0], *objects)
    )
    with open(f"{REPORT}/coverage.md", "w", encoding="utf-8") as file:
        file.write("| file | lines | run |\n| --- | --- | --- |\n")
        for name, (covered, count) in sorted(files.items()):
            file.write(f"| {name} | {count} | {100 * covered / max(count, 1):.0f} % |\n")
    blind = [part for part in PARTS if not parts[part, "covered"]]
    if blind:
        raise Failure(f"no line of {' and '.join(blind)} was run: is anything measured?")
    # A sandbox lets no counters be written, which may fail its test here: the host suite judges
    # those.
    return f"{passed} tests passed, {failed} failed under the counters; " + ", ".join(
        f"{part}: {100 * parts[part, 'covered'] / parts[part, 'count']:.1f} % of "
        f"{parts[part, 'count']} lines"
        for part in PARTS
    )


def run(report):
    """Runs the suite."""
    report.check("coverage", "lines that the native tests run", measured)
