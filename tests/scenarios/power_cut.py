# SPDX-License-Identifier: GPL-2.0
"""Power cuts: while a guest counts in NV, the disk with dom0's vTPM state is looked at as it is
when the power goes. What the guest was told of is there each time."""

import os
import random
import shutil
import subprocess
import threading
import time

from testbed import power, programs, wait
from testbed.machine import BedError
from testbed.report import Failure

SETS = ("deep",)

# So many copies of the disk of a machine that is stopped for a moment, which are what SIGKILL of
# QEMU leaves there, and so many real ones, after which dom0 boots.
MOMENTS = 30
REBOOTS = 3
# A daemon that makes nothing durable is found after so many moments at most.
UNSYNCED = 10

INDEX = "0x1500030"
NOSYNC = "/usr/lib/nosync.so"


class Counter(threading.Thread):
    """Has the guest write one number after the other to NV; the next one when the guest has said
    that the last one is written."""

    def __init__(self, guest, last=0):
        super().__init__(daemon=True)
        self._guest = guest
        self._ended = False
        self.acked = self.asked = last
        self.failure = None

    def run(self):
        try:
            while not self._ended:
                self.asked += 1
                self._guest.must(f"printf %08d {self.asked} | tpm2 nvwrite -Q -C o -i - {INDEX}")
                self.acked = self.asked
        except (BedError, OSError) as why:
            self.failure = why

    def end(self):
        """Lets the last one end."""
        self._ended = True
        self.join()
        if self.failure:
            raise self.failure

    def advance(self):
        """Waits until the guest has counted on."""
        last = self.acked
        wait.until(lambda: self.acked > last or self.failure, 60,
                   lambda: f"the guest does not count on: it is at {last}")
        if self.failure:
            raise self.failure


def must(*command, codes=(0,)):
    """Runs a program on the host; returns its output."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode not in codes:
        raise Failure(f"{command} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


def number_on(disk, uuid):
    """What NV has according to a disk, as swtpm sees it that starts on what is there."""
    folder = f"{disk}-files"
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    # The journal is replayed, as at a mount: code 1 says that something was corrected.
    must("e2fsck", "-f", "-y", disk, codes=(0, 1))
    must("debugfs", "-R", f"rdump /{uuid} {folder}", disk)
    state = f"{folder}/{uuid}/tpm2-00.permall"
    if not os.path.exists(state) or not os.path.getsize(state):
        raise Failure(f"{state} is empty or not there")
    text = power.nv_read(f"{folder}/{uuid}", INDEX)
    shutil.rmtree(folder)
    return int(text)


def cut(bed, counter, uuid, chance):
    """Looks at the disk at a random moment: the number there, the last that the guest had written
    for certain, and the last that it may have written."""
    counter.advance()
    time.sleep(chance.uniform(0, 2))
    copy = f"{bed.work}-copy.img"
    # Read before, and after: between the two is the moment.
    acked = counter.acked
    with bed.machine.stopped():
        must("cp", "--sparse=always", bed.machine.state_disk, copy)
        asked = counter.asked
    return number_on(copy, uuid), acked, asked


def is_there(number, acked, asked):
    """What the guest was told of is there, and nothing that it has not asked for."""
    if not acked <= number <= asked:
        raise Failure(f"NV has {number}, and the guest was at {acked} to {asked}")
    return f"{number} ({acked} to {asked})"


def moments(bed, counter, uuid, chance):
    """Many moments; the guest goes on after each."""
    behind = 0
    for _ in range(MOMENTS):
        number, acked, asked = cut(bed, counter, uuid, chance)
        is_there(number, acked, asked)
        behind += number < asked
    if not 0 < behind < MOMENTS:
        raise Failure(f"{behind} of {MOMENTS} moments were in the midst of a write")
    return f"{MOMENTS} moments, {behind} before a write, up to {counter.acked}"


def boot(bed, vtpm, disk):
    """Boots dom0, with what a daemon that makes nothing durable needs."""
    bed.boot([vtpm], state_disk=disk, files={NOSYNC: programs.build_nosync()})


def new_guest(bed, vtpm):
    """The guest, which has just booted."""
    guest = bed.new_guest("counts", [vtpm], memory=400, options="bed.driver=rust bed.tpms=2.0")
    guest.start()
    bed.checks(guest, "module_loads")
    return guest


def reboot(bed, counter, vtpm, chance):
    """The power goes, and comes back: the guest finds its number."""
    counter.advance()
    time.sleep(chance.uniform(0, 2))
    acked = counter.acked
    bed.machine.cut_power()
    counter.join()
    asked = counter.asked
    on_disk = number_on(shutil.copy(bed.machine.state_disk, f"{bed.work}-copy.img"), vtpm.uuid)
    boot(bed, vtpm, bed.machine.state_disk)
    guest = new_guest(bed, vtpm)
    number = int(guest.must(f"tpm2 nvread -C o -s 8 {INDEX}"))
    if number != on_disk:
        raise Failure(f"the guest reads {number}, and the disk has {on_disk}")
    said = is_there(number, acked, asked)
    return said, guest, number


def finds_unsynced(bed, guest, vtpm, chance):
    """Of a daemon whose fsync(2) does nothing, the same look finds that what was acknowledged is
    not there."""
    number = int(guest.must(f"tpm2 nvread -C o -s 8 {INDEX}"))
    guest.shutdown()
    bed.stop_backend()
    bed.machine.must(f"[ -e {NOSYNC} ]")
    bed.machine.must(f"LD_PRELOAD={NOSYNC} xen-vtpmd run >>/host/xen-vtpmd.log 2>&1 & "
                     "echo $! >/run/xen-vtpmd.pid; sleep 1; kill -0 $!")
    counter = Counter(new_guest(bed, vtpm), number)
    counter.start()
    try:
        for moment in range(1, UNSYNCED + 1):
            try:
                number, acked, asked = cut(bed, counter, vtpm.uuid, chance)
            except Failure as why:
                return f"moment {moment}: {why}"
            if number < acked:
                return f"moment {moment}: NV has {number} where {acked} was acknowledged"
    finally:
        counter.end()
    raise Failure(f"{UNSYNCED} moments, and each time NV has what was acknowledged")


def run(bed):
    """One guest in one dom0, whose state directory is on a disk of its own."""
    seed = int(os.environ.get("SEED") or time.time())
    chance = random.Random(seed)
    vtpm = bed.vtpm("2.0")
    disk = power.make_disk(f"{bed.work}-state.img", [vtpm])
    boot(bed, vtpm, disk)
    guest = new_guest(bed, vtpm)
    guest.must(f"tpm2 nvdefine -Q -C o -s 8 -a 'ownerread|ownerwrite|no_da' {INDEX}")
    counter = Counter(guest)
    counter.start()
    counter.advance()
    bed.record(f"{MOMENTS} power cuts while NV is written (SEED={seed})", moments, bed, counter,
               vtpm.uuid, chance)
    for number in range(1, REBOOTS + 1):
        found = []

        def one(counter=counter, found=found):
            said, *rest = reboot(bed, counter, vtpm, chance)
            found.extend(rest)
            return said

        if not bed.record(f"power cut and reboot {number} of {REBOOTS}", one):
            return
        guest, last = found
        if number < REBOOTS:
            counter = Counter(guest, last)
            counter.start()
    bed.record("a daemon that makes nothing durable is found", finds_unsynced, bed, guest, vtpm,
               chance)
