# SPDX-License-Identifier: GPL-2.0
"""make bench: what commands cost, as a table, as build/bench/latency.json and as a plot."""

import contextlib
import datetime
import functools
import json
import os
import shutil
import sys
from statistics import median, quantiles

from testbed import bench, bench_many, programs
from testbed.qemu_tpm import EmulatedTpm
from testbed.guest import Guest, Vtpm
from testbed.machine import BedError
from suites import plot
from tools import build
from tools.kernels import intree
from tools.steps import BUILD, StepError, output, step
from suites.scenarios import booted
from testbed.testbed import Testbed, tpm_state

TARGET = f"{BUILD}/bench"
# Samples of each driver in a row of the table.
ROUNDS, QUICK_ROUNDS = 1000, 150
DRIVERS = tuple(bench.DRIVERS)
PARTS = ("icount", "realtime", "scale", "emulated", "ima")
SEED = int(os.environ.get("SEED") or 1)
# So many vTPMs do nothing beside one that is busy.
IDLE_COUNTS = (0, 7, 50)
# So many files are read where IMA measures each.
MEASUREMENTS = 2000
# What the plot shows, in this order.
PANELS = {
    ("null", bench.SHORTEST.name): "a backend that answers at once, the shortest command",
    ("swtpm-2.0", "GetRandom"): "swtpm 2.0, GetRandom",
    ("swtpm-1.2", "PCRRead"): "swtpm 1.2, PCRRead",
}
COLUMNS = (
    "backend",
    "command",
    "driver",
    "samples",
    "median_us",
    "p95_us",
    "p99_us",
    "ratio_to_floor",
    "speedup_vs_c",
)


class Results:
    """What was measured."""

    def __init__(self):
        self.rows, self.samples, self.others = [], {}, []

    def add(self, mode, backend, command, samples):
        """Takes down the samples (us) of each driver for one command, as rows."""
        middle = {driver: median(values) for driver, values in samples.items()}
        for driver in DRIVERS:
            parts = quantiles(samples[driver], n=100, method="inclusive")
            self.rows.append(
                {
                    "mode": mode,
                    "driver": driver,
                    "backend": backend,
                    "command": command,
                    "samples": len(samples[driver]),
                    "median_us": round(middle[driver], 1),
                    "p95_us": round(parts[94], 1),
                    "p99_us": round(parts[98], 1),
                    "ratio_to_floor": round(middle[driver] / middle["floor"], 3),
                    "speedup_vs_c": round(middle["c"] / middle[driver], 2),
                }
            )
        self.samples[mode, backend, command] = samples

    def note(self, mode, what, value):
        """Takes down a figure that is not a row."""
        self.others.append({"mode": mode, "what": what, "value": value})
        print(f"    {mode}: {what}: {value}")

    def table(self, mode):
        """The rows of a mode in Markdown. In real time the ratios alone say something."""
        names = [name for name in COLUMNS if mode == "icount" or not name.endswith("_us")]
        lines = [
            "| " + " | ".join(name.replace("_", " ") for name in names) + " |",
            "|" + " --- |" * len(names),
        ]
        for row in self.rows:
            if row["mode"] == mode:
                lines.append("| " + " | ".join(str(row[name]) for name in names) + " |")
        return "\n".join(lines)

    def write(self, kernel):
        """Writes the files, and prints the tables."""
        os.makedirs(TARGET, exist_ok=True)
        for name, content in (
            ("latency", {"rows": self.rows}),
            ("others", {"figures": self.others}),
            (
                "samples",
                [
                    {"mode": mode, "backend": backend, "command": command, **samples}
                    for (mode, backend, command), samples in self.samples.items()
                ],
            ),
        ):
            with open(f"{TARGET}/{name}.json", "w", encoding="utf-8") as file:
                json.dump(content, file, indent=1)
                file.write("\n")
        today = datetime.date.today().isoformat()
        panels = {title: {driver: self.samples["icount", *key][driver] for driver in DRIVERS}
                  for key, title in PANELS.items() if ("icount", *key) in self.samples}
        if panels:
            about = f"{today}, Linux {kernel.release}, QEMU with emulated time (icount); make bench"
            with open(f"{TARGET}/latency.svg", "w", encoding="utf-8") as file:
                file.write(plot.draw("How long a TPM command takes in a Xen guest", about, panels))
        text = "\n\n".join(
            f"{mode}, {today}, Linux {kernel.release}\n\n{self.table(mode)}"
            for mode in PARTS[:2]
            if any(row["mode"] == mode for row in self.rows)
        )
        with open(f"{TARGET}/latency.md", "w", encoding="utf-8") as file:
            file.write(text + "\n")
        print(text)


def _null(bed, mode, rounds, results):
    """A backend that answers at once."""
    bed.stop_backend()
    bed.machine.must(bench.START_NULL)
    measured = bench.Measured(bed, "null", [bed.vtpm() for _ in bench.DRIVERS])
    measured.start()
    measured.bind()
    for command in (bench.SHORTEST, bench.LONGEST):
        samples = measured.times(command, rounds)
        results.add(mode, "null", command.name, samples)
        for name in ("floor-user", "rust-kernel"):
            results.note(mode, f"null, {command.name}: {name}, us", round(median(samples[name]), 1))
    if mode == "icount":
        for driver, count in measured.instructions(bench.SHORTEST, rounds).items():
            results.note(mode, f"instructions of the guest for a command, {driver}", round(count))
    measured.guest.shutdown()
    bed.machine.must(bench.STOP_NULL)
    bed.start_backend()


def _swtpm(bed, vtpms, mode, rounds, results):
    """swtpm behind xen-vtpmd, of both versions."""
    measured = bench.Measured(bed, "swtpm", vtpms)
    measured.start()
    for number, (version, commands) in enumerate(bench.SWTPM.items()):
        measured.bind(number * len(bench.DRIVERS))
        for command in commands:
            before = bench.status(bed)
            results.add(mode, f"swtpm-{version}", command.name, measured.times(command, rounds))
            results.note(
                mode,
                f"swtpm {version}, {command.name}: the daemon's time",
                bench.own_share(before, bench.status(bed)),
            )
        row = measured.row(bench.SWTPM[version][-1], max(1000, rounds))
        results.note(
            mode,
            f"swtpm {version}: 1,000 extends in a row, ms",
            {name: round(ms) for name, ms in row.items()},
        )
    measured.guest.shutdown()


def _scale(bed, results, seconds=5):
    """Guests at once, vTPMs that do nothing, and what a vTPM needs of dom0's memory."""
    vtpms = [bed.vtpm("2.0") for _ in range(bench_many.GUESTS)]
    idle = [
        Vtpm(bench_many.UUID % (bench_many.IDLE_DOMAINS + number), "2.0")
        for number in range(max(IDLE_COUNTS))
    ]
    bed.boot(vtpms + idle, dom0_memory=2048, memory=7168, icount=SEED, **bench.files())
    note = functools.partial(results.note, "icount")
    note("daemon's memory without a vTPM, kB", bench_many.memory_kb(bed, "xen-vtpmd"))
    guests = [bench_many.start(bed, number, vtpm) for number, vtpm in enumerate(vtpms)]
    note(f"daemon's memory with {len(guests)} guests, kB", bench_many.memory_kb(bed, "xen-vtpmd"))
    note("memory of each swtpm, kB", bench_many.memory_kb(bed, "swtpm"))
    note(
        "wake-ups in 60 s of nothing: daemon, driver's interrupt",
        bench_many.wake_ups(bed, guests[0], 60),
    )
    command = bench.SWTPM["2.0"][0]
    for count, found in bench_many.together(
        bed, guests, command, seconds, "/run/xen-vtpmd.pid"
    ).items():
        note(f"guests at once, swtpm 2.0, GetRandom: {count}", found)
    for guest in guests[1:]:
        guest.destroy()
    for count, used in bench_many.with_idle(bed, guests[0], IDLE_COUNTS, command, seconds).items():
        note(f"daemon's us for a command beside {count} idle vTPMs", used)
    guests[0].destroy()
    with bench_many.null_backend(bed):
        guests = [bench_many.start(bed, number, vtpm) for number, vtpm in enumerate(vtpms)]
        for count, found in bench_many.together(
            bed, guests, bench.SHORTEST, seconds, "/run/null-backend.pid"
        ).items():
            note(f"guests at once, null: {count}", found)
        for guest in guests:
            guest.destroy()


def _emulated(bed, results):
    """QEMU's own TPM interfaces, without Xen."""
    initrd = bed.write_guest_image(bench.files()["guest_files"])
    for device in ("tpm-tis", "tpm-crb"):
        state = f"{bed.work}.{device}"
        shutil.rmtree(state, ignore_errors=True)
        shutil.copytree(tpm_state(Vtpm("", "2.0")), state)
        with EmulatedTpm(
            f"{bed.work}-{device}", bed.kernel.vmlinuz, initrd, device, state
        ) as machine:
            for command in bench.SWTPM["2.0"]:
                results.note(
                    "realtime",
                    f"{device} of QEMU without Xen, {command.name}",
                    machine.cost(command),
                )


def _ima(bed, c_kernel, results):
    """What a measurement of IMA's costs with each driver built in, and without a TPM. The C driver
    never asks whether a TPM is a 2.0, so that it is compared with a 1.2."""
    own, other = "/boot/vmlinux", "/boot/vmlinux-c"
    runs = {
        "ours, TPM 1.2": (own, "1.2"),
        "C, TPM 1.2": (other, "1.2"),
        "ours, TPM 2.0": (own, "2.0"),
        "no TPM": (own, None),
    }
    vtpms = {what: bed.vtpm(version) for what, (_, version) in runs.items() if version}
    bed.boot(vtpms.values(), icount=SEED, files={other: c_kernel.vmlinux})
    for what, (kernel, version) in runs.items():
        guest = Guest(bed.machine, "ima", [vtpms[what]] if version else [], kernel=f"'{kernel}'",
                      options=f"ima_policy=tcb bed.tpms={version or ''}")
        guest.start()
        has = "check_ima_has_" + ("a_tpm" if version else "none_of_a_module")
        took = int(
            guest.must(f". /bed/lib.sh; . /bed/ima.sh; {has}; ima_files timed {MEASUREMENTS}", 1200)
        )
        results.note(
            "icount", f"{MEASUREMENTS} measurements by IMA, ms: {what}", round(took / 1000)
        )
        guest.shutdown()


def _sizes(kernel, results):
    """What the modules take in memory."""
    for name, path in (
        ("ours", build.module_path(kernel)),
        ("the C driver", programs.bench_path("vtpm-c.ko")),
    ):
        text, data, bss = output("size", path).splitlines()[1].split()[:3]
        sections = dict(
            line.split()[:2]
            for line in output("size", "-A", path).splitlines()
            if line.startswith(".")
        )
        results.note("-", f"module, {name}", {"text": int(text), "data": int(data), "bss": int(bss),
                                              ".text": int(sections[".text"])})


class Run:
    """What the parts have in common."""

    def __init__(self, kernel, xen, report):
        self.kernel, self.xen, self.report = kernel, xen, report
        self.quick = os.environ.get("QUICK")
        self.rounds = QUICK_ROUNDS if self.quick else ROUNDS
        self.results = Results()

    @contextlib.contextmanager
    def _bed(self, name, own=None):
        bed = Testbed(self.report, self.kernel, self.xen, f"bench-{name}", own=own)
        try:
            yield bed
        finally:
            bed.stop()

    def _latency(self, mode, machine):
        with self._bed(mode) as bed:
            vtpms = [bed.vtpm(version) for version in bench.SWTPM for _ in bench.DRIVERS]
            bed.boot(vtpms, **bench.files(), **machine)
            _null(bed, mode, self.rounds, self.results)
            _swtpm(bed, vtpms, mode, self.rounds, self.results)

    def icount(self):
        """Commands, by emulated time."""
        self._latency("icount", {"icount": SEED})

    def realtime(self):
        """Commands, by the host's time."""
        self._latency("realtime", {})

    def scale(self):
        """Many guests, and idle ones."""
        with self._bed("scale") as bed:
            _scale(bed, self.results)

    def emulated(self):
        """QEMU's emulated TPMs, without Xen."""
        with self._bed("emulated") as bed:
            _emulated(bed, self.results)

    def ima(self):
        """IMA's measurements, with the driver built in."""
        c_kernel = intree.build_c_kernel(self.kernel)
        with self._bed("ima", intree.build_kernel(self.kernel)) as bed:
            _ima(bed, c_kernel, self.results)


def run(kernels, xen, report):
    """All parts, or those of a quick run, or those named by SCENARIOS=; returns the exit code."""
    run_of = Run(booted(kernels)[0], xen, report)
    with step("building what measures"):
        build.build_module(run_of.kernel)
        build.build_backend()
        programs.build_bench_modules(run_of.kernel)
    _sizes(run_of.kernel, run_of.results)
    named, code = os.environ.get("SCENARIOS"), 0
    for name in named.split(",") if named else PARTS[:2] if run_of.quick else PARTS:
        if name not in PARTS:
            raise StepError(f"no part '{name}': there are {', '.join(PARTS)}")
        part = getattr(run_of, name)
        with step(f"{name}: {part.__doc__}"):
            try:
                part()
            except BedError as why:
                print(f"error: {name}: {why}", file=sys.stderr)
                code = 1
    # What was measured until then is kept.
    run_of.results.write(run_of.kernel)
    return code
