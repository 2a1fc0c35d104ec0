# SPDX-License-Identifier: GPL-2.0
"""Builds the Debian packages: the backend's, and the driver's for guests."""

import glob
import os
import shutil

from tools import build
from tools.arch import SUFFIX, TARGET
from tools.sources import sources
from tools.steps import BUILD, TOP, must, output

FOLDER = f"{BUILD}/deb{SUFFIX}"
# Where a package's debian/ is among the sources.
BACKEND, GUEST = "backend", "tools/package/guest"
# The commit of the backend's version before this one, and its package.
FORMER = "8cff9506e36b5d75dce78b9ec420ef4bd4c26ac1"
FORMER_DEB = f"{BUILD}/former/xen-vtpmd_0.1.0_amd64.deb"


def version(place=BACKEND):
    """The packages' version."""
    changelog = f"{TOP}/{place}/debian/changelog"
    return output("dpkg-parsechangelog", "-l", changelog, "-S", "Version").strip()


def source(name="xen-vtpmd"):
    """Where a source package is built."""
    return f"{FOLDER}/{name}-source"


def deb(name="xen-vtpmd", place=BACKEND, architecture=TARGET.name):
    """A package that was built."""
    return f"{FOLDER}/{name}_{version(place)}_{architecture}.deb"


def guest_debs(release):
    """The packages for a guest with this stock kernel, without a compiler."""
    return [deb("xen-tpmfront-common", GUEST, "all"),
            deb(f"xen-tpmfront-modules-{release}", GUEST)]


def copy_sources(name, place):
    """A copy of the sources that has debian/ where Debian's tools look for it."""
    shutil.rmtree(source(name), ignore_errors=True)
    for path in sources():
        of_debian = path.startswith(f"{place}/debian/")
        target = f"{source(name)}/{path.removeprefix(f'{place}/') if of_debian else path}"
        os.makedirs(os.path.dirname(target), exist_ok=True)
        shutil.copy2(f"{TOP}/{path}", target)


def build_packages(name, env, tree=None):
    """Builds the packages of a copy of the sources, into the folder that has it."""
    tree = tree or source(name)
    for path in glob.glob(f"{os.path.dirname(tree)}/{name}*_*"):
        os.unlink(path)
    # The root has what is needed of build-essential, but not that package; and of the crates it has
    # its own architecture's, which are sources.
    cross = ["--no-check-builddeps"] if TARGET.foreign else []
    must(
        ["dpkg-buildpackage", "--build=binary", "--no-sign", "--ignore-builtin-builddeps",
         f"--host-arch={TARGET.name}", *cross],
        f"deb-{name}.log",
        f"the package {name} does not build",
        cwd=tree,
        env={**env, "DEB_BUILD_OPTIONS": "noautodbgsym"},
    )


def build_deb():
    """Builds the backend's package."""
    copy_sources("xen-vtpmd", BACKEND)
    build_packages("xen-vtpmd", build.cargo_environment())
    return deb()


def build_former_deb():
    """Builds the package of the version before this one, unless it was built."""
    if os.path.exists(FORMER_DEB):
        return
    tree = f"{os.path.dirname(FORMER_DEB)}/source"
    shutil.rmtree(tree, ignore_errors=True)
    os.makedirs(tree)
    must(["sh", "-c", f"git archive {FORMER} | tar -x -C {tree}"], "former.log",
         f"the commit {FORMER} cannot be had: this takes a clone with its history")
    os.rename(f"{tree}/{BACKEND}/debian", f"{tree}/debian")
    build_packages("xen-vtpmd", {**build.cargo_environment(), "CARGO_TARGET_DIR": f"{tree}/target"},
                   tree)


def build_guest_debs(kernels):
    """Builds the driver's packages: that for DKMS, and the modules of these kernels, which are
    built."""
    copy_sources("xen-tpmfront", GUEST)
    debian = f"{source('xen-tpmfront')}/debian"
    with open(f"{debian}/control.modules", encoding="utf-8") as file:
        stanzas = file.read()
    for kernel in kernels:
        with open(f"{debian}/control", "a", encoding="utf-8") as file:
            file.write(stanzas.replace("@RELEASE@", kernel.release))
        with open(f"{debian}/modules.postinst", encoding="utf-8") as file:
            script = file.read().replace("@RELEASE@", kernel.release)
        for when in ("postinst", "postrm"):
            path = f"{debian}/xen-tpmfront-modules-{kernel.release}.{when}"
            with open(path, "w", encoding="utf-8") as file:
                file.write(script)
    build_packages(
        "xen-tpmfront",
        {
            "RELEASES": " ".join(kernel.release for kernel in kernels),
            "MODULES": f"{BUILD}/module",
        },
    )
    return sorted(glob.glob(f"{FOLDER}/xen-tpmfront*.deb"))
