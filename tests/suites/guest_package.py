# SPDX-License-Identifier: GPL-2.0
"""The driver's Debian packages: installed, upgraded, removed and purged in a Debian system that is
not made for them (the root, under an overlay that is thrown away), with a stock kernel's
modules."""

import glob
import os
import re
import subprocess

from suites.package import lintian
from testbed.report import Failure
from tools.arch import TARGET
from tools.package.deb import FOLDER, GUEST, build_guest_debs, deb, guest_debs
from tools.steps import BUILD, need_space, ordinary_user, output

FILES = {
    "xen-tpmfront-common": (
        "usr/lib/dracut/dracut.conf.d/50-xen-tpmfront.conf",
        "usr/lib/modules-load.d/xen-tpmfront.conf",
        "usr/lib/udev/rules.d/60-xen-tpmfront.rules",
        "usr/share/initramfs-tools/hooks/xen-tpmfront",
    ),
    "xen-tpmfront-dkms": ("dkms.conf", "dkms-build", "Kbuild", "src/xen_tpmfront.rs"),
}
# A module with its debug information has 2 MB.
MOST_KIB = 300

# Of the stock modules, what a TPM's driver is among.
FEW = "modules.order modules.builtin modules.builtin.modinfo kernel/drivers/char"

# The root with an overlay, and in it the packages and a stock kernel. What it writes is gone with
# the mounts, and those are gone with the process.
SYSTEM = """
set -e
mount --make-rprivate /
mount -t tmpfs -o size=6G tmpfs "$1"
cd "$1"
mkdir upper work system
mount -t overlay overlay -o lowerdir=/,upperdir=$PWD/upper,workdir=$PWD/work$OVERLAY system
cd system
mount --rbind /dev dev
mount -t proc proc proc 2>/dev/null || mount --rbind /proc proc
mount -t tmpfs tmpfs tmp
mkdir -p "usr/lib/modules/$RELEASE" packages
(cd "$2" && cp -a --parents $PARTS "$OLDPWD/usr/lib/modules/$RELEASE")
cp "$3" "boot/config-$RELEASE"
cp "$4"/*.deb packages
cd packages
exec chroot .. sh -ec "cd /packages; depmod -a $RELEASE; $5"
"""


def in_system(kernel, script, seconds=600, parts="."):
    """The output of a script in such a system, with these parts of the kernel's modules; it has
    $RELEASE, $MODULES and $COMMON, which are the
    packages, and `driver`, which says which module modprobe takes for a vTPM."""
    need_space(1, BUILD, "a system for the packages")
    where = f"{BUILD}/system"
    os.makedirs(where, exist_ok=True)
    common, modules = map(os.path.basename, guest_debs(kernel.release))
    words = (
        "driver() { modprobe -S $RELEASE -D xen:vtpm | tail -n 1 | sed 's/^insmod //; s/ *$//'; }\n"
    )
    command = ["unshare", "--mount", "--fork", "--kill-child", "sh", "-c", SYSTEM, "sh", where,
               kernel.modules, f"{kernel.build}/.config", FOLDER, words + script]
    # An ordinary user's root may set no trusted attributes, which new directories need.
    overlay = ",userxattr" if ordinary_user() else ""
    environment = {"OVERLAY": overlay, "RELEASE": kernel.release, "COMMON": common,
                   "MODULES": modules, "PARTS": parts,
                   "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds,
        env={**os.environ, **environment},
    )
    if done.returncode:
        raise Failure(f"it ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def built(kernels):
    """They are built, and have what they should."""
    paths = build_guest_debs(kernels)
    for name, files in FILES.items():
        listing = output("dpkg-deb", "-c", deb(name, GUEST, "all"))
        missing = [file for file in files if not re.search(rf"/{re.escape(file)}$", listing, re.M)]
        if missing:
            raise Failure(f"not in {name}: {', '.join(missing)}")
    for kernel in kernels:
        listing = output("dpkg-deb", "-c", guest_debs(kernel.release)[1])
        size = re.search(rf"(\d+) \S+ \S+ \./usr/lib/modules/{re.escape(kernel.release)}/updates/"
                         r"xen-tpmfront\.ko$", listing, re.MULTILINE)
        if not size or int(size[1]) > MOST_KIB << 10:
            raise Failure(f"the module for {kernel.release}: {listing}")
    return f"{len(paths)} packages"


# Prints which module a vTPM gets before the packages, with them, upgraded, and after; and what is
# left.
LIFE = """
driver
mkdir /tmp/old
for package in $COMMON $MODULES; do
    dpkg-deb -R $package /tmp/old/$package
    sed -i 's/^Version: .*/Version: 0.1.9/; s/(= [^)]*)/(= 0.1.9)/' /tmp/old/$package/DEBIAN/control
    dpkg-deb -b /tmp/old/$package /tmp/old-$package >/dev/null
done
dpkg -i /tmp/old-$COMMON /tmp/old-$MODULES >&2
driver
dpkg -i $COMMON $MODULES >&2
driver
dpkg -r xen-tpmfront-modules-$RELEASE >&2
driver
dpkg --purge xen-tpmfront-modules-$RELEASE xen-tpmfront-common >&2
find / -xdev -newer /tmp/old -name '*xen-tpmfront*' -not -path '/var/cache/*' \\
    -not -path '/var/lib/dpkg/*'
"""


def life(kernels):
    """Installed, upgraded from the version before, removed and purged: modprobe takes our module
    while it is there and the stock one, if there is one, before and after, and nothing is left."""
    for kernel in kernels:
        lines = in_system(kernel, LIFE, parts=FEW).splitlines()
        modules = f"/lib/modules/{kernel.release}"
        stock = f"{modules}/kernel/drivers/char/tpm/xen-tpmfront.ko"
        wanted = [stock, *[f"{modules}/updates/xen-tpmfront.ko"] * 2, stock]
        # Debian's kernels for arm64 have no driver for a vTPM.
        if TARGET.name == "arm64":
            wanted = wanted[1:3]
        if [re.sub(r"\.(xz|zst)$", "", line) for line in lines] != wanted:
            raise Failure("\n".join(lines))


def names():
    """udev's rules give a vTPM a name by its number, and nothing else."""
    path = "usr/lib/udev/rules.d/60-xen-tpmfront.rules"
    rules = subprocess.run(
        ["sh", "-c", f"dpkg-deb --fsys-tarfile {deb('xen-tpmfront-common', GUEST, 'all')} |"
                     f" tar -xO ./{path} >{FOLDER}/60-xen-tpmfront.rules &&"
                     f" udevadm verify --no-style {FOLDER}/60-xen-tpmfront.rules"],
        capture_output=True, text=True, check=False)
    if rules.returncode:
        raise Failure(rules.stdout + rules.stderr)


def run(report, kernels):
    """Runs the suite."""
    suite = "guest_package"
    if not report.check(suite, "the driver's packages build", built, kernels):
        return
    report.check(suite, "lintian finds no error and no warning", lintian, "xen-tpmfront")
    report.check(suite, "udev takes the rules", names)
    report.check(suite, "modprobe takes the module from installation to removal", life, kernels)


INITRD = """
apt-get -q install -y --no-install-recommends initramfs-tools >&2
dpkg -i $COMMON $MODULES >&2
update-initramfs -c -k $RELEASE >&2
lsinitramfs /boot/initrd.img-$RELEASE | grep -o 'updates/xen-tpmfront.ko$'
unmkinitramfs /boot/initrd.img-$RELEASE /tmp/initrd
cat /tmp/initrd/conf/modules
apt-get -q install -y --no-install-recommends dracut >&2
for kind in hostonly no-hostonly; do
    dracut --quiet --$kind --force /boot/$kind $RELEASE >&2
    lsinitrd /boot/$kind | grep -o '[a-z]*/xen-tpmfront.ko$'
done
# At the module's removal the initrd goes back, too.
dracut --quiet --force /boot/initrd.img-$RELEASE $RELEASE >&2
dpkg --purge xen-tpmfront-modules-$RELEASE xen-tpmfront-common >&2
lsinitrd /boot/initrd.img-$RELEASE | grep -c 'updates/xen-tpmfront' || true
"""


def initrd(kernel):
    """The module is in the initrd of initramfs-tools and of dracut, loaded early; also in one that
    is made for another host."""
    found = [line for line in in_system(kernel, INITRD, 900).splitlines() if "xen" in line
             or line.isdigit()]
    if found != ["updates/xen-tpmfront.ko", "xen-tpmfront", *["updates/xen-tpmfront.ko"] * 2, "0"]:
        raise Failure("\n".join(found))


DKMS = """
apt-get -q install -y --no-install-recommends dkms >&2
apt-get -q install -y --no-install-recommends $COMMON_PATH ./xen-tpmfront-dkms_*_all.deb >&2
# Headers without linux-source: skipped, and the headers' installation succeeds.
apt-get -q install -y --no-install-recommends linux-headers-$RELEASE >/tmp/log 2>&1
grep -o 'linux-source-[0-9.]* to make it of is not installed' /tmp/log | sort -u
driver
apt-get -q install -y --no-install-recommends linux-source-$SERIES >&2
dkms autoinstall -k $RELEASE >&2
driver
du -k $(driver) | cut -f1
ls -d /var/tmp/xen-tpmfront* 2>/dev/null || true
# A kernel without Rust, and one that another rustc has built.
for other in norust rustc; do
    mkdir -p /lib/modules/8.0.0-$other/build/include
    cp /boot/config-$RELEASE /lib/modules/8.0.0-$other/build/.config
done
sed -i '/^CONFIG_RUST=/d' /lib/modules/8.0.0-norust/build/.config
sed -i 's/^CONFIG_RUSTC_VERSION_TEXT=.*/CONFIG_RUSTC_VERSION_TEXT="rustc 1.99.0"/' \
    /lib/modules/8.0.0-rustc/build/.config
for other in norust rustc; do
    dkms autoinstall -k 8.0.0-$other >/tmp/log 2>&1 && echo skipped
    grep -o 'has no CONFIG_RUST\\|was built by .rustc 1.99.0' /tmp/log | sort -u
done
dpkg --purge xen-tpmfront-dkms xen-tpmfront-common >&2
driver
ls -d /var/lib/dkms/xen-tpmfront /usr/src/xen-tpmfront* 2>/dev/null || true
"""


def dkms(kernel):
    """DKMS builds the module for a stock kernel, which modprobe then takes; a kernel that it cannot
    be built for is skipped with the reason; removal brings the stock one back."""
    script = DKMS.replace("$COMMON_PATH", "./$COMMON").replace("$SERIES", kernel.series)
    lines = in_system(kernel, script, 3600).splitlines()
    lines = [re.sub(r"\.(xz|zst)$", "", line) for line in lines]
    stock = f"/lib/modules/{kernel.release}/kernel/drivers/char/tpm/xen-tpmfront.ko"
    ours = f"/lib/modules/{kernel.release}/updates/dkms/xen-tpmfront.ko"
    size = lines.pop(3) if len(lines) > 3 else ""
    wanted = [f"linux-source-{kernel.series} to make it of is not installed", stock, ours,
              "skipped", "has no CONFIG_RUST", "skipped", "was built by 'rustc 1.99.0", stock]
    if lines != wanted or not size.isdigit() or int(size) > MOST_KIB:
        raise Failure("\n".join([*lines, size]))
    return f"{size} KiB installed"


def run_deep(report, kernels):
    """What installs other packages from the archive."""
    suite = "guest_package"
    if not glob.glob(f"{FOLDER}/xen-tpmfront-dkms_*.deb"):
        if not report.check(suite, "the driver's packages build", built, kernels):
            return
    newest = kernels[0]
    report.check(
        suite, "the module is in the initrds of initramfs-tools and dracut", initrd, newest
    )
    report.check(suite, "DKMS builds the module or says why not", dkms, newest)
