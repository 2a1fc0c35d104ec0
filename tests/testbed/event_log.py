# SPDX-License-Identifier: GPL-2.0
"""The event log of a measured start, as tpm2_eventlog reads it, beside the guest's PCRs."""

import base64
import re
import subprocess

from testbed.report import Failure

SHOWN = "/sys/kernel/security/tpm0/binary_bios_measurements"
PCRS = (
    "cd /sys/class/tpm/tpm0; for pcr in pcr-*/[0-7]; do echo $pcr $(cat $pcr); done"
)


def replays(bed, guest, vtpm, *events, backend=None):
    """tpm2_eventlog takes the log of the backend, which is in dom0 or in a guest, without a word,
    and replays it to the PCRs of every bank. The guest shows the same log."""
    text = (backend or bed.machine).must(f"xen-vtpmd eventlog {vtpm.uuid} | base64")
    log = base64.b64decode(text)
    path = f"{bed.machine.share}/eventlog"
    with open(path, "wb") as file:
        file.write(log)
    done = subprocess.run(["tpm2_eventlog", path], text=True, capture_output=True, check=False)
    if done.returncode or done.stderr:
        raise Failure(done.stderr)
    for event in events:
        if event.encode().hex() not in done.stdout:
            raise Failure(f"{event!r} is not in the log:\n{done.stdout}")
    replayed, bank = {}, None
    for line in done.stdout.split("\npcrs:\n")[1].splitlines():
        if found := re.fullmatch(r" +(sha\d+):", line):
            bank = found[1]
        elif found := re.fullmatch(r" +(\d+) *: 0x([0-9a-f]+)", line):
            replayed[f"pcr-{bank}/{found[1]}"] = found[2]
    own = dict(line.lower().split() for line in guest.must(PCRS).splitlines())
    if own != replayed or not own:
        raise Failure(f"the TPM has {own}, and the log {replayed}")
    shown = base64.b64decode(guest.must(f"base64 {SHOWN}"))
    if shown != log:
        raise Failure(f"the guest shows another log, of {len(shown)} bytes")
    return f"{len(own)} PCRs, {len(shown)} bytes of log"
