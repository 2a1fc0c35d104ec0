# SPDX-License-Identifier: GPL-2.0
"""A guest that measures with IMA at full speed is migrated to the same host: PCR 10 is the replay
of its list all the same."""

import re

from testbed.guest_checks import IMA_POLICY
from testbed.report import Failure
from testbed.toolstack import migrate_here

SETS = ("deep",)
KERNEL = "intree"
NEEDS = ("save",)

CHURN = "rm -f /run/churn.stop; python3 -E -s /bed/ima.py churn /mnt/churn >/run/churn 2>&1 &"
# Prints how many measurements there are when there are some more.
GOES_ON = """
count() { cat /sys/kernel/security/ima/runtime_measurements_count; }
before=$(count)
for i in $(seq 600); do
    [ $(($(count) - before)) -lt 20 ] || { count; exit 0; }
    sleep 0.1
done
cat /run/churn; exit 1
"""
ENDED = "touch /run/churn.stop; for i in $(seq 300); do [ -s /run/churn ] && break; sleep 0.1; done"


def measures(guest):
    """It does so now."""
    return int(guest.must(GOES_ON, 120))


def moves(bed, guest):
    """The migration begins and ends while the list grows."""
    before = measures(guest)
    said = migrate_here(bed.machine, guest)
    return f"{measures(guest) - before} measurements meanwhile; {said}"


def ends(guest):
    """Nothing has failed."""
    said = guest.must(f"{ENDED}; cat /run/churn", 90).strip()
    if not re.fullmatch("[0-9]+", said):
        raise Failure(said)
    return f"{said} files"


def run(bed):
    """Twice: the second time it comes from where it was migrated to."""
    vtpm = bed.vtpm("2.0")
    bed.boot([vtpm])
    with bed.guest("ima", [vtpm], options=IMA_POLICY, memory=400, type="'pvh'") as guest:
        bed.checks(guest, "ima_has_a_tpm")
        guest.must(f". /bed/lib.sh; . /bed/ima.sh; measured; {CHURN}", 60)
        for _ in range(2):
            bed.record("xl migrate", moves, bed, guest)
        bed.record("the load ends", ends, guest)
        bed.checks(guest, "ima_replay")
