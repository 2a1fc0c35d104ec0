# SPDX-License-Identifier: GPL-2.0
"""An swtpm behind one of QEMU's emulated TPM devices, TIS or CRB."""

import contextlib
import os
import subprocess


class Swtpm:
    """A TPM 2.0 whose state is in a directory; QEMU powers it on, and it ends with QEMU."""

    def __init__(self, device, state, socket):
        self._state, self._socket, self._process = state, socket, None
        self.arguments = [
            "-chardev",
            f"socket,id=tpm,path={socket}",
            "-tpmdev",
            "emulator,id=tpm0,chardev=tpm",
            "-device",
            f"{device},tpmdev=tpm0",
        ]

    def start(self):
        """Before QEMU starts."""
        os.makedirs(self._state, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._socket)
        self._process = subprocess.Popen(
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

    def stop(self):
        """After QEMU has ended."""
        self._process.terminate()
        self._process.wait()
