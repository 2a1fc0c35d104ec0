# SPDX-License-Identifier: GPL-2.0
"""Many guests at a time, and guests that do nothing: what they cost the daemon and each other."""

import contextlib
import re

from testbed import backend_resources, bench, wait
from testbed.guest import Guest
from testbed.machine import BedError

GUESTS = 8
# Idle vTPMs, which nobody but xenstore knows: what the toolstack writes for them.
IDLE_DOMAINS = 20000
IDLE = """
for n in $(seq {first} {last}); do
	front=/local/domain/$n/device/vtpm/0 back=/local/domain/0/backend/vtpm/$n/0
	uuid=$(printf '{uuid}' $n)
	xenstore-write $front/backend $back $front/backend-id 0 $front/state 1 $front/handle 0 \\
		$back/frontend $front $back/frontend-id $n $back/handle 0 $back/uuid $uuid $back/resume False \\
		$back/online 1 $back/state 1
done
for n in $(seq {first} {last}); do
	until [ "$(xenstore-read /local/domain/0/backend/vtpm/$n/0/state)" = 2 ]; do sleep 0.2; done
done
"""
UUID = "00000000-0000-4000-9000-%012x"
WAKE_UPS = (
    "sed -n 's/^\\(non\\)\\?voluntary_ctxt_switches:\\s*//p' /proc/{pid}/status | awk '{{ n += $1"
    " }} END {{ print n }}'"
)
MEMORY = (
    "awk '/^(Pss|Private_Dirty|Private_Clean):/ {{ n[$1] += $2 }} END {{ print n[\"Pss:\"] }}'"
    " /proc/{pid}/smaps"
)


def processor_ns(machine, pid_file):
    """The processor time of a daemon so far."""
    return int(machine.must(f"cut -d' ' -f1 /proc/$(cat {pid_file})/schedstat"))


def rates(guests, command, seconds, limit=1200):
    """Lets all guests work at once; returns the commands a second of each, while all of them were
    at it, and how many commands there were in all."""
    for guest in guests:
        guest.must(
            f"xen-tpm-timing busy {seconds} {command.packet} tpm=/dev/tpm0 >/run/busy 2>&1 &"
        )
    # To look whether they are at it would cost them time.
    guests[0].machine.must(f"sleep {seconds}", limit)
    marks = []
    for guest in guests:
        output = wait.until(
            lambda guest=guest: guest.run(
                "pidof xen-tpm-timing >/dev/null || cat /run/busy"
            ).output.strip(),
            limit,
            f"{guest.name} does not come to an end",
            pause=1,
            error=BedError,
        )
        name, *numbers = output.split()
        if name != "tpm":
            raise BedError(f"{guest.name}: {output}")
        marks.append([int(number) / 1e9 for number in numbers])
    start, end = max(times[0] for times in marks), min(times[-1] for times in marks)
    inside = [[moment for moment in times if start <= moment <= end] for times in marks]
    if min(len(times) for times in inside) < 4:
        raise BedError(
            "the guests did not work at the same time:"
            f" {[(times[0], times[-1]) for times in marks]}"
        )
    return [16 * (len(times) - 1) / (times[-1] - times[0]) for times in inside], 16 * sum(
        map(len, marks)
    )


def start(bed, number, vtpm):
    """A guest with our driver."""
    guest = Guest(
        bed.machine, f"guest{number}", [vtpm], memory=400, options=f"bed.tpms={vtpm.version}"
    )
    guest.start()
    guest.must(". /bed/lib.sh; load_driver; wait_for 60 test -c /dev/tpm0", 120)
    guest.must(bench.NO_HWRNG)
    return guest


def together(bed, guests, command, seconds, pid_file):
    """One, two, four and eight guests at once: what each of these came to, by name."""
    found = {}
    for count in (1, 2, 4, 8):
        if count > len(guests):
            break
        before = processor_ns(bed.machine, pid_file)
        each, commands = rates(guests[:count], command, seconds)
        used = (processor_ns(bed.machine, pid_file) - before) / 1000 / commands
        found[count] = {
            "commands_a_second": round(sum(each), 1),
            "slowest_to_fastest": round(min(each) / max(each), 3),
            "daemon_us_a_command": round(used, 1),
        }
    return found


def with_idle(bed, guest, counts, command, seconds):
    """The daemon's processor time for a command, while so many vTPMs do nothing."""
    found, there = {}, 0
    for count in counts:
        if count > there:
            numbers = {
                "first": IDLE_DOMAINS + there,
                "last": IDLE_DOMAINS + count - 1,
                "uuid": UUID,
            }
            bed.machine.must(IDLE.format(**numbers), 1200)
            there = count
        before = backend_resources.counters(bed.machine, guest)
        rates([guest], command, seconds)
        after = backend_resources.counters(bed.machine, guest)
        found[count] = round(
            (after["daemon_us"] - before["daemon_us"]) / (after["commands"] - before["commands"]), 1
        )
    return found


def wake_ups(bed, guest, seconds):
    """How often the daemon was switched to, and how many events the guest's driver took, while
    nothing was done."""
    def look():
        daemon = int(bed.machine.must(WAKE_UPS.format(pid="$(cat /run/xen-vtpmd.pid)")))
        lines = guest.must("grep vtpm /proc/interrupts")
        return daemon, sum(
            int(number) for number in re.findall(r"^\s*\d+:\s+(\d+)", lines, re.MULTILINE)
        )

    before = look()
    bed.machine.must(f"sleep {seconds}", 1200)
    return [now - then for then, now in zip(before, look())]


def memory_kb(bed, name):
    """The memory (proportional set size) of each process of that name, in kB."""
    return [
        int(bed.machine.must(MEMORY.format(pid=pid)))
        for pid in bed.machine.must(f"pidof {name}").split()
    ]


@contextlib.contextmanager
def null_backend(bed):
    """The backend without a TPM, in the daemon's place."""
    bed.stop_backend()
    bed.machine.must(bench.START_NULL)
    yield
    bed.machine.must(bench.STOP_NULL)
    bed.start_backend()
