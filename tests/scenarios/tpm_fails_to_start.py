# SPDX-License-Identifier: GPL-2.0
"""A vTPM that cannot start: xl says so soon, the reason is in xenstore, and nothing is left."""

import time

from testbed import wait
from testbed.guest import Guest
from testbed.report import Failure
from testbed.toolstack import was_slow

SETS = ("test",)

ERROR = "/local/domain/0/error/backend/vtpm"
# xl itself waits 10 s for a backend, and says so.
SOON = 10
# The swtpm that says nothing ends after 25 s.
SILENT, LATER = 25, 60


def told(bed, reason):
    """The reason is in xenstore; it is removed there."""
    found = bed.machine.must(f"for node in $(xenstore-ls -fp {ERROR} | sed -n 's/ = .*//p'); do "
                             "xenstore-read $node; done")
    if reason not in found:
        raise Failure(f"{ERROR} has {found!r}")
    bed.machine.must(f"xenstore-rm {ERROR}")
    return found.strip()


def create_fails(bed, guest, reason):
    """xl create fails soon: there is no state that a TPM could start on."""
    start = time.monotonic()
    code, output = bed.machine.run(guest.create, 60)
    seconds = time.monotonic() - start
    if not code:
        raise Failure("xl create succeeded")
    if was_slow(seconds, output, SOON):
        raise Failure(f"it took {seconds:.1f} s: {output}")
    return f"{seconds:.1f} s: {told(bed, reason)}"


def closes(bed, guest, reason):
    """xl create succeeds, since the state is there and nobody else has it; what fails after that
    closes the vTPM."""
    bed.machine.must(guest.create, 60)
    domid = bed.machine.must(f"xl domid {guest.name}").strip()
    state = f"xenstore-read /local/domain/0/backend/vtpm/{domid}/0/state 2>/dev/null"
    wait.until(lambda: bed.machine.run(state)[1].strip() in ("6", ""), LATER,
               lambda: f"the vTPM's state is {bed.machine.run(state)[1].strip()}")
    return told(bed, reason)


def nothing_left(bed, guest):
    """No domain, no node and, after a while, no process."""
    bed.machine.run(f"xl destroy {guest.name}")
    code, output = bed.machine.run(
        "for i in $(seq 30); do pidof swtpm swtpm_setup || break; sleep 1; done; xenstore-ls -f"
        " /local/domain/0/backend/vtpm 2>/dev/null; xl list | tail -n +3; pidof swtpm swtpm_setup"
    )
    if code == 0 or output.strip():
        raise Failure(output)


def run(bed):
    """State that is none; an swtpm that says nothing; and then one that works."""
    vtpm = bed.vtpm("2.0")
    bed.boot([vtpm])
    guest = Guest(bed.machine, "no_start", [vtpm], memory=300)
    guest.write_config()
    state = f"/var/lib/xen-vtpmd/{vtpm.uuid}"
    bed.machine.must(f"mv {state} {state}.good; mkdir {state}; echo junk >{state}/tpm2-00.permall")
    bed.record("no_start: broken state: xl create fails with a reason", create_fails, bed, guest,
               "restore it from a backup")
    bed.machine.must(f"rm -r {state}; mv {state}.good {state}")
    bed.record("no_start: broken state: nothing is left", nothing_left, bed, guest)
    bed.machine.must(f"mv /usr/bin/swtpm /run/swtpm; printf '#!/bin/sh\\nexec sleep {SILENT}\\n' "
                     ">/usr/bin/swtpm; chmod 755 /usr/bin/swtpm")
    bed.record("no_start: silent swtpm: the vTPM closes with a reason", closes, bed, guest, "swtpm")
    bed.machine.must("mv /run/swtpm /usr/bin/swtpm")
    bed.record("no_start: silent swtpm: nothing is left", nothing_left, bed, guest)
    bed.machine.must(f"{guest.create} && xl destroy {guest.name}", 60)
