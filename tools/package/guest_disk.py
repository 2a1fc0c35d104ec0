# SPDX-License-Identifier: GPL-2.0
"""A Debian guest on a disk, with systemd, a stock kernel's modules, and the driver's packages as
a user's command installs them; its root may be encrypted."""

import hashlib
import os
import shutil

from tools.package import debian
from tools.package.deb import guest_debs
from tools.steps import CACHE, must, need_space, output, step

# What the guest is asked for, beside what every system has.
PACKAGES = "systemd-sysv,udev,dbus,kmod,procps,initramfs-tools,zstd,cryptsetup-bin," \
    "systemd-cryptsetup,e2fsprogs,openssl,tpm2-tools,tpm-udev,libtss2-tcti-device0t64," \
    "cryptsetup-initramfs,clevis-luks,clevis-tpm2,clevis-initramfs,dracut-core"
SIZE = "3G"

# Of an encrypted root: smaller, since all of it is written.
LUKS_SIZE = "1536M"
LUKS_UUID = "6d1f3e52-6c1d-4b0e-9a43-0d3a7a1b2c4e"
PASSPHRASE = "passphrase"
# What unlocks it in the initrd: who makes that, and what the kernel is told.
BY_CLEVIS = ("initramfs-tools", "cryptopts=target=root,source=/dev/xvda")
BY_SYSTEMD = (
    "dracut",
    f"rd.luks.name={LUKS_UUID}=root rd.luks.options={LUKS_UUID}=tpm2-device=auto",
)

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
    printf "%s\\n" xen-blkfront ext4 dm-crypt xts >>/etc/initramfs-tools/modules
    echo CRYPTSETUP=y >>/etc/cryptsetup-initramfs/conf-hook
    uname() { [ "$*" = -r ] && echo $RELEASE; }
    cd /packages
    eval "$INSTALLS"
    cd /
    rm -r /packages
    case $INITRD_BY in
    initramfs-tools) update-initramfs -c -k $RELEASE ;;
    dracut)
        dracut --quiet --no-hostonly --add "crypt tpm2-tss" --add-drivers xen-blkfront \\
            /boot/initrd.img-$RELEASE $RELEASE
        ;;
    esac
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


def base(programs=""):
    """The system with these `programs`, without our packages and without a kernel, made once, as a
    tar archive."""
    packages = f"{PACKAGES},{programs}".rstrip(",")
    parts = [packages, *debian.UNREAD, output("dpkg-query", "-W", "libc6", "mmdebstrap")]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
    path = f"{CACHE}/guest-{key}.tar"
    # Its ending says to mmdebstrap that it is to be an archive.
    new = f"{CACHE}/new-{os.getpid()}.tar"
    if not os.path.exists(path):
        need_space(2, CACHE, "a Debian system for a guest")
        with step("making a Debian system for a guest (about 100 MB to download, 3 minutes)"):
            debian.make(packages, new)
            os.rename(new, path)
    debian.keep(path, "guest-*.tar")
    return path


def encrypt(folder, disk):
    """Makes a file system the content of a LUKS volume."""
    with open(f"{folder}/passphrase", "w", encoding="ascii") as file:
        file.write(PASSPHRASE)
    must(["truncate", "-s", "+32M", disk], "guest.log", "the guest's disk cannot be larger")
    must(
        ["cryptsetup", "reencrypt", "--encrypt", "--batch-mode", "--type=luks2",
         f"--uuid={LUKS_UUID}", "--reduce-device-size=32M", f"--key-file={folder}/passphrase",
         "--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000", disk],
        "guest.log",
        "the guest's disk cannot be encrypted",
    )


def make(folder, kernel, bed, installs, programs="", unlocked=None):
    """Makes the guest in `folder`, with the files of `bed` in /bed, with these `programs`, and with
    what the command `installs` makes of the driver's packages: returns its disk and its initrd. An
    encrypted root is `unlocked` BY_CLEVIS or BY_SYSTEMD."""
    initrd_by, _ = unlocked or BY_CLEVIS
    root = "/dev/mapper/root" if unlocked else "/dev/xvda"
    tree, disk = f"{folder}/tree", f"{folder}/guest.img"
    shutil.rmtree(tree, ignore_errors=True)
    os.makedirs(tree)
    try:
        must(["tar", "-C", tree, "-xf", base(programs)], "guest.log",
             "the system cannot be unpacked")
        shutil.copytree(kernel.modules, f"{tree}/usr/lib/modules/{kernel.release}", symlinks=True)
        shutil.copy(f"{kernel.build}/.config", f"{tree}/boot/config-{kernel.release}")
        shutil.copytree(bed, f"{tree}/bed")
        os.makedirs(f"{tree}/packages")
        for deb in guest_debs(kernel.release):
            shutil.copy(deb, f"{tree}/packages")
        for path, text in {
            "etc/systemd/system/testbed.service": SERVICE,
            "etc/fstab": f"{root} / ext4 defaults 0 0\n",
            "etc/hostname": "guest\n",
            "etc/hosts": "127.0.0.1 localhost\n",
            "etc/machine-id": "",
        }.items():
            with open(f"{tree}/{path}", "w", encoding="utf-8") as file:
                file.write(text)
        must(
            ["unshare", "--mount", "--fork", "--kill-child", "sh", "-c", INSTALL, "sh", tree],
            "guest.log",
            "the driver's packages cannot be installed in the guest",
            env={"RELEASE": kernel.release, "INSTALLS": installs, "INITRD_BY": initrd_by,
                 "DEBIAN_FRONTEND": "noninteractive"},
        )
        initrd = f"{folder}/initrd"
        shutil.copy(f"{tree}/boot/initrd.img-{kernel.release}", initrd)
        must(["mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, disk,
              LUKS_SIZE if unlocked else SIZE], "guest.log", "the guest's disk cannot be made")
    finally:
        shutil.rmtree(tree, ignore_errors=True)
    if unlocked:
        encrypt(folder, disk)
    return disk, initrd
