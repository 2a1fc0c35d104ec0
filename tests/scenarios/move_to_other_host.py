# SPDX-License-Identifier: GPL-2.0
"""A guest moves to another host with its TPM: saved and exported on the one, imported and restored
on the other."""

import os
import re

from testbed.guest import Guest
from testbed.report import Failure
from testbed.testbed import Testbed

SETS = ("deep",)
NEEDS = ("save",)

STATE = "/var/lib/xen-vtpmd"
# In the folder that dom0 shares with the host: what is carried from the one machine to the other.
SAVED, EXPORTED = "moving.save", "moving.vtpm"


def must_refuse(machine, command, pattern):
    """The daemon's command fails, and says why."""
    code, output = machine.run(command)
    if code == 0 or not re.search(pattern, output):
        raise Failure(f"{command!r} ended with {code}: {output!r}, not like /{pattern}/")
    return output.strip()


def in_use(bed, vtpm):
    """A vTPM that a guest has is not exported, and nothing is written."""
    machine = bed.machine
    said = must_refuse(
        machine,
        f"xen-vtpmd export {vtpm.uuid} /host/{EXPORTED}",
        "is in use by another process or host",
    )
    machine.must(f"[ -e {STATE}/{vtpm.uuid}/tpm2-00.permall ] && [ ! -e /host/{EXPORTED} ]")
    return said


def leave(bed, guest):
    """Saves and exports; nothing of the vTPM stays."""
    machine, uuid = bed.machine, guest.vtpms[0].uuid
    # Through a pipe: another domain's pages cannot be written to the shared folder directly, and
    # that folder is slow unless much is written at once.
    machine.must(f"mkfifo /run/pipe; dd if=/run/pipe of=/host/{SAVED} bs=1M iflag=fullblock & "
                 f"xl save {guest.name} /run/pipe && wait", 240)
    machine.must(f"xen-vtpmd export {uuid} /host/{EXPORTED}")
    left = machine.must(
        f"ls -A {STATE} | grep {uuid} | grep -v lock; ls /run/xen-vtpmd | grep {uuid}; pidof swtpm"
        " || :"
    )
    if left.strip():
        raise Failure(f"there is still {left}")
    return must_refuse(machine, f"xen-vtpmd export {uuid} /host/again", f"{uuid} has no state here")


def arrive(other, guest):
    """Imports and restores."""
    machine, uuid = other.machine, guest.vtpms[0].uuid
    found = machine.must(f"xen-vtpmd import /host/{EXPORTED}").strip()
    if found != uuid:
        raise Failure(f"{found} was imported, not {uuid}")
    said = must_refuse(
        machine, f"xen-vtpmd import /host/{EXPORTED}", f"{uuid} has a state here already"
    )
    machine.must(
        f"mkfifo /run/pipe; dd if=/host/{SAVED} of=/run/pipe bs=1M & xl restore /run/pipe", 240
    )
    guest.attach()
    return said


def run(bed):
    """One machine is there at a time, as the guest is."""
    vtpm = bed.vtpm("2.0")
    bed.boot([vtpm])
    home = Guest(bed.machine, "moving", [vtpm], memory=400, options="bed.driver=rust bed.tpms=2.0")
    home.start()
    bed.checks(home, "module_loads", "save_prepare", "save_goes_on")
    bed.record("a vTPM in use is not exported", in_use, bed, vtpm)
    if not bed.record("xl save, xen-vtpmd export", leave, bed, home):
        return
    bed.stop()

    other = Testbed(bed.report, bed.kernel, bed.xen, "moving")
    other.work = f"{bed.work}-other"
    try:
        other.boot([])
        for name in (SAVED, EXPORTED):
            os.rename(f"{bed.machine.share}/{name}", f"{other.machine.share}/{name}")
        guest = Guest(other.machine, "moving", [vtpm])
        if not other.record("xen-vtpmd import, xl restore", arrive, other, guest):
            return
        other.checks(guest, "save_kept", "save_goes_on", "kernel_log")
        other.record("the guest shuts down there", guest.shutdown)
    finally:
        other.stop()
