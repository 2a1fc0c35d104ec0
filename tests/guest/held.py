# SPDX-License-Identifier: GPL-2.0
"""What a guest keeps in its TPM 2.0: PCR 16, an NV index; and a process that holds a device
open."""

import os
import sys
import time

from tpm import Tpm, error_of

PCR = 16


def extend():
    """Changes the PCR, and remembers nothing: the TPM has to."""
    tpm = Tpm()
    assert tpm.extend(PCR, tpm.hash(b"held")) == 0, "extend"
    print(tpm.pcr(PCR).hex())


def pcr(*wanted):
    """The PCR's value; compared, if a value is given; "reset" is that of a TPM that was just
    started."""
    tpm = Tpm()
    value = tpm.pcr(PCR)
    wanted = [bytes(len(value)).hex() if text == "reset" else text for text in wanted]
    assert not wanted or value.hex() in wanted, f"PCR {PCR} is {value.hex()}, not {wanted[0]}"
    print(value.hex())


def works(path, kind="2.0"):
    """The device answers."""
    assert len(Tpm(path, kind).random(8)) == 8


def hold(path):
    """Keeps a device open in the background until it is gone, then says with which errno it
    went."""
    tpm = Tpm(path, "2.0")
    if os.fork():
        return
    os.setsid()
    with open("/run/held", "w", encoding="ascii", buffering=1) as log:
        for _ in range(600):
            code = error_of(tpm.random, 8)
            log.write(f"{code}\n")
            if code:
                break
            time.sleep(0.1)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
