# SPDX-License-Identifier: GPL-2.0
"""A Debian guest on a disk, with systemd, a stock kernel's modules, and the driver's packages as
a user's command installs them."""

import hashlib
import os
import shutil

from tools.package import debian
from tools.package.deb import guest_debs
from tools.steps import CACHE, must, need_space, output, step

# What the guest is asked for, beside what every system has.
PACKAGES = "systemd-sysv,udev,dbus,kmod,procps,initramfs-tools,zstd,cryptsetup-bin," \
    "systemd-cryptsetup,e2fsprogs,openssl,tpm2-tools,tpm-udev,libtss2-tcti-device0t64"
SIZE = "3G"

# In a mount namespace of its own: what is mounted goes with it. The initrd has what this guest
# boots from, and what the driver's package adds. The kernel that runs is the host's.
INSTALL = """
set -e
mount --make-rprivate /
cd "$1"
mount --rbind /dev dev
mount -t proc proc proc 2>/dev/null || mount --rbind /proc proc
chroot . sh -ec '
    depmod -a $RELEASE
    sed -i s/^MODULES=.*/MODULES=list/ /etc/initramfs-tools/initramfs.conf
    printf "xen-blkfront\\next4\\n" >>/etc/initramfs-tools/modules
    uname() { [ "$*" = -r ] && echo $RELEASE; }
    cd /packages
    eval "$INSTALLS"
    cd /
    rm -r /packages
    update-initramfs -c -k $RELEASE
    systemctl enable testbed.service
    systemctl mask serial-getty@hvc0.service getty.target apt-daily.timer apt-daily-upgrade.timer
'
"""
SERVICE = """[Unit]
Description=commands of the testbed
After=multi-user.target

[Service]
Environment=HOME=/root
ExecStart=/bed/serve
StandardInput=tty
StandardOutput=tty
TTYPath=/dev/hvc0

[Install]
WantedBy=graphical.target multi-user.target
"""


def base():
    """The system without our packages and without a kernel, made once, as a tar archive."""
    parts = [PACKAGES, *debian.UNREAD, output("dpkg-query", "-W", "libc6", "mmdebstrap")]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
    path = f"{CACHE}/guest-{key}.tar"
    # Its ending says to mmdebstrap that it is to be an archive.
    new = f"{CACHE}/new-{os.getpid()}.tar"
    if not os.path.exists(path):
        need_space(2, CACHE, "a Debian system for a guest")
        with step("making a Debian system for a guest (about 100 MB to download, 3 minutes)"):
            debian.make(PACKAGES, new)
            os.rename(new, path)
    debian.keep(path, "guest-*.tar")
    return path


def make(folder, kernel, bed, installs):
    """Makes the guest in `folder`, with the files of `bed` in /bed and with what the command
    `installs` makes of the driver's packages: returns its disk and its initrd."""
    tree, disk = f"{folder}/tree", f"{folder}/guest.img"
    shutil.rmtree(tree, ignore_errors=True)
    os.makedirs(tree)
    try:
        must(["tar", "-C", tree, "-xf", base()], "guest.log", "the system cannot be unpacked")
        shutil.copytree(kernel.modules, f"{tree}/usr/lib/modules/{kernel.release}", symlinks=True)
        shutil.copy(f"{kernel.build}/.config", f"{tree}/boot/config-{kernel.release}")
        shutil.copytree(bed, f"{tree}/bed")
        os.makedirs(f"{tree}/packages")
        for deb in guest_debs(kernel.release):
            shutil.copy(deb, f"{tree}/packages")
        for path, text in {
            "etc/systemd/system/testbed.service": SERVICE,
            "etc/fstab": "/dev/xvda / ext4 defaults 0 0\n",
            "etc/hostname": "guest\n",
            "etc/machine-id": "",
        }.items():
            with open(f"{tree}/{path}", "w", encoding="utf-8") as file:
                file.write(text)
        must(
            ["unshare", "--mount", "--fork", "--kill-child", "sh", "-c", INSTALL, "sh", tree],
            "guest.log",
            "the driver's packages cannot be installed in the guest",
            env={"RELEASE": kernel.release, "INSTALLS": installs,
                 "DEBIAN_FRONTEND": "noninteractive"},
        )
        initrd = f"{folder}/initrd"
        shutil.copy(f"{tree}/boot/initrd.img-{kernel.release}", initrd)
        must(["mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, disk, SIZE], "guest.log",
             "the guest's disk cannot be made")
    finally:
        shutil.rmtree(tree, ignore_errors=True)
    return disk, initrd
