# SPDX-License-Identifier: GPL-2.0
"""Keeps what Cargo compiles of others' crates in the root, for the next clone: it goes when the
root goes. Cargo itself decides what of it still fits."""

import glob
import hashlib
import os
import re
import shutil

from tools.steps import BUILD, TOP

STORES = "/var/cache/xen-tpmfront"
# What is compiled of the project's own; the rest of Cargo's folder is of no use to another clone.
OWN = re.compile(r"(lib)?xen[_-].*|incremental|doc|tmp")


def store():
    """The folder for these crates, as the members of the workspace name them."""
    key = hashlib.sha256()
    for path in sorted(glob.glob(f"{TOP}/Cargo.toml") + glob.glob(f"{TOP}/*/Cargo.toml") +
                       glob.glob(f"{TOP}/tests/*/Cargo.toml")):
        with open(path, "rb") as file:
            key.update(file.read())
    return f"{STORES}/cargo-{key.hexdigest()[:12]}"


def copy(source, target, ignore=None):
    """Copies a folder, under another name until it is whole."""
    new = f"{target}.new-{os.getpid()}"
    shutil.copytree(source, new, symlinks=True, ignore=ignore)
    try:
        os.rename(new, target)
    except OSError:
        # Another clone was quicker.
        shutil.rmtree(new)


def fetch():
    """Begins Cargo's folder with what is kept."""
    if not os.path.exists(f"{BUILD}/cargo") and os.path.isdir(store()):
        copy(store(), f"{BUILD}/cargo")


def keep():
    """Keeps the crates, once everything was compiled."""
    if not os.path.isdir(store()):
        copy(
            f"{BUILD}/cargo",
            store(),
            lambda _, names: [name for name in names if OWN.fullmatch(name)],
        )
