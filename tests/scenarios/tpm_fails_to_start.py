# SPDX-License-Identifier: GPL-2.0
"""A vTPM that cannot start: xl says so soon, the reason is in xenstore, and nothing is left."""

import time

from testbed.guest import Guest
from testbed.report import Failure

SETS = ("test",)

ERROR = "/local/domain/0/error/backend/vtpm"
# xl itself waits 10 s for a backend: what takes less did not end by that. The daemon gives up after
# 9 s, and making a domain takes some time as well.
SOON, BEFORE_XL = 10, 20


def create_fails(bed, guest, limit, reason):
    """xl create fails within `limit` seconds, and the reason is in xenstore."""
    start = time.monotonic()
    code, output = bed.machine.run(guest.create, 60)
    seconds = time.monotonic() - start
    if not code:
        raise Failure("xl create succeeded")
    if seconds > limit:
        raise Failure(f"it took {seconds:.1f} s: {output}")
    found = bed.machine.must(f"for node in $(xenstore-ls -fp {ERROR} | sed -n 's/ = .*//p'); do "
                             "xenstore-read $node; done")
    if reason not in found:
        raise Failure(f"{ERROR} has {found!r}")
    bed.machine.must(f"xenstore-rm {ERROR}")
    return f"{seconds:.1f} s: {found.strip()}"


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
    for name, spoil, mend, limit, reason in (
        (
            "broken state",
            f"mv {state} {state}.good; mkdir {state}; echo junk >{state}/tpm2-00.permall",
            f"rm -r {state}; mv {state}.good {state}",
            SOON,
            "swtpm",
        ),
        (
            "silent swtpm",
            (
                "mv /usr/bin/swtpm /run/swtpm; printf '#!/bin/sh\nexec sleep 25\n' >/usr/bin/swtpm;"
                " chmod 755 /usr/bin/swtpm"
            ),
            "mv /run/swtpm /usr/bin/swtpm",
            BEFORE_XL,
            "no TPM after",
        ),
    ):
        bed.machine.must(spoil)
        bed.record(
            f"no_start: {name}: xl create fails with a reason",
            create_fails,
            bed,
            guest,
            limit,
            reason,
        )
        bed.machine.must(mend)
        bed.record(f"no_start: {name}: nothing is left", nothing_left, bed, guest)
    bed.machine.must(f"{guest.create} && xl destroy {guest.name}", 60)
