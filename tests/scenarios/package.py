# SPDX-License-Identifier: GPL-2.0
"""The Debian package in a dom0 with systemd and AppArmor: the README's commands, restart, reload,
upgrade, removal, purge."""

import contextlib
import json
import os
import re
import time

from testbed import readme, wait
from testbed.guest_scripts import in_guest
from testbed.machine import BedError
from tools.package.dom0_disk import dom0_disk
from testbed.report import Failure
from testbed.service import UNIT, future_guest, show, swtpm_status
from tools.package.deb import build_deb, deb

SETS = ("deep",)
NEEDS = ("dom0 on a disk",)

STATE = "/var/lib/xen-vtpmd"
CA = "/var/lib/swtpm-localca"
CERTIFIED = "00000000-0000-4000-8000-00000000ce27"
ENCRYPTED = "00000000-0000-4000-8000-00000000c0de"
KEY_COMMAND = f"""
set -e
cp /etc/xen-vtpmd.toml /run/without-key
sed -i 's,^#key-file = .*,key-file = "/etc/xen-vtpmd.key",' /etc/xen-vtpmd.toml
printf '#!/bin/sh\necho {'5b' * 32}\n' >/etc/xen-vtpmd.key
chmod 700 /etc/xen-vtpmd.key
systemctl reload {UNIT}
"""
# The NV indices that the TCG has for certificates of endorsement keys.
CERTIFICATES = r"0x1c0[0-9a-f]{4}"
WORD = "5b" * 32
TPM1 = "TPM2TOOLS_TCTI=device:/dev/tpmrm1"
GET_CERTIFICATE = f"""
set -e; cd /tmp; export {TPM1}
tpm2 getekcertificate -X -o rsa.der -o ecc.der >&2
base64 -w0 rsa.der
"""
VERIFY = f"""
set -e; cd /tmp; ca={CA}
echo {{}} | base64 -d >ek.der; openssl x509 -inform DER -in ek.der -out ek.pem
openssl verify -CAfile $ca/swtpm-localca-rootca-cert.pem -untrusted $ca/issuercert.pem ek.pem >&2
openssl x509 -in ek.pem -noout -pubkey
"""
ACTIVATE = f"""
set -e; cd /tmp; export {TPM1}
printf '{{}}\n' >ek.pem; printf 'nobody else reads this' >secret
tpm2 createak -Q -C 0x81010001 -c ak.ctx -G ecc -g sha256 -s ecdsa -u ak.pub -n ak.name
tpm2 makecredential -Q -T none -u ek.pem -G rsa -s secret -n $(xxd -p -c 100 ak.name) -o credential
tpm2 startauthsession -Q --policy-session -S session
tpm2 policysecret -Q -S session -c e
tpm2 activatecredential -Q -c ak.ctx -C 0x81010001 -i credential -o opened -P session:session
tpm2 flushcontext session
cat opened
"""
# Of 10, by systemd's own measure: a change that makes it worse is to be noticed.
MOST_EXPOSED = 4.0


def installs(bed, commands):
    """The README's commands in dom0, one by one."""
    told = []
    for command in commands:
        start = time.monotonic()
        bed.machine.must(f"cd /host && {command}", 240)
        told.append(f"{command.split()[0]} {time.monotonic() - start:.0f} s")
    return ", ".join(told)


def gives_random(guest, command):
    """README's last command in the guest brings random bytes."""
    found = guest.must(command, 90)
    if not re.fullmatch(r"[0-9a-f]{32}", found.strip()):
        raise Failure(found)
    return found


def runs(bed):
    """The unit is active, enabled, has not failed, and says how many vTPMs there are."""
    found = show(bed, "ActiveState", "SubState", "UnitFileState", "Result", "StatusText")
    if found != ["active", "running", "enabled", "success", "1 vTPM"]:
        raise Failure(f"{found}\n{bed.machine.run(f'systemctl status {UNIT}')[1]}")
    failed = bed.machine.must("systemctl --failed --plain --no-legend")
    if UNIT in failed:
        raise Failure(failed)
    others = re.findall(r"^\S+", failed, re.MULTILINE)
    return f"other units that failed: {' '.join(others) or 'none'}"


def journal(bed, domid):
    """Lines are in the journal with their level, and those about the vTPM say which."""
    lines = [
        json.loads(line)
        for line in bed.machine.must(f"journalctl -u {UNIT} -o json --no-pager").splitlines()
    ]
    ours = [line for line in lines if line.get("_COMM") == "xen-vtpmd"]
    about = [line for line in ours if line["MESSAGE"].startswith(f"vtpm {domid}/0: ")]
    if not about or any(line.get("VTPM") != f"{domid}/0" for line in about):
        raise Failure("\n".join(line["MESSAGE"] for line in lines))
    if not any(re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", line.get("UUID", ""))
               for line in about):
        raise Failure(f"no UUID in {about[-1]}")
    odd = [line for line in ours if line["PRIORITY"] != "6" or line["MESSAGE"].startswith("<")]
    if odd:
        raise Failure("\n".join(f"{line['PRIORITY']} {line['MESSAGE']}" for line in odd))
    return f"{len(ours)} lines"


def confined(bed):
    """The unit's sandbox has not kept the launcher from making swtpm's own."""
    pid, status = swtpm_status(bed)
    wanted = {"NoNewPrivs": "1", "Seccomp": "2", "CapEff": "0" * 16, "CapBnd": "0" * 16}
    found = {name: status[name] for name in wanted}
    files = bed.machine.must(f"ls /proc/{pid}/root").split()
    if (
        found != wanted
        or int(status["Uid"].split()[0]) < 1_900_000_000
        or "proc" in files
        or "state" not in files
    ):
        raise Failure(f"{found}, uids {status['Uid']}, sees {files}")
    daemon, = show(bed, "MainPID")
    same = bed.machine.must(
        f"for kind in net ipc mnt; do readlink /proc/{pid}/ns/$kind /proc/{daemon}/ns/$kind; done |"
        " sort | uniq -d"
    ).strip()
    if same:
        raise Failure(f"swtpm has the daemon's {same}")
    return f"user {status['Uid'].split()[0]}"


def keeps(bed, guest, what):
    """Something is done to the daemon: another one serves the guest, by the same swtpm with the
    same PCRs."""
    before, pcrs = [*show(bed, "MainPID"), swtpm_status(bed)[0]], guest.must(
        "tpm2_pcrread sha256:16"
    )
    bed.machine.must(what, 180)

    def another():
        state, pid = show(bed, "ActiveState", "MainPID")
        return state == "active" and pid != before[0]

    wait.until(
        another,
        20,
        lambda: f"the daemon was {before[0]}, and now: {show(bed, 'ActiveState', 'MainPID')}",
        pause=0.5,
    )
    if (
        "0" * 64 in pcrs
        or guest.must("tpm2_pcrread sha256:16") != pcrs
        or swtpm_status(bed)[0] != before[1]
    ):
        raise Failure(f"PCR 16 was {pcrs}, swtpm {before[1]}, and now {swtpm_status(bed)[0]}")
    guest.must("tpm2_getrandom 8")
    runs(bed)


def certified(bed, guest):
    """State with certificates, which many libraries and a program in Python take part in, is made
    in the sandbox."""
    bed.machine.must(
        "sed -i 's/^#certificates = .*/certificates = true/' /etc/xen-vtpmd.toml && xen-vtpmd"
        f" check-config && systemctl restart {UNIT}"
    )
    start = time.monotonic()
    # It may take longer than xl waits; it is made all the same.
    bed.machine.run(f"xl vtpm-attach guest uuid={CERTIFIED} backend=0", 60)
    files = f"test -e {STATE}/{CERTIFIED}/tpm2-00.permall && test -e {CA}/issuercert.pem"
    wait.until(
        lambda: bed.machine.run(files)[0] == 0,
        240,
        lambda: bed.machine.must(f"journalctl -u {UNIT} --no-pager | tail; ls -lR {STATE} {CA}"),
        pause=1,
    )
    seconds = time.monotonic() - start
    bed.machine.run(f"xl vtpm-detach guest {CERTIFIED}", 60)
    # Now that there is a state, the guest gets it within xl's time, and finds the certificates.
    bed.machine.must(f"xl vtpm-attach guest uuid={CERTIFIED} backend=0", 60)
    found = in_guest(guest, f"wait_for 30 test -c /dev/tpm1; {TPM1} tpm2 getcap handles-nv-index")
    if not re.search(CERTIFICATES, found, re.IGNORECASE):
        raise Failure(f"the guest's TPM has no certificate of an endorsement key: {found}")
    return f"{seconds:.0f} s, {len(re.findall(CERTIFICATES, found, re.IGNORECASE))} certificates"


def by_command(bed, guest):
    """The sandbox and AppArmor let the worker run a key-file that is a command."""
    bed.machine.must(KEY_COMMAND)
    bed.machine.must(f"xl vtpm-attach guest uuid={ENCRYPTED} backend=0", 60)
    in_guest(guest, f"wait_for 30 test -c /dev/tpm1; {TPM1} tpm2 getrandom 8")
    bed.machine.must(f"xl vtpm-detach guest {ENCRYPTED}", 60)
    bed.machine.must(
        f"rm /etc/xen-vtpmd.key; mv /run/without-key /etc/xen-vtpmd.toml; systemctl reload {UNIT}"
    )
    return bed.machine.must(f"cat {STATE}/{ENCRYPTED}.key")


def enrolled(bed, guest):
    """A verifier who knows nothing but the root of the CA: the certificate that
    tpm2_getekcertificate finds in the guest leads to it and is the one that dom0 shows, and what is
    encrypted to its key is decrypted by the guest's TPM alone, for a key of that TPM (as keylime's
    registrar has it)."""
    found = guest.must(GET_CERTIFICATE, 120).split()
    told = bed.machine.must(f"xen-vtpmd info {CERTIFIED}", 120)
    if found[-1] not in told.replace("\n", ""):
        raise Failure(f"{found[-1]} is not in {told}")
    key = bed.machine.must(VERIFY.format(found[-1]), 60).strip().replace("\n", "\\n")
    said = guest.must(ACTIVATE.format(key), 120)
    if not said.endswith("nobody else reads this"):
        raise Failure(said)
    return f"{len(found[-1])} digits of a certificate"


def under_apparmor(bed):
    """Each kind of process has its profile, which denies nothing that it needs."""
    text = bed.machine.must("ps -eo label=,args=")
    kinds = {
        r"/usr/sbin/xen-vtpmd run": "xen-vtpmd",
        r"\S+ .*\bserve\b.*": "xen-vtpmd-worker",
        r"\S+ .*\bbroker\b.*": "xen-vtpmd-worker",
        r"\S+ .*\bio\b.*": "xen-vtpmd-worker",
        r"(?:/usr/bin/)?swtpm socket .*": "xen-vtpmd-swtpm",
    }
    for args, profile in kinds.items():
        found = re.findall(rf"^(\S+(?: \(\w+\))?) +{args}$", text, re.MULTILINE)
        if not found or set(found) != {f"{profile} (enforce)"}:
            raise Failure(f"{args} has {found}, not {profile}:\n{text}")
    denied = bed.machine.run("journalctl -k --no-pager | grep 'apparmor=\"DENIED\"'")[1]
    if "xen-vtpmd" in denied:
        raise Failure(denied)
    return f"{len(kinds)} kinds of processes"


def has_cgroup(bed, domid):
    """A worker has a cgroup of its own, with swtpm in it and the limits of the configuration."""
    group = f"/sys/fs/cgroup{show(bed, 'ControlGroup')[0]}/vtpm-{domid}-0"
    pids = bed.machine.must(f"cat {group}/cgroup.procs").split()
    limits = bed.machine.must(f"cat {group}/memory.max {group}/pids.max {group}/cpu.weight").split()
    if swtpm_status(bed)[0] not in pids or limits != [str(512 << 20), "64", "100"]:
        raise Failure(f"{group}: {pids}, {limits}")
    told = bed.machine.must("xen-vtpmd status")
    if "no cgroup" in told:
        raise Failure(told)
    return f"{len(pids)} processes"


def reloads(bed):
    """A configuration is read again; a broken one is refused, and changes nothing."""
    before = show(bed, "MainPID", "ActiveState")
    bed.machine.must(f"systemctl reload {UNIT}")
    bed.machine.must("cp /etc/xen-vtpmd.toml /run/good && echo nonsense >>/etc/xen-vtpmd.toml")
    refused = bed.machine.run(f"systemctl reload {UNIT}")[0] != 0
    bed.machine.must("cp /run/good /etc/xen-vtpmd.toml")
    if not refused or show(bed, "MainPID", "ActiveState") != before:
        raise Failure(f"refused: {refused}, before {before}")
    runs(bed)


def metrics(bed):
    """The service writes what node_exporter reads."""
    folder = "/var/lib/prometheus/node-exporter"
    bed.machine.must(f"mkdir -p {folder} && systemctl start xen-vtpmd-metrics.service")
    text = bed.machine.must(f"cat {folder}/xen-vtpmd.prom")
    found = re.search(r"^xen_vtpm_commands_total\{.*\} (\d+)$", text, re.MULTILINE)
    if not found or int(found[1]) == 0:
        raise Failure(text)
    return f"{len(text.splitlines())} lines"


def verified(bed):
    """systemd finds nothing to warn of in the unit."""
    found = bed.machine.must(f"systemd-analyze verify --man=no {UNIT} 2>&1", 120)
    if UNIT in found:
        raise Failure(found)


def security(bed):
    """What systemd thinks of the sandbox."""
    text = bed.machine.must(f"systemd-analyze security --no-pager {UNIT}", 120)
    level = re.search(r"Overall exposure level for \S+: ([\d.]+) (\w+)", text)
    with open(f"{bed.machine.work}/security.txt", "w", encoding="utf-8") as file:
        file.write(text)
    if float(level[1]) > MOST_EXPOSED:
        raise Failure(text)
    return f"exposure {level[1]} ({level[2]})"


def left(bed):
    """What there is of the package: processes, TPMs' state, configuration, what is in /run."""
    # Not what keeps room for a write.
    state = bed.machine.run(f"find {STATE} -name 'tpm*.permall'")
    return {"processes": bed.machine.run("pidof xen-vtpmd swtpm swtpm_setup")[1].split(),
            "state": None if state[0] else sorted(state[1].split()),
            "config": bed.machine.run("test -e /etc/xen-vtpmd.toml")[0] == 0,
            "run": bed.machine.run("test -e /run/xen-vtpmd")[0] == 0}


def removed(bed, guest):
    """No process is left, and all the state is; the guest has no TPM."""
    state = left(bed)["state"]
    bed.machine.must("dpkg --remove xen-vtpmd", 120)
    found = left(bed)
    if not state or found != {"processes": [], "state": state, "config": True, "run": False}:
        raise Failure(f"{found}, with the state {state} before")
    failed = bed.machine.must("systemctl --failed --plain --no-legend")
    if UNIT in failed or guest.run("tpm2_getrandom 8").code == 0:
        raise Failure(f"failed: {failed}; or the guest still has a TPM")
    return f"state of {len(state)} TPMs"


def kept(bed):
    """Nothing is left but the state: nobody has said that it may be deleted."""
    state = left(bed)["state"]
    bed.machine.must("DEBIAN_FRONTEND=noninteractive dpkg --purge xen-vtpmd", 120)
    found = left(bed)
    if not state or found != {"processes": [], "state": state, "config": False, "run": False}:
        raise Failure(f"{found}, with the state {state} before")


def purged(bed, package):
    """Nothing is left at all, where that is the answer to the question."""
    bed.machine.must(f"cd /host && DEBIAN_FRONTEND=noninteractive dpkg -i {package}", 120)
    answer = "xen-vtpmd xen-vtpmd/purge-state boolean true"
    bed.machine.must(f"echo '{answer}' | debconf-set-selections")
    bed.machine.must("DEBIAN_FRONTEND=noninteractive dpkg --purge xen-vtpmd", 120)
    found = left(bed)
    if found != {"processes": [], "state": None, "config": False, "run": False}:
        raise Failure(str(found))


def prepare():
    """The package, and the system that it is installed in."""
    build_deb()
    dom0_disk()


def run(bed):
    """From apt to dpkg --purge; the journal is left in the shared folder."""
    package = deb()
    seconds = bed.boot_disk(dom0_disk(), {os.path.basename(package): package})
    bed.report.add(bed.suite, "dom0 boots with systemd", "pass", seconds)
    try:
        steps(bed, os.path.basename(package))
    finally:
        with contextlib.suppress(BedError):
            bed.machine.run("journalctl -b --no-pager -o short-monotonic >/host/journal.txt")


def steps(bed, package):
    """What happens in that dom0."""
    dom0, (_, asks) = readme.commands()
    guest = future_guest(bed)
    bed.record("the README's commands in dom0", installs, bed, dom0)
    guest.attach()
    guest.wait_ready()
    # As the guest's package has it at boot: debian_guest has that.
    guest.must("modprobe xen-tpmfront")
    bed.record("the README's last command in the guest", gives_random, guest, asks)
    bed.record("the unit is active and has not failed", runs, bed)
    bed.record("journal", journal, bed, bed.machine.must("xl domid guest").strip())
    bed.record("swtpm is confined", confined, bed)
    bed.record("each process has its AppArmor profile", under_apparmor, bed)
    bed.record("a worker has a cgroup", has_cgroup, bed, bed.machine.must("xl domid guest").strip())
    bed.record("reload", reloads, bed)
    bed.record("metrics", metrics, bed)
    guest.must(f"tpm2_pcrextend 16:sha256={WORD}")
    for what in (f"systemctl restart {UNIT}", f"systemctl kill -s KILL {UNIT} --kill-whom=main",
                 f"cd /host && dpkg -i {package}"):
        bed.record(f"the guest keeps its TPM: {what.split(' && ')[-1]}", keeps, bed, guest, what)
    bed.record("certificates", certified, bed, guest)
    bed.record("a verifier accepts the endorsement key", enrolled, bed, guest)
    bed.machine.must(f"xl vtpm-detach guest {CERTIFIED}", 60)
    bed.record("a key-file that is a command", by_command, bed, guest)
    bed.record("systemd-analyze verify", verified, bed)
    bed.record("systemd-analyze security", security, bed)
    bed.record("removed: no process is left, the state is", removed, bed, guest)
    bed.record("purged: the state is kept unless somebody says otherwise", kept, bed)
    bed.record("purged: nothing is left", purged, bed, package)
