# SPDX-License-Identifier: GPL-2.0
"""A Debian guest with systemd on a disk, the driver from its packages as README installs it: udev,
systemd-creds, and a LUKS volume that opens for the measured kernel alone."""

from testbed import readme
from testbed.debian import BOOT_LIMIT, boot, ends, guest, reboots, says
from testbed.report import Failure
from tools.package import guest_disk

SETS = ("deep",)
NEEDS = ("dom0 on a disk",)

SECRET = "/dev/xvdb"
# Bound to what xl has booted. The passphrase is what a person would type without a TPM. Under
# emulation udev takes minutes to come to a disk, and systemd waits a minute and a half.
OPTIONS = f"tpm2-device=auto,luks,headless=true,nofail,x-systemd.device-timeout={BOOT_LIMIT}s"
MAKE_LUKS = f"""
set -e
echo -n passphrase >/run/passphrase
cryptsetup luksFormat -q --pbkdf pbkdf2 --pbkdf-force-iterations 1000 {SECRET} /run/passphrase
systemd-cryptenroll --unlock-key-file=/run/passphrase --tpm2-device=auto --tpm2-pcrs=4+5 {SECRET}
echo 'secret {SECRET} none {OPTIONS}' >>/etc/crypttab
systemctl daemon-reload
systemctl start systemd-cryptsetup@secret.service
mke2fs -q /dev/mapper/secret
mount /dev/mapper/secret /mnt
echo 'only for this kernel' >/mnt/secret
umount /mnt
"""
# It is not waited for at boot, since it is nofail.
READ_LUKS = """
for i in $(seq 300); do [ -e /dev/mapper/secret ] && break; sleep 1; done
mount /dev/mapper/secret /mnt || { journalctl -b -u systemd-cryptsetup@secret; exit 1; }
cat /mnt/secret; umount /mnt
"""
# Udev may be long in coming to the disk.
TRIED = """
for i in $(seq 300); do
    state=$(systemctl is-active systemd-cryptsetup@secret.service)
    case $state in failed | active) break ;; esac
    sleep 1
done
echo $state
"""
CREDS = """
set -e
echo -n word | systemd-creds encrypt --with-key=tpm2 --tpm2-pcrs=4+16 --name=word - /root/word.cred
systemd-creds decrypt --name=word /root/word.cred -
"""


def module(debian):
    """Loaded at boot by nobody's hand: ours, not the stock one of the same name."""
    path = says(debian, "modinfo -n xen-tpmfront", r"/lib/modules/[^/]+/updates/xen-tpmfront\.ko.*")
    says(debian, "grep -c ^xen_tpmfront /proc/modules", "1")
    return path


def devices(debian):
    """Owners as tpm-udev has them, and the names of our rules."""
    return says(
        debian,
        "udevadm settle; stat -c '%n %U:%G %a' /dev/tpm0 /dev/tpmrm0; readlink /dev/tpm-vtpm-0"
        " /dev/tpmrm-vtpm-0",
        "/dev/tpm0 tss:root 660\n/dev/tpmrm0 tss:tss 660\ntpm0\ntpmrm0",
    )


def units(debian):
    """systemd has started all, and nothing has failed."""
    says(debian, "systemctl is-system-running --wait || systemctl --failed", "running", 300)
    return says(debian, "systemd-analyze time | head -n 1", "Startup finished in .*")


def creds(debian):
    """A credential for this TPM in this state, and not in another."""
    says(debian, CREDS, "(.*\n)?word")
    debian.must("tpm2_pcrextend 16:sha256=" + "5b" * 32)
    done = debian.run("systemd-creds decrypt --name=word /root/word.cred -")
    if done.code == 0:
        raise Failure("it opens after PCR 16 was extended")
    return done.output.strip()[-100:]


def other_start(debian):
    """With another word in its command line the volume stays shut, and the guest boots."""
    ends(debian)
    debian.start()
    says(debian, "grep -c other /proc/cmdline", "1")
    says(debian, TRIED, "failed", 360)
    says(debian, "test -e /dev/mapper/secret || echo shut", "shut")


def prepare():
    """What is not made on the testbed."""
    guest_disk.base()


def run(bed):
    """One guest, started three times."""
    vtpm = bed.vtpm("2.0")
    boot(bed, [vtpm], ["32M"])
    _, (_, asks) = readme.commands()
    debian = guest(bed, [vtpm])
    bed.record("it boots", debian.start)
    bed.record("the package's module is loaded", module, debian)
    bed.record("names and owners of the devices", devices, debian)
    bed.record("systemd has nothing to complain of", units, debian)
    bed.record("the README's last command", says, debian, asks, "[0-9a-f]{32}")
    bed.record("a LUKS volume is bound to PCRs 4 and 5", debian.must, MAKE_LUKS, 300)
    bed.record("systemd-creds", creds, debian)
    bed.record("xl reboot", reboots, bed, debian)
    bed.record("the volume opens at boot", says, debian, READ_LUKS, "only for this kernel",
               360)
    other = guest(bed, [vtpm], "root=/dev/xvda other")
    bed.record("another command line: the volume stays shut", other_start, other)
    bed.record("it shuts down", ends, other)
