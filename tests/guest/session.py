# SPDX-License-Identifier: GPL-2.0
"""A policy session that stays loaded in a TPM 2.0, and what is in it."""

import struct
import sys

from tpm import Tpm

# TPM2_NV_Read: what the session's policy is to allow. Any command would do.
ALLOWED = 0x14e
# The first session that a TPM gives out.
HANDLE = 0x03000000


def start():
    """Starts it, and gives it a policy; nothing keeps it but the TPM."""
    tpm = Tpm()
    nonce = bytes(16)
    body = struct.pack(">II", 0x40000007, 0x40000007) + struct.pack(">H", len(nonce)) + nonce
    body += struct.pack(">HBHH", 0, 1, 0x10, 0x0b)
    code, rest = tpm.command(0x8001, 0x176, body)
    assert code == 0, f"StartAuthSession: {code:#x}"
    handle, = struct.unpack(">I", rest[:4])
    assert handle == HANDLE, f"session {handle:#x}"
    code, _ = tpm.command(0x8001, 0x16c, struct.pack(">II", handle, ALLOWED))
    assert code == 0, f"PolicyCommandCode: {code:#x}"


def policy(tpm):
    """The digest of its policy."""
    code, rest = tpm.command(0x8001, 0x189, struct.pack(">I", HANDLE))
    assert code == 0, f"PolicyGetDigest: {code:#x}"
    assert any(rest[2:]), "the session has no policy"
    return rest[2:]


def digest():
    """Prints the digest of its policy."""
    print(f"session {policy(Tpm()).hex()}")


def more():
    """Adds to its policy: what comes out depends on what was in it."""
    tpm = Tpm()
    wanted = tpm.hash(policy(tpm) + struct.pack(">I", 0x16b))
    code, _ = tpm.command(0x8001, 0x16b, struct.pack(">I", HANDLE))
    assert code == 0, f"PolicyAuthValue: {code:#x}"
    assert policy(tpm) == wanted, "the policy is not hash(old || TPM2_CC_PolicyAuthValue)"


if __name__ == "__main__":
    globals()[sys.argv[1]]()
