# SPDX-License-Identifier: GPL-2.0
"""A kernel that encrypts its commands to the TPM: IMA measures all the time, the worker is killed
again and again, and the TPM is neither disabled by the core nor lost to IMA."""

import os
import random
import time

from testbed import wait
from testbed.guest_checks import IMA_POLICY
from testbed.machine import BedError
from testbed.report import Failure

SETS = ("deep",)
KERNEL = "hmac"

TIMES = 50
# How long it may take until the TPM works again.
RETURN = 20


def works(guest):
    """A command of user space's is answered, and the kernel's own, which need its session, are."""
    script = "python /bed/tpm.py works && head -c 8 /dev/hwrng | wc -c | grep -qx 8"
    wait.until(lambda: not guest.run(f". /bed/lib.sh; {script}").code, RETURN,
               "the TPM does not work again")


def kill_worker(bed):
    """kill -9 of what serves the vTPM; the manager starts it anew."""
    pids = bed.machine.must(
        "pidof xen-vtpmd | tr ' ' '\\n' | grep -vx $(cat /run/xen-vtpmd.pid) | tr '\\n' ' '"
    )
    if not pids.strip():
        raise Failure("the daemon has no worker")
    # With the worker its broker and its I/O process end by themselves.
    bed.machine.must(f"kill -9 {pids}; :")


def killed(bed, guest, chance, number):
    """One turn: measurements, a kill in the midst of them, and the replay."""
    guest.must("rm -f /run/churn.stop; "
               f"python3 -E -s /bed/ima.py churn /mnt/churn-{number} >/run/churn 2>&1 &")
    time.sleep(chance.uniform(0.3, 1.5))
    kill_worker(bed)
    works(guest)
    guest.must(
        "touch /run/churn.stop; for i in $(seq 300); do [ -s /run/churn ] && break; sleep 0.1;"
        " done; grep -qx '[0-9]*' /run/churn || { cat /run/churn; exit 1; }",
        90,
    )
    return guest.must("python3 -E -s /bed/ima.py caught_up", 120).strip()


def rounds(bed, guest):
    """Many of them."""
    seed = int(os.environ.get("SEED") or 1)
    chance, last = random.Random(seed), ""
    for number in range(TIMES):
        try:
            last = killed(bed, guest, chance, number)
        except (BedError, Failure) as why:
            raise Failure(f"after {number} kills (SEED={seed}): {why}") from None
    return f"{TIMES} times; the last: {last}"


def afterwards(guest):
    """With nobody killed, nothing fails."""
    guest.must(
        "mkdir /mnt/after; for i in $(seq 50); do echo $i $RANDOM >/mnt/after/$i; cat"
        " /mnt/after/$i; done"
    )
    said = guest.must("python3 -E -s /bed/ima.py caught_up").strip()
    if not said.endswith(" 0 of which failed, 0 are not in the PCR") or int(said.split()[0]) < 50:
        raise Failure(said)
    return said


def run(bed):
    """One guest, which measures from boot on."""
    vtpm = bed.vtpm("2.0")
    bed.boot([vtpm])
    with bed.guest("hmac", [vtpm], options=IMA_POLICY) as guest:
        bed.checks(guest, "module_loads", "ima_has_a_tpm", "ima_replay", "hmac_is_used")
        guest.must(
            ". /bed/lib.sh; . /bed/ima.sh; measured; python3 -E -s /bed/ima.py caught_up", 120
        )
        bed.record(f"IMA measures while the worker is killed {TIMES} times", rounds, bed, guest)
        bed.record("all that is measured afterwards is in the TPM", afterwards, guest)
