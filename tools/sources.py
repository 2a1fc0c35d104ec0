# SPDX-License-Identifier: GPL-2.0
"""The files of the project, and what is in them."""

import os
import subprocess

from tools.steps import TOP


def sources():
    """The files of the project, as git would take them."""
    done = subprocess.run(["git", "-c", f"safe.directory={TOP}", "ls-files", "-co", "--exclude-standard"],
                          cwd=TOP, capture_output=True, text=True, check=True)
    return sorted(name for name in set(done.stdout.splitlines()) if os.path.isfile(f"{TOP}/{name}"))


def read(name):
    """A source file's text."""
    with open(f"{TOP}/{name}", encoding="utf-8", errors="replace") as file:
        return file.read()
