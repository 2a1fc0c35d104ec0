# SPDX-License-Identifier: GPL-2.0
"""What a guest without Xen would have: QEMU's emulated TPM interfaces (TIS, CRB) with swtpm. Counts
how often a command makes the guest leave for QEMU."""

import os
from statistics import median

from testbed import bench
from testbed.no_xen import BareMachine
from testbed.machine import BedError
from testbed.swtpm import Swtpm

# An access to these registers is an exit to QEMU.
ACCESSES = "tpm_tis_mmio_read tpm_tis_mmio_write tpm_crb_mmio_read tpm_crb_mmio_write".split()
ROUNDS = 100


class EmulatedTpm:
    """A machine with one of QEMU's TPM devices, and a swtpm of its own."""

    def __init__(self, work, kernel, initrd, device, state):
        self._log = f"{work}.trace"
        self._swtpm = Swtpm(device, state, f"{work}.swtpm")
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
            [*self._swtpm.arguments, *traces, "-D", self._log],
        )

    def __enter__(self):
        if os.path.exists(self._log):
            os.unlink(self._log)
        self._swtpm.start()
        try:
            self.machine.start()
        except BaseException:
            self._swtpm.stop()
            raise
        return self

    def __exit__(self, *_):
        self.machine.stop()
        self._swtpm.stop()

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
