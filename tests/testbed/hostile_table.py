# SPDX-License-Identifier: GPL-2.0
"""The behaviours that the hostile backend has, what is expected of each, and the table of what came
of them."""

import dataclasses
import json
import os
import re
import subprocess

from tools import steps

# What the driver says when it has found another TPM, or one that was reset.
OTHER_TPM = re.compile(
    r"vtpm.*(anew|reset|restarted|another|different|mismatch|replaced)", re.IGNORECASE
)
with open(f"{steps.TOP}/tests/guest/complaints", encoding="ascii") as patterns:
    SPLAT = re.compile("|".join(line.rstrip("\n") for line in patterns if not line.startswith("#")))
# These change answers that only a TPM of this version gives.
ONE_VERSION = {
    "1.2": ("durations-endless", "durations-none", "pcrs-many", "probe-selftest"),
    "2.0": (
        "banks-none",
        "banks-many",
        "banks-endless",
        "banks-long",
        "banks-wide",
        "properties-absurd",
        "register-retry",
        "log-good",
        "log-no-hex",
        "log-cut",
        "log-algorithms",
        "log-other-version",
        "log-in-pieces",
    ),
}
# After these kinds it goes on with the same connection, or has asked for another one itself.
SAME_CONNECTION = ("command", "secret", "deadline", "timeout", "cancel-storm", "storm", "unbind",
                   "busy-unbind", "registration", "detach")
# A backend of another protocol is refused for good: the driver has to be bound anew, as the
# kernel's log says. So it has after the last one, whose TPM the core takes for one in failure mode:
# that stays registered, without tpmrm0.
REBOUND = ("protocol-changes", "feature-missing", "feature-0", "feature-2", "feature-huge",
           "properties-absurd")

# A command that nobody cancels has 60 s, and its cancel 5 s.
DEADLINE = 75
# The core gives two minutes to commands whose duration it does not know, as the first of a probe
# and the last one.
FIRST = 140
# Binding the driver ends within this time, however long the backend makes the registration of its
# TPM, and unbinding it does while that goes on. The rest is for what the testbed needs.
PROBE, UNBIND, REST = 30, 10, 5
# A command behind one that timed out has no more than this.
SHORT = 15
# How often the driver connects to a backend that ends each connection at once, in this time (s).
RECONNECTS, SPELL = 20, 15
# So many lines that does to the kernel's log at most: ten at once, and one a second.
LINES = 10 + SPELL + 5
# A TPM 1.2's PCRs.
PCRS = 24
# What is left of the guest's speed under a storm, against a backend that only uses its processor.
SPEED = 0.5
# The guest sees to other watches within this time.
PROMPT = 5.0


@dataclasses.dataclass
class Behaviour:
    """A line of the program's list."""

    name: str
    kind: str
    expect: str
    wrong: str


def behaviours():
    """All of them, by name, in the program's order; it is built for this host, too."""
    done = subprocess.run(
        ["cargo", "run", "--quiet", "--release", "-p", "xen-hostile-backend", "--", "list"],
        cwd=steps.TOP, capture_output=True, text=True, check=True
    )
    return {line.split("\t")[0]: Behaviour(*line.split("\t")) for line in done.stdout.splitlines()}


def as_expected(found, expect, any_errno=False):
    """Whether each try ended as one of its alternatives says. A driver that is not ours may have
    errnos of its own, and give up by itself what ours waits for."""
    def plain(word):
        return (
            re.sub(r"^(self|cancel):(E[A-Z]+|ok)$", lambda match: match[2][:1], word)
            if any_errno
            else word
        )

    wanted = expect.split()
    return len(found) == len(wanted) and all(
        plain(word) in map(plain, words.split("|")) for word, words in zip(found, wanted))


def write_table(column, rows):
    """Takes the rows of one run into the report's table, build/report/hostile-backend.rst, which
    has a column for each driver that was run."""
    os.makedirs(steps.REPORT, exist_ok=True)
    path = f"{steps.REPORT}/hostile-backend.json"
    found = {}
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    found.setdefault(column, {}).update(rows)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(found, file, indent=1)
    columns = sorted(found, reverse=True)
    lines = [".. list-table::", "   :header-rows: 1", "", "   * - behaviour, and what is wrong"]
    lines += [f"     - {column}" for column in columns]
    for behaviour in behaviours().values():
        cells = [found[column].get(behaviour.name) for column in columns]
        if any(cells):
            lines.append(f"   * - **{behaviour.name}**: {behaviour.wrong}")
            lines += [f"     - {text(cell)}" if cell else "     - not run" for cell in cells]
    with open(f"{steps.REPORT}/hostile-backend.rst", "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


def text(cell):
    """A row's result, as the table has it."""
    return (
        f"{'' if cell['verdict'] == 'good' else '**bad**: '}{cell['result']}; after:"
        f" {cell['after']}".replace("`", "'")
    )
