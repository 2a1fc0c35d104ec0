# SPDX-License-Identifier: GPL-2.0
"""The guest's system in QEMU alone, without Xen under it."""

import contextlib
import os
import shutil
import socket
import subprocess
import time

from testbed import qemu
from testbed.guest import Guest
from testbed.machine import BedError
from tools.arch import TARGET


class BareMachine(Guest):
    """Speaks to the host through a serial port instead of a Xen console."""

    def __init__(self, work, kernel, initrd, devices=()):
        # A guest in all but its console and its end; there is no toolstack that made it.
        shutil.rmtree(work, ignore_errors=True)
        os.makedirs(f"{work}/console")
        self.share = work
        self.patience = 1
        super().__init__(self, "bare")
        self._command = [
            TARGET.emulator,
            "-accel",
            "tcg",
            *qemu.BARE_MACHINE,
            "-cpu",
            qemu.CPU,
            "-m",
            "512",
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
            "-kernel",
            kernel,
            "-initrd",
            initrd,
            "-append",
            f"console={qemu.BARE_CONSOLE} quiet rdinit=/init panic=-1",
            "-chardev",
            f"socket,id=con,path={work}/console.sock,server=on,wait=off,logfile={self.log}",
            "-serial",
            "chardev:con",
            *devices,
        ]

    def start(self):
        """Starts QEMU and waits until the system takes commands; returns the seconds."""
        start = time.monotonic()
        self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL)
        self._console = socket.socket(socket.AF_UNIX)
        while self._console.connect_ex(f"{self.share}/console.sock"):
            if not self.alive():
                raise BedError("QEMU did not start")
            time.sleep(0.1)
        self.wait_ready()
        return time.monotonic() - start

    def alive(self):
        """Whether QEMU runs."""
        return self._process.poll() is None

    def _lines(self):
        # They are read from the log. What nobody takes from the socket keeps QEMU from writing
        # more.
        with contextlib.suppress(BlockingIOError):
            while self._console.recv(65536, socket.MSG_DONTWAIT):
                pass
        return super()._lines()

    def type(self, text):
        """Types into the console."""
        self._console.sendall(text.encode() + b"\n")

    def stop(self):
        """Ends QEMU."""
        self._process.kill()
        self._process.wait()
        self._console.close()
