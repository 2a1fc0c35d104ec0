# SPDX-License-Identifier: GPL-2.0
"""Finds the stock kernels that our module is built for, and prepares their trees in the cache."""

import dataclasses
import fcntl
import glob
import gzip
import json
import os
import re
import shutil
import subprocess
import tarfile
import time

from tools import steps, sysroot
from tools.arch import SUFFIX, TARGET
from tools.steps import CACHE, JOBS, StepError, must, need_space, output, step

# What the driver supports, and the newest series that all of this was tried with.
OLDEST, LAST_KNOWN = (7, 2), (7, 3)
FRESH = 7 * 86400
XEN = f"xen-hypervisor-4.20-{TARGET.name}"
LOCKED = ("rustc", "bindgen", "gcc-14", "xen-utils-4.20", TARGET.qemu_package, "swtpm", "libtpms0",
          "tpm2-tools", "trousers", "tpm-tools", "busybox-static")
# Raise these when the way a tree is prepared, and Xen is unpacked, changes.
RECIPE, XEN_RECIPE = 1, 2

XEN_IMAGE = re.compile(rf"xen-[0-9.]+-{TARGET.name}(\.gz)?")
GZIP = b"\x1f\x8b"

# What the series changes beside that: the tree's page on Xen's vTPMs, and Xen's grants.
PAGE = "Documentation/security/tpm/xen-tpmfront.rst"
CHANGED_TOO = (PAGE, "drivers/xen/grant-table.c")
# What a module's build and our tests read of a kernel's source, beside every Kconfig file. Each
# architecture looks at the table of system calls of x86; arm64 has a part of its vDSO from arm.
KEEP = re.compile(
    rf"""(arch/({TARGET.kernel}|x86/entry/syscalls|arm/vdso)|block|certs|crypto|include|init
    |io_uring|ipc|kernel|lib|mm|rust|scripts|security|usr|virt|drivers/(android|base|char/tpm)
    |tools/(arch|bpf/resolve_btfids|build|include|lib|objtool|scripts|testing/selftests/tpm2))/
    |[^/]+$|(arch|tools)/[^/]+$|{'|'.join(CHANGED_TOO)}$""",
    re.VERBOSE,
)


class Places:
    """Where a kernel's files are in the cache. The class that is made of this has the `folder`."""

    @property
    def source(self):
        """The wanted part of linux-source."""
        return f"{self.folder}/source"

    @property
    def build(self):
        """The O= tree: the KDIR of module builds."""
        return f"{self.folder}/build"

    @property
    def vmlinux(self):
        """The image, uncompressed."""
        return f"{self.folder}/vmlinux"


@dataclasses.dataclass(frozen=True)
class Kernel(Places):
    """A stock kernel: its packages' version, and where its prepared files are. Where Debian has
    several flavours of a series, as with larger pages, the others' series say which."""

    release: str
    series: str
    version: str
    bootable: bool

    @property
    def number(self):
        """The series as numbers, to compare."""
        return tuple(int(part) for part in self.plain_series.split("."))

    @property
    def plain_series(self):
        """The series as the packages of its source have it."""
        return self.series.partition("-")[0]

    @property
    def source_package(self):
        """linux-source of its version, for apt."""
        return f"linux-source-{self.plain_series}={self.version}"

    @property
    def flavour(self):
        """Debian's name of its configuration."""
        return self.release.partition("deb13-")[2]

    @property
    def folder(self):
        """Where its files are in the cache, by all that they depend on."""
        rustc = output("rustc", "--version").split()[1]
        version = self.version.replace("~", "_")
        # Those of amd64 were made before there were others.
        flavour = "" if self.flavour == "amd64" else f"-{self.flavour}"
        return f"{CACHE}/kernel-{version}{flavour}-rustc{rustc}-{RECIPE}"

    @property
    def modules(self):
        """The stock modules, for the testbed."""
        return f"{self.folder}/boot/usr/lib/modules/{self.release}"

    @property
    def vmlinuz(self):
        """The stock kernel's image, as a boot loader wants it."""
        return f"{self.modules}/vmlinuz"


def versions(package):
    """The versions of a package in the index, newest first."""
    lines = output("apt-cache", "madison", package).splitlines()
    return [line.split("|")[1].strip() for line in lines]


def resolve():
    """Finds the newest kernel of each series that has a linux-source of the same version."""
    best, flavours = {}, "|".join(TARGET.flavours)
    headers = re.compile(rf"linux-headers-((\d+)\.(\d+)\.(\d+)\+deb13-({flavours}))$")
    for name in output("apt-cache", "pkgnames", "linux-headers-").split():
        match = headers.match(name)
        if not match or (int(match[2]), int(match[3])) < OLDEST:
            continue
        plain = series = f"{match[2]}.{match[3]}"
        if match[5] != TARGET.flavours[0]:
            series += match[5].removeprefix(TARGET.flavours[0])
        sources = versions(f"linux-source-{plain}")
        for version in versions(name):
            if version in sources and int(match[4]) >= best.get(series, (-1,))[0]:
                bootable = version in versions(f"linux-binary-{match[1]}") and \
                    version in versions(f"linux-modules-{match[1]}")
                best[series] = (int(match[4]), Kernel(match[1], series, version, bootable))
    if not best:
        raise StepError(
            "the archive's index has no linux-headers 7.2 or later with a linux-source of its"
            " version"
        )
    return sorted((kernel for _, kernel in best.values()), key=lambda kernel: kernel.number)


def update_index(retries):
    """Updates the archive's index. Apt waits before each retry, from one second to thirty."""
    must(
        [
            "apt-get",
            "-q",
            "update",
            "-o",
            "Acquire::http::Timeout=20",
            "-o",
            f"Acquire::Retries={retries}",
            "-o",
            "APT::Update::Error-Mode=any",
        ],
        "apt-update.log",
        "the Debian archive does not answer",
    )


def download(folder, *packages):
    """Downloads packages' archives into `folder`; returns their paths."""
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    must(["apt-get", "-q", "download", *packages], "apt-download.log",
         f"cannot download {' '.join(packages)}", cwd=folder)
    return glob.glob(f"{folder}/*.deb")


def kept(name):
    """Whether a file of linux-source is unpacked for module builds."""
    return KEEP.match(name) or os.path.basename(name).startswith("Kconfig")


def unpack_source(archive, series, target, wanted):
    """Unpacks the part of linux-source that `wanted` says yes to."""
    inner = f"./usr/src/linux-source-{series}.tar.xz"
    pipe = f"dpkg-deb --fsys-tarfile {archive} | tar -xO {inner} | xz -dc"
    with subprocess.Popen(
        ["bash", "-o", "pipefail", "-c", pipe], stdout=subprocess.PIPE
    ) as process:
        with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
            for member in tar:
                _, _, name = member.name.partition("/")
                if name and wanted(name):
                    member.name = name
                    tar.extract(member, target, filter="tar")
        process.stdout.read()
    if process.returncode:
        raise StepError(f"cannot unpack {archive}")


def check_compiler(config):
    """Rust's metadata has to come from the very compiler that built the kernel."""
    with open(config, encoding="utf-8") as file:
        text = file.read()
    if "CONFIG_RUST=y" not in text:
        raise StepError(f"{config}: this kernel has no CONFIG_RUST")
    wanted = re.search(r'CONFIG_RUSTC_VERSION_TEXT="(.*)"', text)[1]
    have = output("rustc", "--version").strip()
    if wanted != have:
        raise StepError(f"the kernel was built by '{wanted}', and the root has '{have}'")


def prepare_tree(kernel, work):
    """Makes the O= tree: the stock configuration and symbols, with Rust's metadata."""
    headers = f"{work}/headers/usr/src/linux-headers-{kernel.release}"
    check_compiler(f"{headers}/.config")
    must(
        [f"{steps.TOP}/tools/kernels/prepare-tree", headers, kernel.source, kernel.build],
        f"prepare-{kernel.series}.log",
        "cannot prepare the kernel tree",
        env={"JOBS": str(JOBS)},
    )


def prepare_boot(kernel, work):
    """Unpacks what boots: the stock kernel and its modules."""
    packages = [f"linux-{part}-{kernel.release}={kernel.version}" for part in ("binary", "modules")]
    if kernel.version in versions(f"linux-base-{kernel.release}"):
        packages.append(f"linux-base-{kernel.release}={kernel.version}")
    for archive in download(f"{work}/boot", *packages):
        must(
            ["dpkg-deb", "-x", archive, f"{kernel.folder}/boot"],
            "unpack.log",
            "cannot unpack the kernel",
        )
    must(
        ["depmod", "-b", f"{kernel.folder}/boot/usr", kernel.release], "depmod.log", "depmod failed"
    )
    # The last step, so that its result stands for all of them. On arm64 it is not compressed.
    extract = f"{kernel.source}/scripts/extract-vmlinux" if TARGET.image == "vmlinux" else "cat"
    with open(kernel.vmlinux + ".new", "wb") as file:
        subprocess.run([extract, kernel.vmlinuz],
                       stdout=file, stderr=subprocess.DEVNULL, check=True)
    os.rename(kernel.vmlinux + ".new", kernel.vmlinux)


def prepare_kernel(kernel):
    """Makes what is not complete of the kernel's folder in the cache. A kernel's binary may come
    later."""
    stamp, work = f"{kernel.folder}/complete", f"{kernel.folder}/work"
    if not os.path.exists(stamp):
        need_space(3, CACHE, f"the tree of {kernel.release}")
        shutil.rmtree(kernel.folder, ignore_errors=True)
        os.makedirs(kernel.folder)
        with step(f"downloading linux-headers and linux-source {kernel.version} (about 180 MB)"):
            source, = download(f"{work}/source", kernel.source_package)
            (headers,) = download(
                f"{work}/headers-deb", f"linux-headers-{kernel.release}={kernel.version}"
            )
            must(
                ["dpkg-deb", "-x", headers, f"{work}/headers"],
                "unpack.log",
                "cannot unpack the headers",
            )
        with step(f"unpacking the source of {kernel.release}"):
            unpack_source(source, kernel.plain_series, kernel.source, kept)
        with step(f"preparing the build tree of {kernel.release} (1 to 3 minutes)"):
            prepare_tree(kernel, work)
        with open(stamp, "w", encoding="ascii") as file:
            file.write(kernel.version + "\n")
    # What was unpacked before these were wanted.
    elif not all(os.path.exists(f"{kernel.source}/{name}") for name in CHANGED_TOO):
        with step(f"downloading linux-source {kernel.version} for {', '.join(CHANGED_TOO)}"):
            source, = download(f"{work}/source", kernel.source_package)
            unpack_source(source, kernel.plain_series, kernel.source, CHANGED_TOO.__contains__)
    if kernel.bootable and not os.path.exists(kernel.vmlinux):
        shutil.rmtree(f"{kernel.folder}/boot", ignore_errors=True)
        with step(f"downloading the kernel and modules of {kernel.release} (about 180 MB)"):
            prepare_boot(kernel, work)
    shutil.rmtree(work, ignore_errors=True)
    os.utime(kernel.folder)


def xen_member(names):
    """Which of its package's files is the hypervisor as QEMU takes it: beside it there may be its
    configuration, and what UEFI starts."""
    found = [name for name in names if XEN_IMAGE.fullmatch(name)]
    if len(found) != 1:
        raise StepError(f"{XEN} has not one image of Xen: {', '.join(found or names)}")
    return found[0]


def xen_image(version):
    """The hypervisor, uncompressed; its package is only unpacked, since to install it would touch a
    boot loader."""
    folder = f"{CACHE}/xen{SUFFIX}-{version.replace('~', '_')}-{XEN_RECIPE}"
    image = f"{folder}/xen"
    if not os.path.exists(image):
        archive, = download(f"{folder}.new", f"{XEN}={version}")
        must(["dpkg-deb", "-x", archive, f"{folder}.new/files"], "xen.log", "cannot unpack Xen")
        boot = f"{folder}.new/files/boot"
        with open(f"{boot}/{xen_member(os.listdir(boot))}", "rb") as file:
            data = file.read()
        with open(f"{folder}.new/xen", "wb") as file:
            file.write(gzip.decompress(data) if data.startswith(GZIP) else data)
        shutil.rmtree(f"{folder}.new/files")
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(f"{folder}.new", folder)
    return image


def forget_old(kernels):
    """Removes kernels that no run used for two weeks."""
    for folder in glob.glob(f"{CACHE}/kernel-*") + glob.glob(f"{CACHE}/sysroot-*"):
        if folder not in [kernel.folder for kernel in kernels] and \
                os.path.getmtime(folder) < time.time() - 2 * FRESH:
            shutil.rmtree(folder)


def locked_packages():
    """The versions of the root's packages that results depend on."""
    lines = output("dpkg-query", "-W", "-f", "${Package} = ${Version}\n", *LOCKED).splitlines()
    return dict(line.split(" = ", 1) for line in lines)


def write_lock(kernels, xen_version):
    """Writes the versions of all that the run is made of."""
    os.makedirs(steps.REPORT, exist_ok=True)
    lines = [f"linux-{kernel.series} = {kernel.version} ({kernel.release})" for kernel in kernels]
    lines.append(f"{XEN} = {xen_version}")
    lines += [f"{name} = {version}" for name, version in locked_packages().items()]
    with open(f"{steps.REPORT}/versions{SUFFIX}.lock", "w", encoding="ascii") as file:
        file.write("".join(line + "\n" for line in lines))


@dataclasses.dataclass
class Prepared:
    """What can be built for and booted: the kernels, newest first; the path of Xen; and why others
    could not be prepared, by their names."""

    kernels: list
    xen: str
    failed: dict


def chosen(kernels):
    """The kernels of a run, newest first. KERNEL=7.2 puts that one first; one that is newer than
    what this was ever tried with comes last. A run in short has the newest alone."""
    first = os.environ.get("KERNEL")
    ordered = sorted(
        kernels, key=lambda kernel: (kernel.number > LAST_KNOWN, [-part for part in kernel.number],
                                     kernel.series)
    )
    if first and first not in [kernel.series for kernel in kernels]:
        raise StepError(
            f"KERNEL={first}: the archive has {', '.join(kernel.series for kernel in ordered)}"
        )
    if os.environ.get("XT_SHORT"):
        return [kernel for kernel in ordered if kernel.number == ordered[0].number]
    return sorted(ordered, key=lambda kernel: kernel.series != first)


def of_lock(path):
    """What a versions.lock of an earlier run says: the kernels and Xen, as resolve() would find
    them."""
    with open(path, encoding="ascii") as file:
        lines = dict(line.strip().split(" = ", 1) for line in file if " = " in line)
    kernels = []
    for name, value in lines.items():
        if match := re.fullmatch(r"linux-(\d+\.\d+(-\d+k)?)", name):
            version, _, release = value.partition(" ")
            kernels.append(dataclasses.asdict(Kernel(release.strip("()"), match[1], version, True)))
    differ = [f"{name} {lines[name]} (here {have})" for name, have in locked_packages().items()
              if lines.get(name, have) != have]
    if differ:
        raise StepError(
            f"{path} wants another root: {', '.join(differ)}. DEBIAN_MIRROR= may be a snapshot of"
            " the archive that has them: that makes a root of its own"
        )
    if not kernels or XEN not in lines:
        raise StepError(f"{path} is no versions.lock: it names no kernel, or no {XEN}")
    return {"kernels": kernels, "xen": lines[XEN]}


def resolved():
    """The kernels and Xen as the archive has them; what was found last where that does not
    answer."""
    if lock := os.environ.get("XT_VERSIONS"):
        return of_lock(lock)
    # By the root, too: one that was just made has no index to download by.
    root = os.stat("/").st_ino
    known = (
        f"{CACHE}/resolved{SUFFIX}-"
        f"{output('dpkg-query', '-W', '-f', '${Version}', 'rustc')}-{root}.json"
    )
    age = time.time() - os.path.getmtime(known) if os.path.exists(known) else None
    if age is None or age > FRESH or os.environ.get("COLD"):
        try:
            with step("reading the archive's index"):
                # Where there is nothing else to go on with, an archive that is away for minutes is
                # waited for: four of them.
                update_index(12 if age is None else 1)
                found = {
                    "kernels": [dataclasses.asdict(kernel) for kernel in resolve()],
                    "xen": versions(XEN)[0],
                }
            with open(known + ".new", "w", encoding="ascii") as file:
                json.dump(found, file)
            os.rename(known + ".new", known)
        except StepError as why:
            if age is None:
                raise
            print(f"    {why}: going on with what was found {age / 86400:.0f} days ago", flush=True)
    with open(known, encoding="ascii") as file:
        return json.load(file)


def forget_all():
    """COLD=1: the kernels, Xen, other architectures' programs and dom0's disks are made anew. The
    lock on the cache's users, which is held by tools/env/run, is for this run alone until then."""
    for name in ("kernel", "xen", "sysroot"):
        for path in glob.glob(f"{CACHE}/{name}-*"):
            shutil.rmtree(path)
    for path in glob.glob(f"{CACHE}/dom0-*.img"):
        os.unlink(path)
    users = int(os.environ["XT_USERS"])
    fcntl.flock(users, fcntl.LOCK_SH)


def prepare():
    """The kernels, ready to be built for, and Xen. A kernel that cannot be prepared is left out,
    and the others go on."""
    ready, failed = [], {}
    with open(f"{CACHE}/lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.environ.get("COLD"):
            forget_all()
        found = resolved()
        kernels = chosen([Kernel(**fields) for fields in found["kernels"]])
        for kernel in kernels:
            try:
                prepare_kernel(kernel)
                ready.append(kernel)
            except (StepError, OSError) as why:
                print(f"error: {kernel.release}: {why}", flush=True)
                failed[kernel.release] = str(why)
        xen = xen_image(found["xen"])
        sysroot.make()
        forget_old(kernels)
    if not any(kernel.bootable for kernel in ready):
        raise StepError(
            f"no kernel can be booted: {failed or 'none of them has its binary package'}"
        )
    write_lock(ready, found["xen"])
    return Prepared(ready, xen, failed)
