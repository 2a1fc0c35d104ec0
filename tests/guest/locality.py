# SPDX-License-Identifier: GPL-2.0
"""The locality attribute: what it takes, and that the TPM sees it."""

import errno
import os
import sys

from tpm import LOCALITY_DENIED, Tpm, error_of

FILE = "/sys/devices/vtpm-0/locality"
# The localities of xen-vtpmd's default configuration: the others are a platform's.
GUESTS = {0, 1, 2}
# Which localities may extend a PCR: the PC Client profile's table.
EXTENDS = {16: {0, 1, 2, 3, 4}, 17: {2, 3, 4}, 19: {2, 3}, 20: {1, 2, 3}, 21: {2}}
GOOD = {"0": 0, "255": 255, "4\n": 4, "0x10": 16, "0X1f\n": 31, "010": 8, "3": 3}
# As the kernel's own parser of an unsigned number has it: a sign is not a digit.
BAD = {
    "256": errno.ERANGE,
    "-1": errno.EINVAL,
    "99999999999999999999999": errno.ERANGE,
    "0x100": errno.ERANGE,
    "abc": errno.EINVAL,
    "": errno.EINVAL,
    "\n": errno.EINVAL,
    "1 2": errno.EINVAL,
    "3x": errno.EINVAL,
    "0x": errno.EINVAL,
    "08": errno.EINVAL,
}


def write(text):
    """Writes the attribute with one system call."""
    fd = os.open(FILE, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def read():
    """Reads the attribute."""
    with open(FILE, encoding="ascii") as file:
        return file.read()


def values():
    """Good values are read back in decimal; a bad one has its errno and changes nothing."""
    wrong = []
    for text, wanted in GOOD.items():
        code = error_of(write, text)
        if code or read() != f"{wanted}\n":
            wrong.append(f"{text!r}: errno {code}, reads {read()!r}")
    write("3")
    for text, wanted in BAD.items():
        # A write of no byte does not reach the driver.
        if text and (code := error_of(write, text)) != wanted:
            wrong.append(
                f"{text!r}: errno {code} ({errno.errorcode.get(code)}), not"
                f" {errno.errorcode[wanted]}"
            )
        if read() != "3\n":
            wrong.append(f"{text!r} changed it to {read()!r}")
            write("3")
    mode = os.stat(FILE).st_mode & 0o777
    if mode != 0o644:
        wrong.append(f"mode {mode:o}, not 644")
    write("0")
    assert not wrong, "\n".join(wrong)


def arrives():
    """A locality may extend exactly the PCRs that are its own, and a platform's none."""
    tpm, wrong = Tpm(), []
    for number in range(5):
        write(str(number))
        for pcr, allowed in EXTENDS.items():
            code = tpm.extend(pcr, tpm.hash(b"locality"))
            wanted = 0 if number in allowed & GUESTS else LOCALITY_DENIED[tpm.kind]
            if code != wanted:
                wrong.append(f"locality {number}, PCR {pcr}: {code:#x}, not {wanted:#x}")
    write("0")
    assert not wrong, "\n".join(wrong)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
