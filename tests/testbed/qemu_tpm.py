# SPDX-License-Identifier: GPL-2.0
"""What a guest without Xen would have: QEMU's emulated TPM interfaces (TIS, CRB) with swtpm. Counts
how often a command makes the guest leave for QEMU."""

import os
import subprocess
from statistics import median

from testbed import bench
from testbed.no_xen import BareMachine
from testbed.machine import BedError

# An access to these registers is an exit to QEMU.
ACCESSES = "tpm_tis_mmio_read tpm_tis_mmio_write tpm_crb_mmio_read tpm_crb_mmio_write".split()
ROUNDS = 100


class EmulatedTpm:
    """A machine with one of QEMU's TPM devices, and a swtpm of its own."""

    def __init__(self, work, kernel, initrd, device, state):
        self._socket, self._log = f"{work}.swtpm", f"{work}.trace"
        self._state = state
        traces = [
            word
            for name in ACCESSES
            if name.startswith(device.replace("-", "_"))
            for word in ("-trace", name)
        ]
        self.machine = BareMachine(
            work,
            kernel,
            initrd,
            [
                "-chardev",
                f"socket,id=tpm,path={self._socket}",
                "-tpmdev",
                "emulator,id=tpm0,chardev=tpm",
                "-device",
                f"{device},tpmdev=tpm0",
                *traces,
                "-D",
                self._log,
            ],
        )

    def __enter__(self):
        for path in (self._socket, self._log):
            if os.path.exists(path):
                os.unlink(path)
        self._swtpm = subprocess.Popen(
            [
                "swtpm",
                "socket",
                "--tpm2",
                "--tpmstate",
                f"dir={self._state}",
                "--ctrl",
                f"type=unixio,path={self._socket}",
                "--flags",
                "startup-clear",
            ],
            stdin=subprocess.DEVNULL,
        )
        try:
            self.machine.start()
        except BaseException:
            self._swtpm.kill()
            raise
        return self

    def __exit__(self, *_):
        self.machine.stop()
        self._swtpm.terminate()
        self._swtpm.wait()

    def _accesses(self):
        with open(self._log, "rb") as file:
            return sum(1 for line in file if b"_mmio_" in line)

    def _run(self, command, rounds):
        before = self._accesses()
        output = self.machine.must(
            f"xen-tpm-timing time {rounds} {command.packet} tpm=/dev/tpm0", 600
        )
        times = {name: [int(number) for number in numbers]
                 for name, *numbers in (line.split() for line in output.splitlines())}
        return self._accesses() - before, median(times["tpm"]) / 1000

    def cost(self, command):
        """The accesses and the us of a command."""
        if self.machine.run("[ -c /dev/tpm0 ]").code:
            raise BedError(f"QEMU's guest has no /dev/tpm0: see {self._log}")
        self.machine.must(bench.NO_HWRNG)
        # What the driver does when the device is opened and closed is taken off.
        one, _ = self._run(command, 1)
        many, time = self._run(command, ROUNDS + 1)
        return {"accesses": round((many - one) / ROUNDS, 1), "us": round(time)}
