# SPDX-License-Identifier: GPL-2.0
"""The commands of README's "Give your guest a TPM", which scenarios run as they are printed: how
many a person types, and where."""

import re

from testbed.report import Failure
from tools.steps import TOP

# Until there are random bytes.
MOST_COMMANDS = 5


def commands(text=None):
    """The commands in dom0, and those in the guest: what is installed there, and what asks the
    TPM."""
    if text is None:
        with open(f"{TOP}/README.md", encoding="utf-8") as file:
            text = file.read()
    section = text.partition("## Give your guest a TPM\n")[2].partition("\n## ")[0]
    block = section.partition("```sh\n")[2].partition("```")[0]
    found, where = {"dom0": [], "guest": []}, None
    for line in block.splitlines():
        if mark := re.match(r"# in (?:the )?(dom0|guest)\b", line):
            where = mark[1]
        elif line and not line.startswith("#"):
            found[where].append(line)
    count = sum(map(len, found.values()))
    if (
        count > MOST_COMMANDS
        or not found["dom0"]
        or [line.split()[0] for line in found["guest"]] != ["apt", "tpm2_getrandom"]
    ):
        raise Failure(f"README has {count} commands, not at most {MOST_COMMANDS}: {found}")
    return found["dom0"], found["guest"]
