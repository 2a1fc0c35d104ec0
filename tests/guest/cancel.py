# SPDX-License-Identifier: GPL-2.0
"""Ends a command that runs: by sysfs while the TPM makes a key, and in all ways while it does not
answer."""

import errno
import os
import signal
import struct
import sys
import time

from tpm import HOST, SLOWNESS, Tpm, error_of

# The command has to be running when it is ended. An RSA key takes from a part of a second to many.
HEAD_START = 0.2
TRIES = 6
# The least time that the driver gives a command.
LIMIT = 60.0
# However slow the host is, a command that just timed out must not look like one that was ended.
SOON = min(5.0 * HOST, LIMIT / 2)
# The grace that the driver gives a cancelled command, and more for a busy host.
LATE = min(15.0 * HOST, LIMIT / 2)
# The time that it gives a command after one timed out.
SILENT = 5.0


def make_ek():
    """TPM 1.2: CreateEndorsementKeyPair, which needs no authorisation where there is no such key
    yet."""
    parameters = struct.pack(">IHHIIII", 1, 3, 1, 12, 2048, 2, 0)
    return struct.pack(">HII", 0xc1, 10 + 20 + len(parameters), 0x78) + bytes(20) + parameters


def make_primary():
    """TPM 2.0: CreatePrimary of an RSA storage key that no earlier call has made."""
    # The authorisation area: its length, then the empty password session.
    session = struct.pack(">IIHBH", 9, 0x40000009, 0, 0, 0)
    sensitive = struct.pack(">HHH", 4, 0, 0)
    unique = os.urandom(32)
    public = struct.pack(">HHIH", 1, 0x0B, 0x30072, 0) + struct.pack(
        ">HHHHHI", 6, 128, 0x43, 0x10, 3072, 0
    )
    public += struct.pack(">H", len(unique)) + unique
    body = struct.pack(">I", 0x40000001) + session + sensitive
    body += struct.pack(">H", len(public)) + public + struct.pack(">HI", 0, 0)
    return struct.pack(">HII", 0x8002, 10 + len(body), 0x131) + body


def flush(tpm):
    """Forgets the keys that were made, though nobody learned their handles."""
    for handle in range(0x80000000, 0x80000003):
        tpm.command(0x8001, 0x165, struct.pack(">I", handle))


def state(child):
    """A process's state: D while it waits for its command, Z when it has ended."""
    with open(f"/proc/{child}/stat", encoding="ascii") as file:
        return file.read().rpartition(")")[2].split()[0]


def start(path, request):
    """Starts a process that makes the request and tells its errno; it has had its head start, which
    on a busy host is not enough to get there."""
    child = os.fork()
    if child == 0:
        os._exit(error_of(os.write, Tpm(path).fd, request))
    until = time.monotonic() + LATE
    time.sleep(HEAD_START)
    while state(child) not in "DZ" and time.monotonic() < until:
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
    tpm, tries = Tpm(path), 1
    if tpm.kind == "2.0":
        # A key that was made before the cancel came is another try; anything else is what came of
        # the cancel.
        while code == 0 and tries <= TRIES:
            tries += 1
            flush(tpm)
            tpm.close()
            code, seconds = cancelled(path, make_primary())
            tpm = Tpm(path)
        flush(tpm)
    assert (
        code == errno.ECANCELED
    ), f"the command ended with {errno.errorcode.get(code, code)}, {seconds:.1f} s later"
    assert seconds < SOON, f"it ended {seconds:.1f} s after the cancel"
    assert len(tpm.random(16)) == 16, "the TPM does not answer after a cancel"
    print(f"try {tries} ended {seconds * 1000:.0f} ms after the cancel")


def cancel12():
    """The second vTPM has no endorsement key yet."""
    by_sysfs("/dev/tpm1", make_ek())


def cancel20():
    """A TPM 2.0."""
    by_sysfs("/dev/tpm0", make_primary())


def get_random():
    """TPM 2.0: GetRandom of 8 bytes."""
    return struct.pack(">HIIH", 0x8001, 12, 0x17b, 8)


def killed():
    """A process that waits for a TPM that does not answer is gone soon after SIGKILL."""
    child = start("/dev/tpm0", get_random())
    begin = time.monotonic()
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    seconds = time.monotonic() - begin
    assert os.WIFSIGNALED(status), "the command ended, though nobody could answer it"
    assert seconds < LATE, f"the process was gone {seconds:.1f} s after SIGKILL"
    print(f"gone {seconds:.1f} s after SIGKILL")


def stalled():
    """A command to a TPM that does not answer is cancelled through sysfs at once."""
    code, seconds = cancelled("/dev/tpm0", get_random())
    assert code == errno.ECANCELED, f"the command ended with {errno.errorcode.get(code, code)}"
    assert seconds < SOON, f"it ended {seconds:.1f} s after the cancel"
    print(f"ended {seconds * 1000:.0f} ms after the cancel")


def times_out():
    """Without any help the command ends by itself, and says that it was the time. The next one ends
    sooner: a TPM that is silent costs its users the long timeout once."""
    tpm = Tpm()
    for timeout in (LIMIT, SILENT):
        begin = time.monotonic()
        code = error_of(os.write, tpm.fd, get_random())
        seconds = time.monotonic() - begin
        assert code == errno.ETIME, f"the command ended with {errno.errorcode.get(code, code)}"
        assert timeout <= seconds < timeout + LATE, f"it ended after {seconds:.1f} s"
        print(f"ended after {seconds:.1f} s")


def refused(name):
    """A command fails at once, with this errno."""
    begin = time.monotonic()
    code = error_of(os.write, Tpm().fd, get_random())
    seconds = time.monotonic() - begin
    assert code == getattr(errno, name), f"the command ended with {errno.errorcode.get(code, code)}"
    assert seconds < SLOWNESS, f"it ended after {seconds:.1f} s"


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
