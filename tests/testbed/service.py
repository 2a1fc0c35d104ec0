# SPDX-License-Identifier: GPL-2.0
"""A dom0 with systemd that the package is installed in: its unit, the one swtpm, and the guest that
a reader of the README has already."""

from testbed.guest import Guest
from testbed.report import Failure

UNIT = "xen-vtpmd.service"


def future_guest(bed):
    """The guest that is to get a vTPM, as its configuration."""
    # What the README's reader has already, where xen-vtpmd's profile lets it measure them. xl maps
    # these files, which takes long from the shared folder.
    bed.machine.must(
        "mkdir -p /srv/boot && mount -t tmpfs tmpfs /srv/boot && cp -r /host/boot/. /srv/boot"
    )
    guest = Guest(
        bed.machine,
        "guest",
        kernel="'/srv/boot/vmlinux'",
        ramdisk="'/srv/boot/guest.cpio'",
        options="bed.driver=rust bed.tpms=2.0",
    )
    guest.config = "/etc/xen/guest.cfg"
    guest.write_config()
    return guest


def show(bed, *names):
    """Properties of the unit."""
    text = bed.machine.must(f"systemctl show {UNIT} -p {','.join(names)}")
    found = dict(line.split("=", 1) for line in text.splitlines())
    return [found[name] for name in names]


def swtpm_status(bed):
    """The only swtpm: its process, and what the kernel says of it."""
    pid = bed.machine.must("pidof swtpm").strip()
    if not pid.isdigit():
        raise Failure(f"not one swtpm: {pid}")
    return pid, dict(
        line.split(":\t", 1)
        for line in bed.machine.must(f"cat /proc/{pid}/status").splitlines()
        if ":\t" in line
    )
