# SPDX-License-Identifier: GPL-2.0
"""The files of the project, and what is in them."""

import os
import subprocess

from tools.steps import TOP


# What git would not take, where there is no git: in a release's tarball, or in a worktree, whose
# repository is elsewhere.
IGNORED = {"build", "__pycache__", ".git", "Cargo.lock"}


def sources():
    """The files of the project, as git would take them."""
    done = subprocess.run(
        ["git", "-c", f"safe.directory={TOP}", "ls-files", "-co", "--exclude-standard"],
        cwd=TOP,
        capture_output=True,
        text=True,
        check=False,
    )
    names = done.stdout.splitlines() if done.returncode == 0 else walk()
    return sorted(name for name in set(names) if os.path.isfile(f"{TOP}/{name}"))


def walk():
    """All files but those that git would ignore."""
    for folder, folders, names in os.walk(TOP):
        folders[:] = [name for name in folders if name not in IGNORED]
        yield from (
            os.path.relpath(f"{folder}/{name}", TOP) for name in names if name not in IGNORED
        )


def read(name):
    """A source file's text."""
    with open(f"{TOP}/{name}", encoding="utf-8", errors="replace") as file:
        return file.read()
