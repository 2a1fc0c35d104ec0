# SPDX-License-Identifier: GPL-2.0
"""The architectures that kernels, modules and packages are made for, and what differs between them.
ARCH=arm64 takes that one; on another host its programs are cross-built, and run in QEMU alone."""

import dataclasses
import os
import platform


@dataclasses.dataclass(frozen=True)
class Arch:
    """One of them. Debian's name and GNU's triplet; the kernel's directory in arch/, what of its
    build is booted, Debian's flavours of the kernel, the first one first; what QEMU is called, and
    Cargo's target."""

    name: str
    triplet: str
    kernel: str
    image: str
    flavours: tuple
    emulator: str
    qemu_package: str
    cargo: str

    @property
    def foreign(self):
        """Whether this host's processor does not run its programs."""
        return self.name != HOST


ARCHES = {
    "amd64": Arch("amd64", "x86_64-linux-gnu", "x86", "vmlinux", ("amd64",),
                  "qemu-system-x86_64", "qemu-system-x86", "x86_64-unknown-linux-gnu"),
    # The second has pages of 16 KiB.
    "arm64": Arch("arm64", "aarch64-linux-gnu", "arm64", "arch/arm64/boot/Image",
                  ("arm64", "arm64-16k"), "qemu-system-aarch64", "qemu-system-arm",
                  "aarch64-unknown-linux-gnu"),
}
HOST = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), "amd64")
TARGET = ARCHES[os.environ.get("XT_ARCH") or HOST]
# In front of the names of gcc and binutils for it.
TOOLS = f"{TARGET.triplet}-" if TARGET.foreign else ""
# What follows the name of what is made for it, where that could be taken for the host's.
SUFFIX = f"-{TARGET.name}" if TARGET.foreign else ""
