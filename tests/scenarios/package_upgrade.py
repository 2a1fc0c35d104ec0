# SPDX-License-Identifier: GPL-2.0
"""The package's upgrade from version 0.1.0 under a running guest, in a dom0 with systemd: the old
daemon goes on until the guest has ended, and its TPM is the new one's."""

import os

from testbed.report import Failure
from testbed.service import UNIT, future_guest, show, swtpm_status
from testbed.toolstack import must_be
from tools.package.deb import FORMER_DEB, build_deb, build_former_deb, deb
from tools.package.dom0_disk import dom0_disk

SETS = ("deep",)
NEEDS = ("dom0 on a disk",)
VARIANTS = {"impatient": {"sets": ("deep",), "impatient": True}}

UUID = "00000000-0000-4000-8000-0000000001d0"
INDEX, KEPT = "0x1500016", "what 0.1.0 was told"
PCR_16 = "tpm2_pcrread sha256:16"


def prepare():
    """Both packages, and the system that they are installed in."""
    build_deb()
    build_former_deb()
    dom0_disk()


def serves(bed, guest):
    """A guest of the old version's has something in NV and in a PCR."""
    bed.machine.must(guest.create, 120)
    guest.attach()
    guest.wait_ready()
    guest.must(
        f"modprobe xen-tpmfront; tpm2_nvdefine -Q -s 32 {INDEX} && printf '{KEPT}' |"
        f" tpm2_nvwrite -Q -i - {INDEX} && tpm2_pcrextend 16:sha256={'5b' * 32}", 90
    )
    return bed.machine.must("xen-vtpmd --version").strip()


def keeps(bed, guest, new):
    """The upgrade says who serves, and the same processes do."""
    before = [*show(bed, "MainPID"), swtpm_status(bed)[0], guest.must(PCR_16)]
    said = bed.machine.must(f"cd /host && apt install -y ./{new} 2>&1", 240)
    if "goes on serving" not in said or "systemctl restart xen-vtpmd" not in said:
        raise Failure(said)
    after = [*show(bed, "MainPID"), swtpm_status(bed)[0], guest.must(PCR_16)]
    if after != before:
        raise Failure(f"{before}, and after the upgrade {after}")
    guest.must("tpm2_getrandom 8")
    return bed.machine.must("xen-vtpmd --version").strip()


def follows(bed, guest, impatient):
    """Once the guest has ended, the new version has its state, and starts its TPM again. Who is
    impatient restarts the service before that: the guest has no TPM from there on."""
    former, restart = show(bed, "MainPID"), f"systemctl restart {UNIT}"
    if impatient:
        bed.machine.must(restart, 120)
    guest.shutdown()
    if not impatient:
        bed.machine.must(restart, 120)
    must_be(bed.machine, "pidof swtpm | wc -w", "0", 30)
    if show(bed, "MainPID") == former:
        raise Failure(f"the daemon is still {former}")
    bed.machine.must(guest.create, 120)
    guest.attach()
    guest.wait_ready()
    kept = guest.must(f"modprobe xen-tpmfront; tpm2_nvread {INDEX}", 90)
    pcr = guest.must(PCR_16)
    if KEPT not in kept or "0" * 64 not in pcr:
        raise Failure(f"NV has {kept!r}, PCR 16 {pcr}")
    must_be(bed.machine, f"xen-vtpmd list | grep -c {UUID}", "1")
    return bed.machine.must("xen-vtpmd status")


def run(bed, impatient=False):
    """The guest's configuration is the README's, with a uuid of ours."""
    names = {os.path.basename(path): path for path in (FORMER_DEB, deb())}
    bed.report.add(bed.suite, "dom0 boots with systemd", "pass", bed.boot_disk(dom0_disk(), names))
    old, new = names
    guest = future_guest(bed)
    bed.machine.must(
        f"cd /host && apt install -y ./{old} && echo \"vtpm = [ 'backend=0,uuid={UUID}' ]\""
        f" >>{guest.config}", 240
    )
    try:
        bed.record("0.1.0 serves a guest", serves, bed, guest)
        bed.record("the upgrade leaves it alone", keeps, bed, guest, new)
        bed.record("the new version follows", follows, bed, guest, impatient)
    finally:
        bed.machine.run("journalctl -b --no-pager -o short-monotonic >/host/journal.txt")
