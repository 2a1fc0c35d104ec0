# SPDX-License-Identifier: GPL-2.0
"""Takes the time of TPM commands in a guest: our driver, the C driver and the bare exchange, each
with a vTPM of the same backend, in turns."""

import collections
import dataclasses
import json
import statistics

from testbed import programs
from testbed.guest import Guest
from testbed.machine import BedError

PROGRAMS = "/usr/sbin/xen-null-backend", "/usr/sbin/xen-tpm-timing"
MODULES = "vtpm-floor.ko", "vtpm-c.ko", "vtpm-c-irq.ko"
DEBUG = "/sys/kernel/debug/vtpm-floor"
# Who is measured, and by which name its driver is known on the bus. Ours comes first: the kernel's
# first TPM is measured from within the kernel, too. The bare exchange is last.
DRIVERS = {"rust": "vtpm", "c": "vtpm-c", "c_irq": "vtpm-c-irq", "floor": "vtpm-floor"}
BIND_TRIES = 5

START_NULL = """
xen-null-backend >/host/null-backend.log 2>&1 &
echo $! >/run/null-backend.pid; sleep 1; kill -0 $!
"""
STOP_NULL = "kill $(cat /run/null-backend.pid)"

# No driver takes a device by itself; no kernel thread asks the TPMs for random numbers meanwhile.
LOAD = """
echo 0 >/sys/bus/xen/drivers_autoprobe
modprobe xen-tpmfront
insmod /bench/vtpm-floor.ko
insmod /bench/vtpm-c.ko
insmod /bench/vtpm-c-irq.ko
"""
BIND = """
echo {device} >/sys/bus/xen/drivers/{driver}/bind || exit 1
for i in $(seq 100); do
	[ -e /sys/bus/xen/drivers/{driver}/{device} ] || exit 1
	[ "$(cat /sys/bus/xen/devices/{device}/state)" = Connected ] && exit
	sleep 0.1
done
exit 1
"""
UNBIND = """
echo {device} >/sys/bus/xen/drivers/{driver}/unbind
for i in $(seq 50); do [ -e /sys/bus/xen/devices/{device} ] && break; sleep 0.1; done
sleep 0.5
"""
NO_HWRNG = "echo none >/sys/class/misc/hw_random/rng_current || :"


@dataclasses.dataclass
class Command:
    """A TPM command, in hexadecimal; `+N` are so many NUL bytes."""

    name: str
    packet: str


SHORTEST = Command("shortest", "00c10000000a00000053")
# Its answer is as long.
LONGEST = Command("4,000 bytes", "00c100000fa020000000+3990")
# The last of each is what is done in a row.
SWTPM = {
    "2.0": (
        Command("GetRandom", "80010000000c0000017b0010"),
        Command("PCR_Read", "8001000000140000017e00000001000b03000400"),
        Command(
            "PCR_Extend", "80020000004100000182000000100000000940000009000000000000000001000b+32"
        ),
    ),
    "1.2": (
        Command("PCRRead", "00c10000000e000000150000000a"),
        Command("Extend", "00c1000000220000001400000010+20"),
    ),
}
# Under icount.
NS_AN_INSTRUCTION = 4


def files():
    """What a machine that measures has in dom0, and in its guests, beside what others have."""
    dom0 = {PROGRAMS[0]: programs.bench_path("xen-null-backend")}
    guest = {PROGRAMS[1]: programs.bench_path("xen-tpm-timing")}
    guest.update({f"/bench/{name}": programs.bench_path(name) for name in MODULES})
    return {"files": dom0, "guest_files": guest}


def status(bed):
    """The daemon's counters, added up over all vTPMs."""
    report = json.loads(bed.machine.must("xen-vtpmd status --json"))
    total = collections.Counter({"daemon_us": report["used_us"]})
    for vtpm in report["vtpms"]:
        total.update(
            {
                name: vtpm[name] or 0
                for name in ("commands", "swtpm_used_us", "timed", "own_us", "timed_us")
            }
        )
    return total


def own_share(before, after):
    """The daemon's time for a command beside swtpm's, between two looks at the counters."""
    found = {name: after[name] - before[name] for name in after}
    own_us = (found["daemon_us"] + found["own_us"]) / found["commands"]
    return {"daemon_us": round(own_us, 1),
            "swtpm_us": round(found["swtpm_used_us"] / found["commands"], 1),
            "latency_us": round(found["timed_us"] / found["timed"], 1)}


class Measured:
    """A guest with vTPMs for each driver."""

    def __init__(self, bed, name, vtpms):
        """`vtpms` are in the order of DRIVERS, once or more."""
        self.guest = Guest(
            bed.machine, name, [], options="bed.tpms=" + ",".join(vtpm.version for vtpm in vtpms)
        )
        self.vtpms = vtpms
        self.devices = {}

    def start(self):
        """Starts the guest, with the modules loaded. It gets its vTPMs one after the other: so many
        TPMs that start at once take longer than libxl waits."""
        self.guest.start()
        for vtpm in self.vtpms:
            self.guest.machine.must(
                f"xl vtpm-attach {self.guest.name} uuid={vtpm.uuid} backend={vtpm.backend}", 60
            )
        self.guest.must(LOAD)

    def bind(self, first=0):
        """Binds the drivers to the vTPMs from `first` on. The C driver loses one now and then (race
        T2)."""
        if "floor" in self.devices:
            # It can have but one.
            self.guest.must(
                f"echo vtpm-{first - 1} >/sys/bus/xen/drivers/{DRIVERS['floor']}/unbind"
            )
        for number, (name, driver) in enumerate(DRIVERS.items(), first):
            names = {"device": f"vtpm-{number}", "driver": driver}
            for _ in range(BIND_TRIES if name == "c" else 1):
                if self.guest.run(BIND.format(**names), 60).code == 0:
                    break
                self.guest.run(UNBIND.format(**names), 60)
            else:
                raise BedError(
                    f"the driver {driver} does not get its vTPM: see dmesg in {self.guest.name}"
                )
            if name == "floor":
                self.devices[name] = "/dev/vtpm-floor"
            else:
                path = self.guest.must(f"ls -d /sys/bus/xen/devices/vtpm-{number}/tpm/tpm*")
                self.devices[name] = "/dev/" + path.strip().rpartition("/")[2]
        self.guest.must(NO_HWRNG)

    def _timing(self, what, count, command, ways, limit):
        ways = " ".join(f"{name}={path}" for name, path in ways.items())
        output = self.guest.must(f"xen-tpm-timing {what} {count} {command.packet} {ways}", limit)
        lines = (line.split() for line in output.splitlines())
        return {name: [int(number) for number in numbers] for name, *numbers in lines}

    def _users(self):
        """What there is in user space: the drivers, and the bare exchange by another name than in
        the kernel."""
        return {
            "floor-user" if name == "floor" else name: path for name, path in self.devices.items()
        }

    def times(self, command, rounds, limit=1800):
        """The us of each sample of each way: of the drivers, and as `floor-user` of the bare
        exchange, from user space; as `floor` of the bare exchange, and as `rust-kernel` of the
        first TPM, in the kernel. What it takes to look at the clock is taken off."""
        ways = {**self._users(), "floor": f"{DEBUG}/exchange", "kernel-clock": f"{DEBUG}/clock"}
        if self.devices["rust"] == "/dev/tpm0":
            ways["rust-kernel"] = f"{DEBUG}/chip"
        found = self._timing("time", rounds, command, ways, limit)
        clock = statistics.median(found.pop("clock"))
        kernel_clock = statistics.median(found.pop("kernel-clock"))
        return {
            name: [
                (ns - (kernel_clock if ways[name].startswith(DEBUG) else clock)) / 1000
                for ns in samples
            ]
            for name, samples in found.items()
        }

    def instructions(self, command, rounds, limit=1800):
        """How many instructions the guest's vCPU takes for a command, by the time that Xen says it
        has run: with user space, interrupts, and what Xen does for the guest."""
        ways = self._users()
        found = self._timing("run", rounds, command, ways, limit)
        clock = statistics.median(found.pop("clock"))
        return {
            name: (statistics.median(samples) - clock) / NS_AN_INSTRUCTION
            for name, samples in found.items()
        }

    def row(self, command, count, limit=1800):
        """The ms of so many commands in a row."""
        found = self._timing("row", count, command, self.devices, limit)
        return {name: samples[0] / 1e6 for name, samples in found.items()}
