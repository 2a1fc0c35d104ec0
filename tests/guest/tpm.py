# SPDX-License-Identifier: GPL-2.0
"""Raw TPM commands of both versions, for checks that the TPM tools cannot make."""

import hashlib
import os
import re
import struct
import sys

LOCALITY_DENIED = {"1.2": 0x3d, "2.0": 0x907}


# How much slower than usual the host is, and how much slower than a stock kernel on a usual host
# this one is there, as the testbed says.
HOST, SLOWNESS = (int(os.environ.get(name, "1")) for name in ("HOST", "SLOWNESS"))


def version(number=0):
    """The version of tpmN, which the testbed made: a driver may take it for another."""
    with open("/proc/cmdline", encoding="ascii") as file:
        return re.search(r"bed\.tpms=(\S+)", file.read())[1].split(",")[number]


def packet(tag, ordinal, body):
    """A whole command."""
    return struct.pack(">HII", tag, 10 + len(body), ordinal) + body


class Tpm:
    """An open TPM device."""

    def __init__(self, path="/dev/tpm0", kind=None):
        self.fd = os.open(path, os.O_RDWR)
        self.kind = kind or version(int(path[-1]))

    def close(self):
        """Closes the device."""
        os.close(self.fd)

    def transmit(self, request):
        """Sends a whole command; returns the answer."""
        if os.write(self.fd, request) != len(request):
            raise AssertionError("a short write")
        return os.read(self.fd, 4096)

    def command(self, tag, ordinal, body):
        """Sends a command; returns its code and the rest of the answer."""
        answer = self.transmit(packet(tag, ordinal, body))
        _, length, code = struct.unpack(">HII", answer[:10])
        if length != len(answer):
            raise AssertionError(f"{len(answer)} bytes of an answer of {length}")
        return code, answer[10:]

    def extend(self, pcr, digest):
        """Extends a PCR (its SHA-256 bank, for 2.0); returns the code."""
        return self.command(*self.extending(pcr, digest))[0]

    def extending(self, pcr, digest):
        """The tag, ordinal and body of the command that extends a PCR."""
        if self.kind == "1.2":
            return 0xc1, 0x14, struct.pack(">I", pcr) + digest
        session = struct.pack(">IIHBH", 9, 0x40000009, 0, 0, 0)
        return (
            0x8002,
            0x182,
            struct.pack(">I", pcr) + session + struct.pack(">IH", 1, 0x0B) + digest,
        )

    def pcr(self, number, bank=0x0b):
        """The value of a PCR; a TPM 2.0 has one for each bank (0x0b is SHA-256)."""
        if self.kind == "1.2":
            code, rest = self.command(0xc1, 0x15, struct.pack(">I", number))
            assert code == 0, f"PCRRead: {code:#x}"
            return rest
        mask = (1 << number).to_bytes(3, "little")
        code, rest = self.command(0x8001, 0x17e, struct.pack(">IHB", 1, bank, 3) + mask)
        assert code == 0, f"PCR_Read: {code:#x}"
        # Behind a counter, the selection, and the number of digests.
        size, = struct.unpack(">H", rest[18:20])
        assert len(rest) == 20 + size, f"PCR_Read: {len(rest)} bytes, and a digest of {size}"
        return rest[20:]

    def hash(self, data):
        """The digest that the PCR bank uses."""
        return hashlib.sha1(data).digest() if self.kind == "1.2" else hashlib.sha256(data).digest()

    def random(self, count):
        """Random bytes of the TPM."""
        if self.kind == "1.2":
            code, rest = self.command(0xc1, 0x46, struct.pack(">I", count))
            size = 4
        else:
            code, rest = self.command(0x8001, 0x17b, struct.pack(">H", count))
            size = 2
        assert code == 0, f"GetRandom: {code:#x}"
        return rest[size:]


def error_of(function, *arguments):
    """The errno of a call that should fail, 0 when it does not."""
    try:
        function(*arguments)
    except OSError as why:
        return why.errno
    return 0


def extend_matches(tpm, pcr, data):
    """Extends, and says whether the PCR became the hash of its old value and the digest."""
    digest = tpm.hash(data)
    wanted = tpm.hash(tpm.pcr(pcr) + digest)
    code = tpm.extend(pcr, digest)
    assert code == 0, f"extend of PCR {pcr}: {code:#x}"
    return tpm.pcr(pcr) == wanted


def works():
    """The TPM answers."""
    tpm = Tpm()
    assert len(tpm.random(16)) == 16


def extend(pcr):
    """Changes a PCR."""
    assert extend_matches(Tpm(), int(pcr), b"other"), "the PCR is not hash(old || digest)"


def pcr_extend():
    """PCR 10 follows the hash chain that is computed here."""
    tpm = Tpm()
    for number in range(3):
        assert extend_matches(tpm, 10, b"event %d" % number), "the PCR is not hash(old || digest)"


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
