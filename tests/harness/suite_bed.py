# SPDX-License-Identifier: GPL-2.0
"""Runs scenarios on the bed: each is a file in bed/scenarios with SETS and a function `run(bed)`. Some run
at a time, but for those that say ALONE."""

import contextlib
import functools
import importlib
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from bed import content
from bed.guest import Guest, Vtpm
from bed.qemu import BedError, Machine
from harness import build, debug_kernel, intree, series, steps
from harness.report import Failure
from harness.steps import BUILD, StepError, must, step

SCENARIOS = os.path.join(steps.TOP, "tests/bed/scenarios")
UUID = "00000000-0000-4000-8000-{:012x}"
# What the debug kernel costs: by how much limits grow, and a guest's memory (MiB).
DEBUG_SLOWNESS = 3
DEBUG_MEMORY = 256
# A scenario's name with one of these behind it, as in reconnect-debug, is that scenario with this kernel in its guests.
DEBUG = {kind.series: kind for kind in (debug_kernel.DebugKernel, debug_kernel.RaceKernel)}
# QEMU has one processor's work to do in each, but half of the time a scenario waits for a limit or for an answer.
AT_ONCE = min(os.cpu_count() or 1, 2) + 1
_making_state = threading.Lock()


class Bed:
    """What a scenario has in hand: a machine, guests, and the report."""

    def __init__(self, report, kernel, xen, name, driver="rust", own=None):
        self.report, self.driver, self.xen = report, driver, xen
        # Where a run has both drivers, the driver tells their checks apart.
        self.suite = f"{'bed' if report.name != 'compare' else driver}/{name}"
        # Dom0's, and the guests', which may be one of our own; with the debug kernel they are slower and need more
        # memory.
        self.kernel, self.guest_kernel = kernel, own or kernel
        self.debug = isinstance(self.guest_kernel, debug_kernel.DebugKernel)
        self.slowness = DEBUG_SLOWNESS if self.debug else 1
        self.work = f"{BUILD}/{self.suite}" if self.suite.startswith("bed") else f"{BUILD}/bed/{name}-{driver}"
        self.machine = None
        self._uuids = 0

    @property
    def cancel_limit(self):
        """How long (s) a process with a command may be there after it was killed, or its TPM detached: the cancel has
        5 s, and the rest is for what comes before and after that."""
        return 5.0 + 3.0 * self.slowness

    def vtpm(self, version="2.0", key=True, **more):
        """A new vTPM, with an endorsement key or without."""
        self._uuids += 1
        return Vtpm(UUID.format(self._uuids), version, key, **more)

    def write_guest_image(self, files=None):
        """Writes the guests' initramfs, with more `files`; returns its path."""
        images = f"{self.work}-images"
        os.makedirs(images, exist_ok=True)
        ours = [] if isinstance(self.guest_kernel, intree.InTree) else [build.module_path(self.guest_kernel)]
        ours += build.inject_paths(self.guest_kernel) if self.debug else []
        image = content.guest_image(content.Modules(self.guest_kernel.modules),
                                    f"{self.kernel.source}/tools/testing/selftests/tpm2", ours, build.hostile_path())
        for path, source in (files or {}).items():
            image.program(path, source)
        image.write(f"{images}/guest.cpio")
        return f"{images}/guest.cpio"

    def write_driver_domain_image(self, trees):
        """Writes the initramfs of a driver domain, with these folders; returns its path."""
        os.makedirs(f"{self.work}-images", exist_ok=True)
        image = content.driver_domain_image(content.Modules(self.guest_kernel.modules), build.backend_path())
        for path, source in trees.items():
            image.tree(path, source)
        image.write(f"{self.work}-images/driver.cpio")
        return f"{self.work}-images/driver.cpio"

    def boot(self, vtpms, cpus=1, options="", config="", files=None, guest_files=None, **machine):
        """Boots Xen and dom0, with more `files`, and starts the backend; it knows the versions of `vtpms`. `config`
        is more of its configuration, for all of them; `machine` is memory and the like."""
        dom0 = content.dom0_image(content.Modules(self.kernel.modules), build.backend_path())
        dom0.file("/boot/guest.cpio", self.write_guest_image(guest_files))
        images = f"{self.work}-images"
        for vtpm in vtpms:
            dom0.tree(f"/var/lib/xen-vtpmd/{vtpm.uuid}", tpm_state(vtpm))
        dom0.file("/boot/vmlinux", self.guest_kernel.vmlinux)
        for path, source in (files or {}).items():
            dom0.file(path, source)
        dom0.write(f"{images}/dom0.cpio")
        self.machine = Machine(self.work, self.xen, self.kernel.vmlinux, f"{images}/dom0.cpio",
                               cpus=cpus, options=options, **machine)
        seconds = self.machine.start()
        versions = "".join(f'[vtpm."{vtpm.uuid}"]\nversion = "{vtpm.version}"\n{vtpm.policy}\n' for vtpm in vtpms)
        self.machine.must(f"cat >/etc/xen-vtpmd.toml <<'END'\n[tpm]\n{config}\n{versions}END\nxen-vtpmd check-config")
        self.start_backend()
        return seconds

    def boot_disk(self, disk, files):
        """Boots a dom0 that is on a disk and has systemd, with `files` below /host there; nothing else is started."""
        image = content.disk_dom0_image(content.Modules(self.kernel.modules))
        files = {"boot/guest.cpio": self.write_guest_image(), "boot/vmlinux": self.kernel.vmlinux, **files}
        image.write(f"{self.work}-images/dom0.cpio")
        self.machine = Machine(self.work, self.xen, self.kernel.vmlinux, f"{self.work}-images/dom0.cpio", disk=disk)
        for path, source in files.items():
            os.makedirs(os.path.dirname(f"{self.machine.share}/{path}"), exist_ok=True)
            shutil.copy(source, f"{self.machine.share}/{path}")
        return self.machine.start()

    def start_backend(self):
        """Starts the backend in dom0."""
        self.machine.must("xen-vtpmd run >>/host/xen-vtpmd.log 2>&1 & "
                          "echo $! >/run/xen-vtpmd.pid; sleep 1; kill -0 $!")

    def stop_backend(self, how="xen-vtpmd stop"):
        """Ends the backend, and waits until it is gone; `how` may use $pid, its process."""
        self.machine.must(f"pid=$(cat /run/xen-vtpmd.pid); {how}; "
                          "timeout 30 sh -c \"while kill -0 $pid 2>/dev/null; do sleep 0.1; done\"", 60)

    def record(self, name, function, *arguments):
        """Runs a check in Python."""
        return self.report.check(self.suite, name, function, *arguments)

    def checks(self, guest, *names, limit=60):
        """Runs checks of tests/bed/guest in a guest; a dead guest fails those that are left."""
        for number, name in enumerate(names):
            try:
                done = guest.check(name, limit)
            except BedError as why:
                for left in names[number:]:
                    self.report.add(self.suite, f"{guest.name}: {left}", "fail", 0, str(why))
                raise
            status = {0: "pass", 77: "skip"}.get(done.code, "fail")
            detail = done.output if status == "fail" else done.output.strip().splitlines()[-1:]
            detail = detail if isinstance(detail, str) else "".join(detail)
            self.report.add(self.suite, f"{guest.name}: {name}", status, done.seconds, detail)

    def new_guest(self, name, vtpms=(), memory=512, **options):
        """A guest that is not started yet. The debug kernel needs more memory, and is none for PV guests."""
        if self.debug:
            memory += DEBUG_MEMORY
            options = {"type": "'pvh'", "vcpus": self.guest_kernel.vcpus, "slowness": self.slowness, "tsc_mode": "'native'",
                       "early": "tsc=nowatchdog", **options}
            options["options"] = f"{self.guest_kernel.options} {options.get('options', '')}"
        return Guest(self.machine, name, vtpms, memory=memory, **options)

    def last_checks(self):
        """The checks at a guest's end."""
        return self.guest_kernel.checks if self.debug else ["kernel_log"]

    @contextlib.contextmanager
    def guest(self, name, vtpms, **options):
        """Starts a guest; at its end looks through its kernel log and shuts it down."""
        versions = ",".join(vtpm.version for vtpm in vtpms)
        options["options"] = f"bed.driver={self.driver} bed.tpms={versions} {options.get('options', '')}"
        guest = self.new_guest(name, vtpms, **options)
        start, started = time.monotonic(), False
        try:
            guest.start()
            self.report.add(self.suite, f"{name}: starts", "pass", time.monotonic() - start)
            started = True
            yield guest
            self.checks(guest, *self.last_checks())
            start = time.monotonic()
            guest.shutdown()
            self.report.add(self.suite, f"{name}: shuts down", "pass", time.monotonic() - start)
        except BedError as why:
            self.report.add(self.suite, f"{name}: lives to the end", "fail", time.monotonic() - start,
                            f"{why}\n{self._tail(name)}")
            with contextlib.suppress(BedError):
                guest.destroy()
            # There is no guest for the rest of the scenario.
            if not started:
                raise

    def _tail(self, name):
        with contextlib.suppress(OSError):
            with open(f"{self.work}/host/console/guest-{name}.log", encoding="utf-8", errors="replace") as file:
                return file.read()[-2000:]
        return ""

    def stop(self):
        """Ends the machine."""
        if self.machine:
            self.machine.stop()


def tpm_state(vtpm):
    """The state of a new TPM, made once: its endorsement key takes long under emulation."""
    folder = f"{BUILD}/tpm-state/{vtpm.version}{'' if vtpm.key else '-without-key'}"
    with _making_state:
        if not os.path.exists(folder):
            shutil.rmtree(folder + ".new", ignore_errors=True)
            os.makedirs(folder + ".new")
            options = ["--tpm2", "--pcr-banks", "sha1,sha256"] if vtpm.version == "2.0" else []
            options += ["--createek"] if vtpm.key else []
            must(["swtpm_setup", "--tpmstate", folder + ".new", *options], "swtpm_setup.log",
                 f"swtpm_setup cannot make a TPM {vtpm.version}")
            os.rename(folder + ".new", folder)
    return folder


def selected(word):
    """The scenarios of a set (test, deep; debug and race, which are with these kernels and part of deep), or those
    named in a comma-separated list."""
    words = word.split(",")
    names = sorted(name[:-3] for name in os.listdir(SCENARIOS) if name.endswith(".py") and name[0] != "_")
    found = {name: importlib.import_module(f"bed.scenarios.{name}") for name in names}
    chosen = {name: module for name, module in found.items() if word in set(module.SETS) - set(DEBUG) or name in words}
    for kind in DEBUG:
        chosen |= {f"{name}-{kind}": module for name, module in found.items()
                   if word in (kind, "deep") and kind in module.SETS or f"{name}-{kind}" in words}
    if not chosen:
        raise StepError(f"no scenario '{word}': there are {', '.join(names)}, each also as NAME-{' and NAME-'.join(DEBUG)}")
    return chosen


def booted(kernels):
    """The kernels that can be booted; the first, the oldest, is that of most scenarios."""
    return [kernel for kernel in kernels if kernel.bootable]


def prepare_debug(kind, kernel):
    """A debug kernel, and what is built for it."""
    debug = debug_kernel.build_kernel(kernel, kind)
    with step(f"building the module for the {debug.series} kernel"):
        build.build_module(debug)
        build.build_inject(debug)
    return debug


# What a kernel of our own is called, and what builds it. A scenario names its guests' kernel by KERNEL.
OWN = {
    **{name: (f"{name} kernel and its modules", functools.partial(prepare_debug, kind)) for name, kind in DEBUG.items()},
    "intree": ("kernel with the driver in it", intree.build_kernel),
    "series": ("kernel with the series", series.build_kernel),
}


def own_kernel(name, module):
    """Which of them a scenario's guests have; None if theirs is a stock kernel."""
    kind = name.rpartition("-")[2]
    return kind if kind in DEBUG else getattr(module, "KERNEL", None)


def prepared(report, what, function, kernel):
    """A kernel of our own; None where it cannot be built."""
    try:
        return function(kernel)
    except StepError as why:
        report.add("bed", what, "fail", 0, str(why))
        return None


def run(report, kernels, xen, scenarios, driver="rust"):
    """Builds what the bed needs and runs the scenarios."""
    first, *others = booted(kernels)
    try:
        with step("building the module and the backend for the bed"):
            for kernel in (first, *others):
                build.build_module(kernel)
            build.build_backend()
    except StepError as why:
        report.add("bed", "module and backend for the bed", "fail", 0, str(why))
        return
    wanted = {own_kernel(*scenario) for scenario in scenarios.items()} - {None}
    jobs, own = [], {kind: prepared(report, *OWN[kind], first) for kind in sorted(wanted)}
    for name, module in scenarios.items():
        # What a scenario needs beside that, while no other one runs.
        if hasattr(module, "prepare") and not report.check(f"bed/{name}", "is prepared", module.prepare):
            continue
        if kind := own_kernel(name, module):
            if own[kind]:
                jobs.append((module, Bed(report, first, xen, name, driver, own[kind])))
            continue
        if not getattr(module, "OTHER_KERNELS", False):
            jobs.append((module, Bed(report, first, xen, name, driver)))
            continue
        for kernel in others:
            jobs.append((module, Bed(report, kernel, xen, f"{name}-{kernel.series}", driver)))
        if not others:
            report.add(f"bed/{name}", "boots", "skip", 0, f"the archive has no kernel to boot beside {first.release}")
    _run_together([job for job in jobs if not getattr(job[0], "ALONE", False)])
    for module, bed in jobs:
        if getattr(module, "ALONE", False):
            _run_one(module, bed)


def _run_together(jobs):
    """Runs scenarios, some at a time; an interruption ends those that run, and no other begins."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        runs = [pool.submit(_run_one, *job) for job in jobs]
        try:
            for running in runs:
                running.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for _, bed in jobs:
                bed.stop()
            raise


def _run_one(module, bed):
    with step(f"{bed.suite} on {bed.guest_kernel.release}: {module.__doc__.strip().splitlines()[0]}"):
        start = time.monotonic()
        try:
            module.run(bed)
        except (BedError, StepError, Failure) as why:
            bed.report.add(bed.suite, "runs to its end", "fail", time.monotonic() - start, str(why))
        finally:
            bed.stop()
