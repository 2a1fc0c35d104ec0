# SPDX-License-Identifier: GPL-2.0
"""Two vTPMs of one guest at once, under load: each answer has to come from the TPM that was
asked."""

import sys
import threading

from tpm import Tpm, extend_matches

ROUNDS = 40
PCR = 11


def load(path, wrong):
    """Extends a PCR with the device's own values, and follows the hash chain."""
    try:
        tpm = Tpm(path)
        for number in range(ROUNDS):
            if not extend_matches(tpm, PCR, f"{path} {number}".encode()):
                wrong.append(f"{path}: round {number}: the PCR is not hash(old || digest)")
                return
    except (OSError, AssertionError) as why:
        wrong.append(f"{path}: {why!r}")


def main():
    """Loads both."""
    wrong = []
    threads = [
        threading.Thread(target=load, args=(path, wrong)) for path in ("/dev/tpm0", "/dev/tpm1")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong:
        sys.exit("\n".join(wrong))
    print(f"{2 * ROUNDS} extends")


if __name__ == "__main__":
    main()
