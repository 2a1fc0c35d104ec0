# SPDX-License-Identifier: GPL-2.0
"""Runs QEMU with Xen and dom0, and carries commands to the agent in dom0."""

import base64
import contextlib
import glob
import os
import select
import shutil
import signal
import socket
import subprocess
import time

from testbed import qemu, wait

BOOT_LIMIT = 120


class BedError(Exception):
    """The testbed itself failed: no check can say anything."""


class Machine:
    """One run of QEMU; its files are under `work`. With `icount` time is counted by instructions;
    the number is a seed. What is written to `disk` goes with QEMU, unless it `keeps_disk`; `disks`
    are for guests. `tpm` is an Swtpm. dom0 mounts what is on a `state_disk`, which outlives
    QEMU. `network` is the socket that this machine has, and that of another one. `xen_options` are
    more of them."""

    def __init__(self, work, xen, kernel, initrd, cpus=1, dom0_memory=1024, memory=4096, options="",
                 disk=None, keeps_disk=False, disks=(), tpm=None, icount=None,
                 state_disk=None, network=None, xen_options=""):
        self.work = work
        self.share = f"{work}/host"
        shutil.rmtree(work, ignore_errors=True)
        os.makedirs(self.share)
        self._pending = b""
        self._number = 0
        self._agent = self._process = None
        xen_options = f"dom0_mem={dom0_memory}M,max:{dom0_memory}M {xen_options}"
        line = f"console=hvc0 earlyprintk=xen quiet rdinit=/init {options}"
        self._command = [
            *qemu.command(xen, xen_options, kernel, line, initrd, cpus, memory, icount),
            "-chardev",
            f"socket,id=con,path={work}/console.sock,server=on,wait=off,logfile={work}/dom0.log",
            "-serial",
            "chardev:con",
            "-device",
            "virtio-serial-pci",
            "-chardev",
            f"socket,id=agent,path={work}/agent.sock,server=on,wait=off",
            "-device",
            "virtserialport,chardev=agent,name=agent",
            "-fsdev",
            f"local,id=host,path={self.share},security_model=none",
            "-device",
            "virtio-9p-pci,fsdev=host,mount_tag=host",
        ]
        # Counting instructions makes emulation some times slower, whatever its own clock says.
        self.patience = 1 if icount is None else 4
        # systemd takes its time, the more so beside another machine.
        self._boot_limit = wait.stretch(BOOT_LIMIT) * self.patience * (2 if disk else 1)
        self.state_disk, self.disks = state_disk, disks
        if state_disk:
            # A write is in the host's memory when dom0 hears of its end, and outlives QEMU.
            self._command += ["-drive", f"file={state_disk},format=raw,if=virtio,cache=unsafe"]
        if disk:
            how = "cache=writeback" if keeps_disk else "snapshot=on,cache=unsafe"
            self._command += ["-drive", f"file={disk},format=raw,if=virtio,{how}"]
        for path in disks:
            self._command += ["-drive", f"file={path},format=raw,if=virtio,cache=unsafe"]
        if network:
            own, other = network
            ends = f"local.type=unix,local.path={own},remote.type=unix,remote.path={other}"
            self._command += ["-netdev", f"dgram,id=net,{ends}", "-device",
                              "virtio-net-pci,netdev=net"]
        self._tpm = tpm
        self._command += tpm.arguments if tpm else []

    def start(self):
        """Starts QEMU and waits for dom0's agent; returns the seconds that it took."""
        start = time.monotonic()
        self._log = open(f"{self.work}/qemu.log", "wb")
        if self._tpm:
            self._tpm.start()
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log)
        try:
            self._connect(start + self._boot_limit)
            self._line(start + self._boot_limit)
        except BaseException:
            self.stop()
            raise
        return time.monotonic() - start

    def _connect(self, until):
        path = f"{self.work}/agent.sock"
        while True:
            self._alive()
            try:
                self._agent = socket.socket(socket.AF_UNIX)
                self._agent.connect(path)
                return
            except OSError:
                self._agent.close()
                if time.monotonic() > until:
                    raise BedError("QEMU opened no agent port") from None
                time.sleep(0.1)

    def _alive(self):
        if self._process.poll() is not None:
            raise BedError(
                f"QEMU ended with code {self._process.returncode}: see {self.work}/dom0.log"
            )
        with open(f"{self.work}/dom0.log", "a+b") as log:
            log.seek(0)
            if b"Dom0 crashed" in log.read():
                raise BedError(f"dom0 crashed: see {self.work}/dom0.log")

    def _read(self, until):
        self._alive()
        if time.monotonic() > until:
            raise BedError(f"dom0 does not answer: see {self.work}/dom0.log")
        if select.select([self._agent], [], [], 0.5)[0]:
            data = self._agent.recv(65536)
            if not data:
                raise BedError(f"QEMU closed dom0's port: see {self.work}/dom0.log")
            self._pending += data

    def _line(self, until):
        while b"\n" not in self._pending:
            self._read(until)
        line, _, self._pending = self._pending.partition(b"\n")
        return line.decode(errors="replace").split()

    def run(self, script, limit=60):
        """Runs a shell script in dom0; returns its exit code and output."""
        self._number += 1
        request = f"{self._number} {base64.b64encode(script.encode()).decode()}\n"
        self._agent.sendall(request.encode())
        until = time.monotonic() + wait.stretch(limit) * self.patience
        number, code, length = self._line(until)
        if int(number) != self._number:
            raise BedError(f"dom0's agent is out of step: {number} for {self._number}")
        while len(self._pending) < int(length):
            self._read(until)
        output, self._pending = self._pending[:int(length)], self._pending[int(length):]
        return int(code), output.decode(errors="replace")

    def must(self, script, limit=60):
        """Runs a script that has to succeed; returns its output."""
        code, output = self.run(script, limit)
        if code:
            raise BedError(f"dom0: {script!r} ended with {code}: {output.strip()[-2000:]}")
        return output

    @contextlib.contextmanager
    def stopped(self):
        """Stops QEMU for a moment, with all that runs in it."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            until = time.monotonic() + BOOT_LIMIT
            while set(self._states()) != {"T"}:
                if time.monotonic() > until:
                    raise BedError("QEMU does not stop")
                time.sleep(0.001)
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def _states(self):
        """The states of QEMU's threads."""
        for path in glob.glob(f"/proc/{self._process.pid}/task/*/stat"):
            with contextlib.suppress(OSError), open(path, encoding="ascii") as file:
                yield file.read().rpartition(")")[2].split()[0]

    def cut_power(self):
        """Ends QEMU as a loss of power would."""
        self._process.kill()
        self._process.wait()

    def stop(self):
        """Ends QEMU, if it was started."""
        if not self._process:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._tpm:
            self._tpm.stop()
        if self._agent:
            self._agent.close()
        self._log.close()
