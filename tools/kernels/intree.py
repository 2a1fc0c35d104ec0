# SPDX-License-Identifier: GPL-2.0
"""Puts the driver into a kernel tree, with the same Kbuild and Kconfig, and builds that tree: built
in, for guests, and as a module. Objects stay in the cache, so that only what changed is built anew;
the results are the clone's."""

import contextlib
import dataclasses
import functools
import hashlib
import os
import re
import shutil

from tools.arch import TARGET, TOOLS
from tools.kernels import common
from tools.steps import BUILD, JOBS, LOGS, TOP, StepError, must, step
from tools.sources import sources

HERE = os.path.dirname(os.path.abspath(__file__))
# Raise this when linux-source has to be unpacked anew.
RECIPE = 1
OPTION = "TCG_XEN_RUST"
C_OPTION = "TCG_XEN"
# For scripts/config: the driver as a module, and the C driver in its place.
AS_MODULE = ("--module", OPTION)
C_DRIVER = ("--disable", OPTION, "--enable", C_OPTION)
# The TPM core encrypts and authenticates its own commands to a TPM 2.0.
HMAC = ("--enable", "TCG_TPM2_HMAC")

# Where the driver goes in the tree, and what has to be said there.
PLACE = "drivers/char/tpm/xen-tpmfront"
PARTS = re.compile(r"Kbuild$|Kconfig$|src/|include/")
MAKEFILE_LINE = f"obj-$(CONFIG_{OPTION}) += xen-tpmfront/\n"
KCONFIG_LINE = f'source "{PLACE}/Kconfig"\n'
KCONFIG_END = "endif # TCG_TPM\n"

# What is for tests only.
EARLY_PLACE = "drivers/char/tpm/bed-early"
EARLY_LINE = "obj-y += bed-early/\n"


@dataclasses.dataclass
class InTree(common.OwnKernel):
    """The kernel with the driver in it, as the project has it or as the series has it."""

    # Where a clone has what was made of it; also its name in the report.
    series: str = "intree"

    @property
    def result(self):
        """Where its image and modules are."""
        return f"{BUILD}/{self.series}"

    @property
    def vmlinux(self):
        """Its image, uncompressed: the clone's."""
        return f"{self.result}/vmlinux"

    @property
    def folder(self):
        """Where its source and its objects are in the cache."""
        return f"{self.stock.folder}-intree-{RECIPE}"

    @property
    def release(self):
        """What `uname -r` says there."""
        return os.path.basename(self.modules)

    @property
    def modules(self):
        """Its modules, as they are installed: there are none, but modprobe wants to know what is
        built in."""
        parent = f"{self.result}/boot/lib/modules"
        return f"{parent}/{os.listdir(parent)[0]}"

    def kconfigs(self):
        """The Kconfig files that are ours, or changed by us."""
        return [
            name for name in content(f"{self.folder}/files").split() if name.endswith("Kconfig")
        ]

    @property
    def kbuild(self):
        """The kernel's own build."""
        return ["nice", "make", "-C", self.source, f"O={self.build}"]


def files_in_tree(kernel):
    """The driver's folder, one line in the Makefile, one in Kconfig; and what is for tests only."""
    parent = os.path.dirname(PLACE)
    files = {f"{PLACE}/{name}": content(f"{TOP}/{name}") for name in sources() if PARTS.match(name)}
    files[f"{parent}/Makefile"] = original(kernel, f"{parent}/Makefile") + MAKEFILE_LINE
    config = original(kernel, f"{parent}/Kconfig")
    if config.count(KCONFIG_END) != 1:
        raise StepError(
            f"{parent}/Kconfig has not the line {KCONFIG_END!r}: this kernel is newer than"
            f" {__name__} knows"
        )
    files[f"{parent}/Kconfig"] = config.replace(KCONFIG_END, KCONFIG_LINE + KCONFIG_END)
    return files


@contextlib.contextmanager
def tree(stock, files=files_in_tree, series="intree"):
    """The tree, for one clone at a time, with these files in it, and the one for tests."""
    kernel = InTree(stock, series)
    with common.locked(kernel):
        common.unpack(stock, kernel.folder)
        wanted = files(kernel)
        parent, early = os.path.dirname(EARLY_PLACE), f"{TOP}/tools/kernels/early"
        wanted |= {
            f"{EARLY_PLACE}/{name}": content(f"{early}/{name}") for name in os.listdir(early)
        }
        wanted[f"{parent}/Makefile"] += EARLY_LINE
        put(kernel, wanted)
        os.makedirs(kernel.build, exist_ok=True)
        if TARGET.foreign:
            # As Debian's trees for modules have it.
            write(f"{kernel.build}/.kernelvariables",
                  f"override ARCH = {TARGET.kernel}\noverride CROSS_COMPILE = {TOOLS}\n")
        yield kernel


def content(path):
    """A file's text."""
    with open(path, encoding="utf-8") as file:
        return file.read()


def write(path, text):
    """Makes that a file's text."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def original(kernel, name):
    """The text of a file as linux-source has it."""
    kept = f"{kernel.folder}/original/{name}"
    return content(kept if os.path.exists(kept) else f"{kernel.source}/{name}")


def put(kernel, files):
    """Makes linux-source differ by these files {name: text} and no others. What does not change
    keeps its time."""
    known = f"{kernel.folder}/files"
    before = set(content(known).split()) if os.path.exists(known) else set()
    for name in set(files) - before:
        path, kept = f"{kernel.source}/{name}", f"{kernel.folder}/original/{name}"
        if os.path.exists(path):
            os.makedirs(os.path.dirname(kept), exist_ok=True)
            shutil.copyfile(path, kept)
    # A run that is broken off behind this has changed no more than these.
    write(known, "\n".join(before | set(files)))
    for name in before | set(files):
        path, kept = f"{kernel.source}/{name}", f"{kernel.folder}/original/{name}"
        text = files.get(name, content(kept) if os.path.exists(kept) else None)
        if text is None:
            if os.path.exists(path):
                os.unlink(path)
        elif not os.path.exists(path) or content(path) != text:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            write(path, text)
    write(known, "\n".join(files))


def fragment(stock):
    """The file that says what a configuration has beside tinyconfig, of this architecture and with
    the stock kernel's size of pages."""
    path = f"{BUILD}/intree-{stock.series}.config"
    text = content(f"{HERE}/intree.config") + content(f"{HERE}/intree.{TARGET.kernel}.config")
    write(path, text + ("CONFIG_ARM64_16K_PAGES=y\n" if stock.flavour.endswith("-16k") else ""))
    return path


def configure(kernel):
    """The configuration that the fragment makes, which is kept for as long as neither it nor
    Kconfig changes."""
    wanted = fragment(kernel.stock)
    parts = content(wanted) + "".join(
        content(f"{kernel.source}/{name}") for name in sorted(kernel.kconfigs())
    )
    kept = f"{kernel.folder}/config-{hashlib.sha256(parts.encode()).hexdigest()[:12]}"
    if not os.path.exists(kept):
        common.configure(kernel, kernel.kbuild, wanted, "intree-config.log")
        shutil.copyfile(f"{kernel.build}/.config", f"{kept}.new")
        os.rename(f"{kept}.new", kept)
    elif content(kept) != content(f"{kernel.build}/.config"):
        shutil.copyfile(kept, f"{kernel.build}/.config")


def choose(kernel, log, *choice):
    """Changes the configuration by what scripts/config is to do."""
    if choice:
        must([f"{kernel.source}/scripts/config", "--file", f"{kernel.build}/.config", *choice], log,
             f"cannot configure {' '.join(choice)}")
        must(kernel.kbuild + ["olddefconfig"], log, f"cannot configure {' '.join(choice)}")


def make(kernel, log, *choice):
    """Builds it in the cache; its configuration differs by `choice`."""
    configure(kernel)
    choose(kernel, log, *choice)
    must(
        kernel.kbuild + [f"-j{JOBS}", os.path.basename(TARGET.image), "modules"],
        log,
        f"the kernel {kernel.series} does not build",
    )


def make_part(kernel, log):
    """Builds what Rust has of the kernel, and what the driver and the core are among."""
    configure(kernel)
    must(
        kernel.kbuild + [f"-j{JOBS}", "prepare", f"{os.path.dirname(PLACE)}/", "drivers/xen/"],
        log,
        "the part of the kernel that the driver is in does not build",
    )


def make_module(kernel, log):
    """Builds the driver as a module of that; returns its path."""
    choose(kernel, log, *AS_MODULE)
    must(
        kernel.kbuild + [f"-j{JOBS}", f"{PLACE}/xen-tpmfront.ko"],
        log,
        "the driver does not build as a module in tree",
    )
    return f"{kernel.build}/{PLACE}/xen-tpmfront.ko"


def install(kernel, log):
    """What a guest needs of it."""
    shutil.rmtree(f"{kernel.result}/boot", ignore_errors=True)
    must(kernel.kbuild + ["modules_install", f"INSTALL_MOD_PATH={kernel.result}/boot"], log,
         f"cannot install what the kernel {kernel.series} has of modules")
    common.keep_image(kernel, log)


@functools.cache
def build_kernel(stock):
    """The kernel with the driver built in, for guests; what took long is in the cache. A run builds
    it once."""
    with step(
        "building a kernel with the driver in it (the first time 15 minutes of processor time)"
    ), tree(stock) as kernel:
        make(kernel, "intree.log")
        install(kernel, "intree-install.log")
    return kernel


def build_c_kernel(stock):
    """The same kernel with the C driver in the place of ours, to measure that."""
    with step("building that kernel with the C driver"), tree(stock, series="intree-c") as kernel:
        make(kernel, "intree-c.log", *C_DRIVER)
        install(kernel, "intree-c-install.log")
    return kernel


def build_hmac_kernel(stock):
    """The same kernel with CONFIG_TCG_TPM2_HMAC, which Debian's has not."""
    with step("building that kernel with CONFIG_TCG_TPM2_HMAC"), tree(
        stock, series="hmac"
    ) as kernel:
        make(kernel, "hmac.log", *HMAC)
        if "CONFIG_TCG_TPM2_HMAC=y" not in content(f"{kernel.build}/.config").splitlines():
            raise StepError(
                "a kernel's configuration does not come out with TCG_TPM2_HMAC: see"
                " build/log/hmac.log"
            )
        install(kernel, "hmac-install.log")
    return kernel


def build_module(stock, log="intree-module.log"):
    """The driver as a module of the same tree; returns its path."""
    with step("building the driver as a module of that kernel"), tree(stock) as kernel:
        path = f"{kernel.result}/xen-tpmfront.ko"
        shutil.copyfile(make_module(kernel, log), path)
    return path


def configured(stock, *lines):
    """What a configuration with these lines more comes out as: the values of TCG_XEN and of our
    option."""
    config, log = f"{BUILD}/intree/try.config", "intree-kconfig.log"
    with tree(stock) as kernel:
        shutil.copyfile(fragment(stock), config)
        with open(config, "a", encoding="ascii") as file:
            file.write("".join(f"{line}\n" for line in lines))
        must(
            kernel.kbuild + [f"KCONFIG_CONFIG={config}", "olddefconfig"],
            log,
            "cannot configure a kernel",
        )
    with open(config, encoding="utf-8") as file:
        found = dict(re.findall(r"^CONFIG_(\w+)=(.*)$", file.read(), re.MULTILINE))
    os.makedirs(LOGS, exist_ok=True)
    return found.get(C_OPTION, "n"), found.get(OPTION, "n")
