# SPDX-License-Identifier: GPL-2.0
"""Ends a command while the TPM makes a key: by sysfs, and by killing the process that waits."""

import errno
import os
import signal
import struct
import sys
import time

from tpm import Tpm, error_of

# The command has to be running when it is ended. An RSA key takes from a part of a second to many.
HEAD_START = 0.2
TRIES = 6
SOON = 5.0


def make_ek():
    """TPM 1.2: CreateEndorsementKeyPair, which needs no authorisation where there is no such key yet."""
    parameters = struct.pack(">IHHIIII", 1, 3, 1, 12, 2048, 2, 0)
    return struct.pack(">HII", 0xc1, 10 + 20 + len(parameters), 0x78) + bytes(20) + parameters


def make_primary():
    """TPM 2.0: CreatePrimary of an RSA storage key that no earlier call has made."""
    # The authorisation area: its length, then the empty password session.
    session = struct.pack(">IIHBH", 9, 0x40000009, 0, 0, 0)
    sensitive = struct.pack(">HHH", 4, 0, 0)
    unique = os.urandom(32)
    public = struct.pack(">HHIH", 1, 0x0b, 0x30072, 0) + struct.pack(">HHHHHI", 6, 128, 0x43, 0x10, 3072, 0)
    public += struct.pack(">H", len(unique)) + unique
    body = struct.pack(">I", 0x40000001) + session + sensitive
    body += struct.pack(">H", len(public)) + public + struct.pack(">HI", 0, 0)
    return struct.pack(">HII", 0x8002, 10 + len(body), 0x131) + body


def flush(tpm):
    """Forgets the keys that were made, though nobody learned their handles."""
    for handle in range(0x80000000, 0x80000003):
        tpm.command(0x8001, 0x165, struct.pack(">I", handle))


def start(path, request):
    """Starts a process that makes the request and tells its errno; it has had its head start."""
    child = os.fork()
    if child == 0:
        os._exit(error_of(os.write, Tpm(path).fd, request))
    time.sleep(HEAD_START)
    return child


def cancelled(path, request):
    """Cancels the request through sysfs; returns its errno, and the seconds that it took to end."""
    child = start(path, request)
    begin = time.monotonic()
    with open(f"/sys/class/tpm/{os.path.basename(path)}/cancel", "w", encoding="ascii") as file:
        file.write("1")
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), time.monotonic() - begin


def by_sysfs(path, request):
    """ECANCELED soon after the write to `cancel`; the next command is answered."""
    code, seconds = cancelled(path, request)
    tpm = Tpm(path)
    if tpm.kind == "2.0":
        for _ in range(TRIES):
            if code:
                break
            flush(tpm)
            tpm.close()
            code, seconds = cancelled(path, make_primary())
            tpm = Tpm(path)
        flush(tpm)
    assert code == errno.ECANCELED, f"the command ended with {errno.errorcode.get(code, code)}, {seconds:.1f} s later"
    assert seconds < SOON, f"it ended {seconds:.1f} s after the cancel"
    assert len(tpm.random(16)) == 16, "the TPM does not answer after a cancel"
    print(f"ended {seconds * 1000:.0f} ms after the cancel")


def cancel12():
    """The second vTPM has no endorsement key yet."""
    by_sysfs("/dev/tpm1", make_ek())


def cancel20():
    """A TPM 2.0."""
    by_sysfs("/dev/tpm0", make_primary())


def kill20():
    """The process is gone soon after SIGKILL; the next command has its own answer."""
    for _ in range(TRIES):
        child = start("/dev/tpm0", make_primary())
        begin = time.monotonic()
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        seconds = time.monotonic() - begin
        tpm = Tpm()
        flush(tpm)
        assert len(tpm.random(16)) == 16, "the TPM does not answer after a killed command"
        tpm.close()
        if os.WIFSIGNALED(status):
            assert seconds < SOON, f"the process was gone {seconds:.1f} s after SIGKILL"
            print(f"gone {seconds * 1000:.0f} ms after SIGKILL")
            return
    raise AssertionError(f"{TRIES} commands ended before their processes could be killed")


if __name__ == "__main__":
    globals()[sys.argv[1]]()
