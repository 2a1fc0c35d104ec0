# SPDX-License-Identifier: GPL-2.0
"""What a scenario has in hand: a machine with Xen and dom0, its guests, and the report."""

import contextlib
import os
import shutil
import threading
import time

from testbed import images, programs, wait
from testbed.guest import Guest, Vtpm
from testbed.machine import BedError, Machine
from tools import build
from tools.arch import SUFFIX
from tools.kernels import debug_kernel, intree
from tools.steps import BUILD, must

UUID = "00000000-0000-4000-8000-{:012x}"
# What the debug kernel costs: by how much limits grow, and a guest's memory (MiB).
DEBUG_SLOWNESS = 4
DEBUG_MEMORY = 256
_making_state = threading.Lock()


class Testbed:
    """What a scenario has in hand: a machine, guests, and the report."""

    def __init__(self, report, kernel, xen, name, driver="rust", own=None):
        self.report, self.driver, self.xen = report, driver, xen
        # Where a run has both drivers, the driver tells their checks apart.
        self.suite = f"{f'testbed{SUFFIX}' if report.name != 'compare' else driver}/{name}"
        # Dom0's, and the guests', which may be one of our own; with the debug kernel they are
        # slower and need more memory.
        self.kernel, self.guest_kernel = kernel, own or kernel
        self.debug = isinstance(self.guest_kernel, debug_kernel.DebugKernel)
        self._slowness = DEBUG_SLOWNESS if self.debug else 1
        self.work = f"{BUILD}/testbed{SUFFIX}/{name}"
        self.work += f"-{driver}" if report.name == "compare" else ""
        self.machine = None
        self._uuids = 0

    @property
    def slowness(self):
        """By how much timeouts in a guest are stretched: for its kernel, and for this host."""
        return self._slowness * wait.slowness()

    @property
    def cancel_limit(self):
        """How long (s) a process with a command may be there after it was killed, or its TPM
        detached: the cancel has 5 s, and the rest is for what comes before and after that."""
        return 5.0 + 3.0 * self.slowness

    def vtpm(self, version="2.0", key=True, **more):
        """A new vTPM, with an endorsement key or without."""
        self._uuids += 1
        return Vtpm(UUID.format(self._uuids), version, key, **more)

    def write_guest_image(self, files=None):
        """Writes the guests' initramfs, with more `files`; returns its path."""
        folder = f"{self.work}-images"
        os.makedirs(folder, exist_ok=True)
        ours = (
            []
            if isinstance(self.guest_kernel, intree.InTree)
            else [build.module_path(self.guest_kernel)]
        )
        ours += programs.inject_paths(self.guest_kernel) if self.debug else []
        image = images.guest_image(
            images.Modules(self.guest_kernel.modules),
            f"{self.kernel.source}/tools/testing/selftests/tpm2",
            ours,
            programs.hostile_path(),
        )
        for path, source in (files or {}).items():
            image.program(path, source)
        image.write(f"{folder}/guest.cpio")
        return f"{folder}/guest.cpio"

    def write_driver_domain_image(self, trees):
        """Writes the initramfs of a driver domain, with these folders; returns its path."""
        os.makedirs(f"{self.work}-images", exist_ok=True)
        image = images.driver_domain_image(
            images.Modules(self.guest_kernel.modules), build.backend_path()
        )
        for path, source in trees.items():
            image.tree(path, source)
        image.write(f"{self.work}-images/driver.cpio")
        return f"{self.work}-images/driver.cpio"

    def boot(self, vtpms, cpus=1, options="", config="", files=None, guest_files=None,
             state_disk=None, disks=(), network=None, more=None, **machine):
        """Boots Xen and dom0, with more `files`, and starts the backend; it knows the versions of
        `vtpms`. `config` is more of its configuration, for all of them; the vTPMs' state may be on
        a disk, and `disks` are for guests; `network` is a testbed.two.Network; `more` adds to
        dom0's image what else it has; `machine` is memory and the like."""
        modules = [*(images.DISK_MODULES if state_disk else ()),
                   *(images.BLKBACK_MODULES if disks else ()),
                   *(images.NETWORK_MODULES if network else ())]
        options += " bed.state=/dev/vda" if state_disk else ""
        dom0 = images.dom0_image(images.Modules(self.kernel.modules), build.backend_path(), modules)
        if disks:
            images.add_block_script(dom0)
        if more:
            more(dom0)
        if network:
            images.add_network(dom0, network.keys)
        dom0.file("/boot/guest.cpio", self.write_guest_image(guest_files))
        folder = f"{self.work}-images"
        for vtpm in vtpms:
            dom0.tree(f"/var/lib/xen-vtpmd/{vtpm.uuid}", tpm_state(vtpm))
        dom0.file("/boot/vmlinux", self.guest_kernel.vmlinux)
        for path, source in (files or {}).items():
            dom0.file(path, source)
        dom0.write(f"{folder}/dom0.cpio")
        self.machine = Machine(self.work, self.xen, self.kernel.vmlinux, f"{folder}/dom0.cpio",
                               cpus=cpus, options=options, state_disk=state_disk, disks=disks,
                               network=network and network.sockets, **machine)
        seconds = self.machine.start()
        wait.booted(seconds / self.machine.patience)
        versions = "".join(
            f'[vtpm."{vtpm.uuid}"]\nversion = "{vtpm.version}"\n{vtpm.policy}\n' for vtpm in vtpms
        )
        self.machine.must(
            f"cat >/etc/xen-vtpmd.toml <<'END'\n[tpm]\n{config}\n{versions}END\nxen-vtpmd"
            " check-config"
        )
        self.start_backend()
        return seconds

    def boot_disk(self, disk, files, **machine):
        """Boots a dom0 that is on a disk and has systemd, with `files` below /host there; nothing
        else is started. `machine` is its TPM and the like."""
        image = images.disk_dom0_image(images.Modules(self.kernel.modules))
        files = {
            "boot/guest.cpio": self.write_guest_image(),
            "boot/vmlinux": self.kernel.vmlinux,
            **files,
        }
        image.write(f"{self.work}-images/dom0.cpio")
        self.machine = Machine(
            self.work,
            self.xen,
            self.kernel.vmlinux,
            f"{self.work}-images/dom0.cpio",
            disk=disk,
            **machine,
        )
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
        self.machine.must(
            f"pid=$(cat /run/xen-vtpmd.pid); {how}; timeout {wait.stretch(30)} "
            'sh -c "while kill -0 $pid 2>/dev/null; do sleep 0.1; done"',
            60,
        )

    def record(self, name, function, *arguments):
        """Runs a check in Python."""
        return self.report.check(self.suite, name, function, *arguments)

    def checks(self, guest, *names, limit=60):
        """Runs checks of tests/guest in a guest; a dead guest fails those that are left."""
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
        """A guest that is not started yet. The debug kernel needs more memory, and is none for PV
        guests."""
        if self.debug:
            memory += DEBUG_MEMORY
            options = {
                "type": "'pvh'",
                "vcpus": self.guest_kernel.vcpus,
                "slowness": self._slowness,
                "tsc_mode": "'native'",
                "early": "tsc=nowatchdog",
                **options,
            }
            options["options"] = f"{self.guest_kernel.options} {options.get('options', '')}"
        return Guest(self.machine, name, vtpms, memory=memory, **options)

    def last_checks(self):
        """The checks at a guest's end."""
        return self.guest_kernel.checks if self.debug else ["kernel_log"]

    @contextlib.contextmanager
    def guest(self, name, vtpms, **options):
        """Starts a guest; at its end looks through its kernel log and shuts it down."""
        versions = ",".join(vtpm.version for vtpm in vtpms)
        options["options"] = (
            f"bed.driver={self.driver} bed.tpms={versions} {options.get('options', '')}"
        )
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
            self.report.add(
                self.suite,
                f"{name}: lives to the end",
                "fail",
                time.monotonic() - start,
                f"{why}\n{self._tail(name)}",
            )
            with contextlib.suppress(BedError):
                guest.destroy()
            # There is no guest for the rest of the scenario.
            if not started:
                raise

    def _tail(self, name):
        with contextlib.suppress(OSError):
            with open(
                f"{self.work}/host/console/guest-{name}.log", encoding="utf-8", errors="replace"
            ) as file:
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
