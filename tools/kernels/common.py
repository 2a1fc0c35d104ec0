# SPDX-License-Identifier: GPL-2.0
"""What the kernels of our own have in common: linux-source with the parts that a guest of the
testbed needs, configured by tinyconfig and a fragment."""

import contextlib
import dataclasses
import fcntl
import os
import re
import shutil

from tools.arch import TARGET
from tools.kernels import prepare
from tools.steps import StepError, must, need_space, step

# All of linux-source but what no guest of the testbed needs; the files that say what there is are
# needed all the same. Of other architectures: prepare.KEEP says why.
SKIP = re.compile(
    rf"""(arch/(?!{TARGET.kernel}/|x86/entry/syscalls/|arm/vdso/)[^/]+|Documentation|sound|samples
    |drivers/(gpu|infiniband|media|net|scsi|staging)/[^/]+
    |fs/(bcachefs|btrfs|ext4|f2fs|nfs|nfsd|ocfs2|smb|xfs)
    |tools/(?!arch/|build/|include/|lib/|objtool/|scripts/|testing/selftests/tpm2/)[^/]+)/""",
    re.VERBOSE,
)
BUILD_FILE = re.compile(r"(.*/)?(Kconfig|Makefile|Kbuild)[^/]*$")
OPTION = re.compile(r"CONFIG_\w+")
# What newer kernels call an option. The fragments have both names; one of them has to come out.
RENAMED = {"CONFIG_PROC_SYSCTL": ("CONFIG_SYSCTL",)}


@dataclasses.dataclass
class OwnKernel(prepare.Places):
    """A kernel of a stock kernel's version: its places have the same names as that one's."""

    stock: prepare.Kernel


@contextlib.contextmanager
def locked(kernel):
    """The kernel's folder in the cache, for one clone at a time."""
    os.makedirs(kernel.folder, exist_ok=True)
    with open(f"{kernel.folder}/lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    os.utime(kernel.folder)


def wanted(name):
    """Whether a file of linux-source is unpacked."""
    return not SKIP.match(name) or BUILD_FILE.match(name)


def unpack(stock, folder):
    """Unpacks linux-source of a stock kernel's version into `folder`/source, unless it is there."""
    source = f"{folder}/source"
    if os.path.exists(source):
        return
    work = f"{folder}/work"
    need_space(8, folder, f"a kernel of {stock.series} of our own")
    with step(f"downloading linux-source {stock.version} (about 165 MB) and unpacking it"):
        archive, = prepare.download(work, stock.source_package)
        shutil.rmtree(f"{source}.new", ignore_errors=True)
        prepare.unpack_source(archive, stock.plain_series, f"{source}.new", wanted)
        os.rename(f"{source}.new", source)
    shutil.rmtree(work)


def otherwise(fragment, lines):
    """The lines of a fragment, but for what these say otherwise."""
    other = [line.strip() for line in lines if "CONFIG_" in line]
    options = {OPTION.search(line)[0] for line in other}
    with open(fragment, encoding="ascii") as file:
        same = [
            line for line in file.read().splitlines() if options.isdisjoint(OPTION.findall(line))
        ]
    return "\n".join(same + other) + "\n"


def lacking(config, fragment):
    """The lines of a fragment that did not come out: an option may need another one, or be gone."""
    with open(config, encoding="utf-8") as file:
        have = set(file.read().splitlines())
    with open(fragment, encoding="ascii") as file:
        lines = [line.strip() for line in file if "CONFIG_" in line]
    missing = []
    for line in lines:
        # What is off may also be not there at all; a renamed option may have its new name.
        option = OPTION.search(line)[0]
        if any(line.replace(option, other) in have for other in RENAMED.get(option, ())):
            continue
        off = line.startswith("#") and not any(other.startswith(f"{option}=") for other in have)
        if line not in have and not off:
            missing.append(line)
    return missing


def configure(kernel, make, fragment, log):
    """tinyconfig and the fragment. A build that goes on has them."""
    config, name = f"{kernel.build}/.config", os.path.basename(fragment)
    if os.path.exists(config) and not lacking(config, fragment):
        return
    must(make + ["tinyconfig"], log, f"cannot configure a kernel for {name}")
    must([f"{kernel.source}/scripts/kconfig/merge_config.sh", "-m", "-O", kernel.build,
          config, fragment], log, f"cannot merge {name}", cwd=kernel.source)
    must(make + ["olddefconfig"], log, f"cannot configure a kernel for {name}")
    if missing := lacking(config, fragment):
        raise StepError(f"a kernel's configuration does not come out as {name} wants it: {missing}")


def keep_image(kernel, log):
    """What boots, without what debuggers want. This is a build's last step, so that its result
    stands for all of them."""
    image = f"{kernel.build}/{TARGET.image}"
    command = ["strip", "-g", image, "-o"] if TARGET.image == "vmlinux" else ["cp", image]
    must([*command, f"{kernel.vmlinux}.new"], log, f"cannot keep {image}")
    os.rename(f"{kernel.vmlinux}.new", kernel.vmlinux)
