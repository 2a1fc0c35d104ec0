# SPDX-License-Identifier: GPL-2.0
"""Two machines with Xen and a network between them: root of each reaches the other by ssh, and
`xen-vtpmd migrate` takes a guest from one to the other."""

import contextlib
import dataclasses
import os
import shutil

from testbed.report import Failure
from testbed.testbed import Testbed
from testbed.toolstack import must_be
from tools.steps import must

NAMES = ("one", "two")
# What a machine has (MiB): dom0 and a guest.
MEMORY = 2560
# What a guest has that migrates, all of which goes over.
GUEST_MEMORY = 224
STATES = "/var/lib/xen-vtpmd"
# How long a migration may take (s): its guest's memory is encrypted under emulation.
MIGRATION_LIMIT = 600


def pids(program, word):
    """For a shell: the processes of a program that have a word as an argument."""
    return (f"$(grep -lzx {word} $(pidof {program} | sed 's,[0-9][0-9]*,/proc/&/cmdline,g')"
            " | cut -d/ -f3)")


@dataclasses.dataclass
class Network:
    """Where a machine is connected, and the folder with the keys of both."""

    sockets: tuple
    keys: str


def _make_keys(folder):
    """A key that is the hosts' own, and root's on both."""
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    key = f"{folder}/id_ed25519"
    must(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", key], "ssh-keygen.log",
         "ssh-keygen makes no key")
    with open(f"{key}.pub", encoding="ascii") as file:
        public = file.read()
    for name, text in (("authorized_keys", public),
                       ("known_hosts", f"{','.join(NAMES)} {public}")):
        with open(f"{folder}/{name}", "w", encoding="ascii") as file:
            file.write(text)


def _connect(bed, number):
    """The network in dom0, and the server of ssh."""
    names = "".join(f"10.0.0.{n} {name}\n" for n, name in enumerate(NAMES, 1))
    # Few large packets: each costs an emulated interrupt, and a guest's memory goes over.
    bed.machine.must(
        f"modprobe virtio_net; hostname {NAMES[number]}; printf '{names}' >>/etc/hosts;"
        f" ip address add 10.0.0.{number + 1}/24 dev eth0; ip link set lo up;"
        " ip link set eth0 mtu 9000 up; mkdir -p /run/sshd /var/empty;"
        " /usr/sbin/sshd -E /host/sshd.log"
    )


@contextlib.contextmanager
def hosts(bed, vtpms, **options):
    """Boots the testbed's machine, which has the state of these vTPMs, and another, which has not
    and knows their versions; gives the other's testbed."""
    other = Testbed(bed.report, bed.kernel, bed.xen, f"{bed.suite.partition('/')[2]}-other",
                    bed.driver)
    sockets = tuple(f"{each.work}-images/network.sock" for each in (bed, other))
    keys = f"{bed.work}-images/ssh"
    _make_keys(keys)
    try:
        for number, each in enumerate((bed, other)):
            os.makedirs(f"{each.work}-images", exist_ok=True)
            network = Network(sockets[:: 1 if number == 0 else -1], keys)
            each.boot(vtpms, network=network, memory=MEMORY, **options)
            _connect(each, number)
        other.machine.must(f"rm -r {' '.join(f'{STATES}/{v.uuid}' for v in vtpms)}")
        for each, name in ((bed, NAMES[1]), (other, NAMES[0])):
            must_be(each.machine, f"ssh {name} hostname", name, 60)
        yield other
    finally:
        other.stop()


def share_state(bed, other):
    """Puts the state of the first machine on NFS, for both. That machine is a client, too: locks of
    the server's own processes are not those of its clients."""
    for each in (bed, other):
        each.stop_backend()
    bed.machine.must(
        f"mkdir -p /srv && mount -t tmpfs tmpfs /srv && cp -a {STATES} /srv/states && modprobe nfsd"
        " && mount -t nfsd nfsd /proc/fs/nfsd && mkdir -p /var/lib/nfs/v4recovery"
        " && echo '/srv/states *(rw,no_root_squash,no_subtree_check,insecure,fsid=0)' >/etc/exports"
        " && : >/var/lib/nfs/etab && exportfs -ra && rpc.mountd -N 2 -N 3"
        # No lock before the end of the grace period, which has 10 s at least.
        " && echo 10 >/proc/fs/nfsd/nfsv4gracetime && rpc.nfsd -N 3 4", 120
    )
    for each in (bed, other):
        each.machine.must(f"modprobe nfsv4; mount.nfs one:/ {STATES} -o vers=4.2", 120)
        each.start_backend()


def small_states(*beds):
    """Gives each host a file system of its own for the vTPMs' states, which can be filled."""
    for each in beds:
        each.stop_backend()
        each.machine.must(
            f"mkdir /small && mount -t tmpfs -o size=4m tmpfs /small && cp -a {STATES}/. /small"
            f" && mount --move /small {STATES}"
        )
        each.start_backend()


def migrate(guest, source, target, command="xen-vtpmd migrate"):
    """Moves the guest, by a command that takes its name and the host."""
    peer = target.machine.must("hostname").strip()
    code, output = source.machine.run(f"{command} {guest.name} {peer} 2>&1", MIGRATION_LIMIT)
    if code:
        raise Failure(f"{command} ended with {code}: {output[-2000:]}")
    guest.machine = target.machine
    guest.migrated()
    if guest.vtpms:
        must_be(source.machine, "pidof swtpm | wc -w", "0", 20)
        must_be(target.machine, "pidof swtpm | wc -w", str(len(guest.vtpms)), 20)
    return output
