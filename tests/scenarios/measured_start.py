# SPDX-License-Identifier: GPL-2.0
"""What xl boots is in PCRs 4 and 5 before the guest runs: a secret sealed to them opens for that
alone, and the event log replays to all PCRs."""

import base64
import re
import subprocess

from testbed.report import Failure
from testbed.toolstack import must_be, save_and_restore

SETS = ("test",)

OTHER_KERNEL = "/boot/other-kernel"
SHOWN = "/sys/kernel/security/tpm0/binary_bios_measurements"
PCRS = (
    "cd /sys/class/tpm/tpm0; for pcr in pcr-*/[0-7]; do echo $pcr $(cat $pcr); done"
)


def event_log(bed, guest, vtpm, *events):
    """tpm2_eventlog takes the log without a word, and replays it to the PCRs of every bank. The
    guest shows the same log."""
    bed.machine.must(f"xen-vtpmd eventlog {vtpm.uuid} >/host/eventlog")
    done = subprocess.run(["tpm2_eventlog", f"{bed.machine.share}/eventlog"], text=True,
                          capture_output=True, check=False)
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
    with open(f"{bed.machine.share}/eventlog", "rb") as file:
        if file.read() != shown:
            raise Failure(f"the guest shows another log, of {len(shown)} bytes")
    return f"{len(own)} PCRs, {len(shown)} bytes of log"


def other_processes(bed):
    """Manager, worker and I/O process are killed, and others take their places."""
    before = bed.machine.must("pidof xen-vtpmd").split()
    if len(before) != 3:
        raise Failure(f"three processes are expected: {before}")
    bed.stop_backend(f"kill -9 {' '.join(before)}")
    bed.start_backend()
    must_be(bed.machine, "pidof xen-vtpmd | wc -w", "3", 30)


def run(bed):
    """The same guest twice, then with another kernel; and a PVH guest."""
    vtpm, hvm = bed.vtpm("2.0"), bed.vtpm("2.0")
    bed.boot([vtpm, hvm], dom0_memory=1792)
    bed.machine.must(f"(cat /boot/vmlinux; echo) >{OTHER_KERNEL}")
    with bed.guest("first", [vtpm]) as guest:
        bed.checks(guest, "module_loads", "measured_seal", "measured_opens")
        bed.record("event log", event_log, bed, guest, vtpm, "console=hvc0", "kernel", "initrd")
    with bed.guest("again", [vtpm]) as guest:
        bed.checks(guest, "module_loads", "measured_opens")
        bed.record("save and restore", save_and_restore, bed, guest)
        bed.checks(guest, "measured_opens")
        bed.record("other processes", other_processes, bed)
        bed.checks(guest, "measured_opens")
        bed.record("event log after that", event_log, bed, guest, vtpm, "kernel", "initrd")
    # What else can be another is natively tested.
    with bed.guest("other", [vtpm], kernel=f"'{OTHER_KERNEL}'") as guest:
        bed.checks(guest, "module_loads", "measured_stays_shut")
    # Of a PVH guest libxl says what it boots in another place.
    with bed.guest("pvh", [hvm], type="'pvh'") as guest:
        bed.checks(guest, "module_loads")
        bed.record("event log of PVH", event_log, bed, guest, hvm, "console=hvc0", "kernel")
