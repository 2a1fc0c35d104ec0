# SPDX-License-Identifier: GPL-2.0
"""The chain of trust from the host's TPM to the guest: state that this host in this state alone
opens, and evidence that its TPM vouches for."""

import contextlib
import os
import re
import shutil
import time

from testbed.guest import Guest
from testbed.machine import BedError
from testbed.report import Failure
from testbed.swtpm import Swtpm
from testbed.toolstack import must_be
from tools.package.deb import build_deb, deb
from tools.package.dom0_disk import dom0_disk
from tools.steps import must

SETS = ("deep",)
NEEDS = ("host's TPM",)
# The devices of QEMU that a PC's TPM can be.
VARIANTS = {"crb": {"sets": (), "device": "tpm-crb"}}

UUID = "00000000-0000-4000-8000-0000000000c4"
PERMALL = f"/var/lib/xen-vtpmd/{UUID}/tpm2-00.permall"
# PCR 7 is the firmware's. PCR 12 has dom0's kernel command line here: GRUB measures it where it
# boots Xen; QEMU, which loads Xen itself, does not.
PCRS = "7+12"
MEASURE = "tpm2_pcrextend 12:sha256=$(sha256sum </proc/cmdline | cut -d' ' -f1)"
NONCE = "00112233445566778899aabbccddeeff"
AK = "0x8101000a"
# As xen-vtpmd(8) has it.
MAKE_AK = f"""cd /root && tpm2_createek -Q -G ecc -c ek.ctx && tpm2_createak -Q -C ek.ctx -G ecc \
-g sha256 -s ecdsa -c ak.ctx -u ak.pem -f pem && tpm2_flushcontext -t && \
tpm2_evictcontrol -Q -C o -c ak.ctx {AK}"""
# What xl takes at most to say that there is no vTPM.
QUICK = 20


class Chain:
    """A host that can be switched off and on: its disk and its TPM stay."""

    def __init__(self, bed, device):
        self.bed, self._device = bed, device
        self._package = os.path.basename(deb())
        folder = f"{bed.work}-images"
        os.makedirs(folder, exist_ok=True)
        self._disk, self._state = f"{folder}/disk.img", f"{folder}/host-tpm"
        must(["cp", "--sparse=always", dom0_disk(), self._disk], "cp.log", "the disk is not copied")
        shutil.rmtree(self._state, ignore_errors=True)
        self.guest = None

    @property
    def machine(self):
        """What runs now."""
        return self.bed.machine

    def power_on(self, options=""):
        """Boots, with this in dom0's command line, which is measured."""
        bed = self.bed
        seconds = bed.boot_disk(
            self._disk,
            {self._package: deb()},
            keeps_disk=True,
            options=options,
            tpm=Swtpm(self._device, self._state, f"{bed.work}-images/tpm.sock"),
        )
        bed.report.add(bed.suite, f"dom0 boots with systemd {options}".strip(), "pass", seconds)
        self.machine.must(
            f"test -c /dev/tpmrm0 && {MEASURE} && mkdir -p /srv/boot && mount -t tmpfs tmpfs"
            " /srv/boot && cp -r /host/boot/. /srv/boot",
            180,
        )
        self.guest = Guest(
            self.machine,
            "guest",
            kernel="'/srv/boot/vmlinux'",
            ramdisk="'/srv/boot/guest.cpio'",
            options="bed.driver=rust bed.tpms=2.0",
            vtpm=[f"backend=0,uuid={UUID}"],
        )

    def power_off(self):
        """The disk has what was written, and the TPM keeps its NV."""
        self.machine.must("systemctl stop xen-vtpmd; umount /srv/boot; sync", 60)
        self.bed.stop()

    def install(self):
        """The package, and a configuration whose key is to be sealed."""
        self.machine.must(f"cd /host && apt-get install -y ./{self._package}", 240)
        self.machine.must(
            "sed -i '/^\\[tpm\\]/a key-file = \"/etc/xen-vtpmd.key\"' /etc/xen-vtpmd.toml"
            " && xen-vtpmd check-config"
        )

    def seal(self):
        """The key is made and sealed, and shown once."""
        said = self.machine.must(f"xen-vtpmd seal --pcrs {PCRS}", 120)
        found = re.search(r"recovery key.*: ([0-9a-f]{64})$", said.strip())
        if not found:
            raise Failure(said)
        opens = self.machine.must("systemctl reload xen-vtpmd && xen-vtpmd unseal-check", 120)
        if "opens" not in opens:
            raise Failure(opens)
        return found[1]

    def works(self, wanted=None):
        """The guest has its TPM, with the NV that it had; without `wanted` it is written."""
        self.guest.start()
        self.bed.checks(self.guest, "module_loads")
        if wanted is None:
            self.guest.must("tpm2_nvdefine 0x1500016 -C o -s 8 && echo -n evidence >/run/nv &&"
                            " tpm2_nvwrite 0x1500016 -C o -i /run/nv")
        found = self.guest.must("tpm2_nvread 0x1500016 -C o -s 8").strip()
        if found != "evidence":
            raise Failure(found)
        return found

    def ends(self):
        """The guest shuts down in good order."""
        self.guest.shutdown()

    def refused(self, *patterns, late=False):
        """The vTPM is refused; the reason names each of these, and the state is as it was. xl fails
        soon, but where the reason is found `late`: when the TPM was asked, after InitWait."""
        machine = self.machine
        before = machine.must(f"sha256sum {PERMALL}")
        self.guest.write_config()
        start = time.monotonic()
        code, said = machine.run(self.guest.create, 120)
        seconds = time.monotonic() - start
        if late:
            state = "xenstore-read /local/domain/0/backend/vtpm/$(xl domid guest)/0/state"
            must_be(machine, state, "6")
        told = machine.must("journalctl -b -u xen-vtpmd --no-pager -o cat | tail -n 30")
        if not late and code == 0:
            raise Failure(f"the guest starts: {told}")
        missing = [word for word in patterns if not re.search(word, told)]
        if missing or seconds > QUICK * self.bed.slowness:
            raise Failure(f"{missing} in {told}\nafter {seconds:.0f} s, xl: {said}")
        if machine.must(f"sha256sum {PERMALL}") != before:
            raise Failure("the state has changed")
        machine.run("xl destroy guest", 60)
        return f"{seconds:.0f} s"

    def recover(self, key):
        """By the key that was shown once."""
        said = self.machine.must(f"echo {key} | xen-vtpmd recover --pcrs {PCRS}", 120)
        if "sealed to PCRs" not in said:
            raise Failure(said)
        return said.strip()

    def attest(self):
        """Evidence of the running vTPM, that is checked without Xen and without a TPM, and not
        with another nonce or a byte changed."""
        machine = self.machine
        machine.must(MAKE_AK, 120)
        check = f"xen-vtpmd verify-attestation {{}} --nonce {NONCE} --ak ak.pem"
        machine.must(
            f"cd /root && xen-vtpmd attest {UUID} --nonce {NONCE} --ak {AK} --pcrs {PCRS} >bundle"
            f" && {check.format('bundle')} >said",
            120,
        )
        changed = f"sed 's/{UUID}/{UUID[:-1]}5/' bundle >changed && cmp -s bundle changed; "
        code = machine.run(f"cd /root && {changed} {check.format('changed')}", 120)[0]
        other = machine.run(f"cd /root && {check.format('bundle').replace(NONCE, NONCE[::-1])}")[0]
        said = machine.must("cat /root/said")
        if not code or not other or UUID not in said:
            raise Failure(f"changed {code}, another nonce {other}: {said}")
        return f"{len(said)} bytes"


def prepare():
    """The package, and the system that it is installed in."""
    build_deb()
    dom0_disk()


def steps(bed, chain):
    """Three boots of the same host."""
    chain.power_on()
    bed.record("the package is installed", chain.install)
    key = chain.seal()
    bed.record("a guest starts, its state sealed", chain.works)
    bed.record("attest", chain.attest)
    chain.ends()
    chain.power_off()

    chain.power_on()
    bed.record("after a reboot the state opens", chain.works, "evidence")
    chain.ends()
    chain.power_off()

    chain.power_on("other")
    bed.record("another command line: refused", chain.refused, "PCR 12 is ", "xen-vtpmd recover")
    bed.record("recover", chain.recover, key)
    bed.record("after recover the state opens", chain.works, "evidence")
    chain.ends()
    chain.machine.must("tpm2_clear")
    bed.record("the TPM is cleared: refused", lambda: chain.refused(
        "the TPM was cleared", "xen-vtpmd recover", late=True))
    bed.record("recover after that", chain.recover, key)
    bed.record("the state opens again", chain.works, "evidence")
    chain.ends()


def run(bed, device="tpm-tis"):
    """The journal is left in the shared folder."""
    chain = Chain(bed, device)
    try:
        steps(bed, chain)
    finally:
        with contextlib.suppress(BedError):
            bed.machine.run("journalctl -b --no-pager -o short-monotonic >/host/journal.txt")
