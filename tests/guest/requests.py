# SPDX-License-Identifier: GPL-2.0
"""Requests of odd sizes and reads in parts: what every TPM driver answers."""

import errno
import os
import struct
import sys

from tpm import Tpm, error_of

ROOM = 4088


def raw(tpm, length, claimed=None):
    """A request for random bytes, padded to a length; its header claims the same or another."""
    tag, ordinal = (0xc1, 0x46) if tpm.kind == "1.2" else (0x8001, 0x17b)
    head = struct.pack(">HII", tag, length if claimed is None else claimed, ordinal)
    return (head + struct.pack(">I", 16) + b"\0" * length)[:length]


def sizes():
    """4,088 bytes reach the TPM; 4,089 do not fit its page; nothing, or less than is claimed, is no
    request."""
    tpm, wrong = Tpm(), []

    def expect(what, request, wanted):
        code = error_of(os.write, tpm.fd, request)
        if code != wanted:
            wrong.append(
                f"{what}: {errno.errorcode.get(code, code)}, not"
                f" {errno.errorcode.get(wanted, wanted)}"
            )
        if not code:
            os.read(tpm.fd, 4096)

    expect("4,088 bytes", raw(tpm, ROOM), 0)
    expect("4,089 bytes", raw(tpm, ROOM + 1), errno.E2BIG)
    expect("4,096 bytes", raw(tpm, 4096), errno.E2BIG)
    expect("4,097 bytes", raw(tpm, 4097), errno.E2BIG)
    expect("0 bytes", b"", errno.EINVAL)
    expect("5 bytes", raw(tpm, 5), errno.EINVAL)
    expect("12 bytes of 14 claimed", raw(tpm, 12, 14), errno.EINVAL)
    assert not wrong, "\n".join(wrong)
    # The TPM itself answered the largest request, and is well after all of them.
    answer = tpm.transmit(raw(tpm, ROOM))
    assert len(answer) == 10 and struct.unpack(">I", answer[6:])[0] != 0, f"answer {answer.hex()}"
    assert len(tpm.random(16)) == 16


def partial_reads():
    """An answer can be read in parts, once."""
    tpm = Tpm()
    request = raw(tpm, 14 if tpm.kind == "1.2" else 12)
    if tpm.kind == "2.0":
        request = request[:10] + struct.pack(">H", 16)
    whole = len(tpm.transmit(request))
    assert os.write(tpm.fd, request) == len(request)
    parts = [os.read(tpm.fd, size) for size in (1, 5, 4, 4096)]
    assert [len(part) for part in parts] == [1, 5, 4, whole - 10], [len(part) for part in parts]
    assert struct.unpack(">HI", parts[0] + parts[1])[1] == whole
    assert os.read(tpm.fd, 4096) == b"", "an answer was read twice"


def busy():
    """A second opener is refused, and an answer that was not read makes the next write wait with
    EBUSY."""
    tpm = Tpm()
    assert error_of(os.open, "/dev/tpm0", os.O_RDWR) == errno.EBUSY
    request = raw(tpm, 14) if tpm.kind == "1.2" else raw(tpm, 12)[:10] + struct.pack(">H", 16)
    os.write(tpm.fd, request)
    code = error_of(os.write, tpm.fd, request)
    assert code == errno.EBUSY, errno.errorcode.get(code, code)
    tpm.close()
    assert len(Tpm().random(16)) == 16


if __name__ == "__main__":
    globals()[sys.argv[1]]()
