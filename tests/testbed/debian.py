# SPDX-License-Identifier: GPL-2.0
"""A Debian guest with systemd on a disk, the driver from its packages as README installs it: how it
is made and started, and what it says."""

import os
import re

from testbed import readme, wait
from testbed.guest import Guest
from testbed.report import Failure
from testbed.toolstack import serve_disks
from tools.package import guest_disk
from tools.package.deb import build_guest_debs
from tools.steps import TOP, must

# A whole Debian takes minutes to boot under emulation.
BOOT_LIMIT = 600
INITRD = "/boot/debian.initrd"
# What systemd and dracut wait for by themselves (s): their defaults, on a host that is not slow.
OWN_LIMITS = {
    "systemd.default_timeout_start_sec": 90,
    "systemd.default_device_timeout_sec": 90,
    "rd.retry": 180,
}


def boot(bed, vtpms, empty=(), **how):
    """Makes the guest's disk, and boots dom0, which serves that as its first disk, with empty ones
    of these sizes after it. `how` is for guest_disk.make."""
    folder = f"{bed.work}-images"
    os.makedirs(folder, exist_ok=True)
    build_guest_debs([bed.kernel])
    _, (installs, _) = readme.commands()
    disk, initrd = guest_disk.make(folder, bed.kernel, f"{TOP}/tests/guest", installs, **how)
    disks = [disk, *(f"{folder}/{number}.img" for number, _ in enumerate(empty, 1))]
    for path, size in zip(disks[1:], empty):
        must(["truncate", "-s", size, path], "guest.log", "no disk")
    bed.boot(vtpms, dom0_memory=1792, files={INITRD: initrd}, disks=disks)
    serve_disks(bed.machine)


def guest(bed, vtpms, options="root=/dev/xvda", **more):
    """The guest, with the disks that dom0 serves. There may be `more` of its configuration."""
    letters = "abcd"[: len(bed.machine.disks)]
    limits = [f"{name}={wait.stretch(seconds):.0f}" for name, seconds in OWN_LIMITS.items()]
    return Guest(
        bed.machine,
        "debian",
        vtpms,
        ramdisk=f"'{INITRD}'",
        disk=[f"phy:/dev/vd{letter},xvd{letter},w" for letter in letters],
        extra=f"'console=hvc0 rw quiet systemd.show_status=false {' '.join(limits)} {options}'",
        on_reboot="'restart'",
        start_limit=BOOT_LIMIT,
        **{"memory": 1024, **more},
    )


def says(debian, script, pattern, limit=120):
    """The script's output is like this."""
    found = debian.must(script, limit).strip()
    if not re.fullmatch(pattern, found, re.DOTALL):
        raise Failure(f"{script!r} says {found!r}, not {pattern!r}")
    return found


def reboots(bed, debian):
    """By xl, to the same kernel."""
    bed.machine.must(f"xl reboot -w {debian.name}", 300)
    debian.wait_ready(anew=True)


def ends(debian):
    """It shuts down, and xl takes it away."""
    debian.shutdown(300)
    wait.until(lambda: not debian.alive(), 30, lambda: "the domain is still there")
