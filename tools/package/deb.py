# SPDX-License-Identifier: GPL-2.0
"""Builds the Debian package of the backend."""

import glob
import os
import shutil

from tools.build import cargo_environment
from tools.sources import sources
from tools.steps import BUILD, TOP, must, output

FOLDER = f"{BUILD}/deb"
SOURCE = f"{FOLDER}/source"


def version():
    """The package's version, which is the daemon's."""
    return output(
        "dpkg-parsechangelog", "-l", f"{TOP}/backend/debian/changelog", "-S", "Version"
    ).strip()


def deb():
    """The package."""
    return f"{FOLDER}/xen-vtpmd_{version()}_amd64.deb"


def build_deb():
    """Builds the package, from a copy of the sources that has debian/ where Debian's tools look for
    it."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    for path in glob.glob(f"{FOLDER}/xen-vtpmd_*"):
        os.unlink(path)
    for name in sources():
        of_debian = name.startswith("backend/debian/")
        target = f"{SOURCE}/{name.removeprefix('backend/') if of_debian else name}"
        os.makedirs(os.path.dirname(target), exist_ok=True)
        shutil.copy2(f"{TOP}/{name}", target)
    # The root has what is needed of build-essential, but not that package.
    must(
        ["dpkg-buildpackage", "--build=binary", "--no-sign", "--ignore-builtin-builddeps"],
        "deb.log",
        "the package does not build",
        cwd=SOURCE,
        env={**cargo_environment(), "DEB_BUILD_OPTIONS": "noautodbgsym"},
    )
    return deb()
