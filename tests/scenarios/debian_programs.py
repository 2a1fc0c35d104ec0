# SPDX-License-Identifier: GPL-2.0
"""What users of a TPM have in a Debian guest: tpm2-abrmd, tpm2-openssl, ssh by tpm2-pkcs11, fwupd
and rng-tools; with a TPM 1.2 tcsd by its unit and tpm-tools, through a reboot."""

from testbed.debian import boot, ends, guest, reboots, says
from tools.package import guest_disk

SETS = ("deep",)
NEEDS = ("dom0 on a disk",)

PROGRAMS = {
    "2.0": "tpm2-abrmd,libtss2-tcti-tabrmd0,tpm2-openssl,libtpm2-pkcs11-1,libtpm2-pkcs11-tools,"
           "openssh-server,openssh-client,rng-tools5,fwupd",
    "1.2": "trousers,tpm-tools",
}
# In no set: tpm_functions has the same tools without systemd.
VARIANTS = {"12": {"sets": (), "version": "1.2"}}

# The resource manager is started by D-Bus, and has /dev/tpm0 for itself. D-Bus gives a service 25 s
# to start; one that takes longer on a busy host starts all the same, and the second call has it.
ABRMD = """
export TPM2TOOLS_TCTI=tabrmd
tpm2_getrandom --hex 16 2>/root/first || { sleep 30; tpm2_getrandom --hex 16; } ||
    cat /root/first
echo; systemctl is-active tpm2-abrmd
"""
OPENSSL = """
set -e; cd /root; export TPM2OPENSSL_TCTI=device:/dev/tpmrm0
openssl genpkey -provider tpm2 -algorithm EC -pkeyopt group:P-256 -out key.pem
openssl pkey -provider tpm2 -provider base -in key.pem -pubout -out public.pem
echo text >text
openssl pkeyutl -provider tpm2 -provider base -sign -inkey key.pem -rawin -in text -out signature
head -n 1 key.pem
openssl pkeyutl -verify -pubin -inkey public.pem -rawin -in text -sigfile signature
"""
SSH = """
set -e; export TPM2_PKCS11_STORE=/root/pkcs11 TPM2_PKCS11_TCTI=device:/dev/tpmrm0
export TPM2TOOLS_TCTI=device:/dev/tpmrm0
mkdir -p $TPM2_PKCS11_STORE; mkdir -p -m 700 /root/.ssh
tpm2_ptool init >&2
tpm2_ptool addtoken --pid=1 --sopin=so --userpin=pin --label=ssh >&2
tpm2_ptool addkey --algorithm=ecc256 --label=ssh --userpin=pin >&2
library=$(ls /usr/lib/*/pkcs11/libtpm2_pkcs11.so)
ssh-keygen -D $library >/root/.ssh/authorized_keys
printf '#!/bin/sh\necho pin\n' >/root/pin; chmod 700 /root/pin
SSH_ASKPASS=/root/pin SSH_ASKPASS_REQUIRE=force ssh -o StrictHostKeyChecking=no -I $library \
    -o PreferredAuthentications=publickey root@localhost echo in by the TPM
"""
# 2,500 bytes of the TPM, by the kernel's hwrng.
RANDOM = """
echo tpm-rng-0 >/sys/class/misc/hw_random/rng_current
cat /sys/class/misc/hw_random/rng_current
rngtest -c 1 </dev/hwrng 2>&1 | grep -c 'bits received from input: 20032'
"""
FWUPD = "fwupdtool get-devices --plugins tpm 2>&1"
TOOLS_20 = (
    ("tpm2-abrmd", ABRMD, "[0-9a-f]{32}\nactive"),
    ("tpm2-openssl signs", OPENSSL, "-+BEGIN TSS2 PRIVATE KEY-+\nSignature Verified Successfully"),
    ("ssh with a key of tpm2-pkcs11", SSH, ".*in by the TPM"),
    ("fwupd", FWUPD, r".*TPM:.*MOD_SWTPM&VER_2\.0.*"),
    ("rng-tools", RANDOM, "tpm-rng-0\n1"),
)
OWN = """
set -e; systemctl is-active tcsd; tpm_takeownership -y -z
tpm_version | grep -ao 'Chip Version.*'
"""
SEAL = "set -e; echo sealed >/root/text; tpm_sealdata -z -p 4 -p 5 -i /root/text -o /root/sealed"
UNSEAL = "tpm_unsealdata -z -i /root/sealed"


def prepare():
    """What is not made on the testbed."""
    for programs in PROGRAMS.values():
        guest_disk.base(programs)


def run(bed, version="2.0"):
    """One guest; systemd has nothing to complain of with either TPM."""
    vtpm = bed.vtpm(version)
    boot(bed, [vtpm], programs=PROGRAMS[version])
    debian = guest(bed, [vtpm])
    bed.record("it boots", debian.start)
    bed.record("systemd has nothing to complain of", says, debian,
               "systemctl is-system-running --wait || systemctl --failed", "running", 300)
    if version == "2.0":
        for name, script, pattern in TOOLS_20:
            bed.record(name, says, debian, script, pattern, 300)
    else:
        bed.record("tcsd by its unit, tpm_takeownership", says, debian, OWN,
                   r"active\n.*Chip Version:\s+1\.2\..*", 300)
        bed.record("tpm_sealdata", says, debian, SEAL, "", 300)
        bed.record("xl reboot", reboots, bed, debian)
        bed.record("tpm_unsealdata after the reboot", says, debian, UNSEAL, "sealed", 300)
    bed.record("it shuts down", ends, debian)
