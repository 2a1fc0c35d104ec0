# SPDX-License-Identifier: GPL-2.0
"""A guest that uses its TPM as any would: extends PCR 16 with its own data, and follows the hash
chain."""

import os
import sys
import time

from tpm import Tpm

PCR = 16
# Every so many extends the chain is compared.
EVERY = 8


def load(name, more):
    """Extends while `more(count)` says so; prints how many, and the median of their times."""
    tpm = Tpm()
    value, times = tpm.pcr(PCR), []
    while more(len(times)):
        digest = tpm.hash(f"{name} {len(times)}".encode())
        begin = time.perf_counter()
        code = tpm.extend(PCR, digest)
        times.append(time.perf_counter() - begin)
        assert code == 0, f"extend {len(times)}: {code:#x}"
        value = tpm.hash(value + digest)
        if len(times) % EVERY == 0:
            assert (
                tpm.pcr(PCR) == value
            ), f"after extend {len(times)} the PCR is not hash(old || digest)"
    assert tpm.pcr(PCR) == value, "at the end the PCR is not that of the chain"
    print(f"commands {len(times)} median_us {sorted(times)[len(times) // 2] * 1e6:.0f}")


def count(name, number):
    """So many extends."""
    load(name, lambda done: done < int(number))


def window(name, seconds):
    """As many extends as there are in a span of time, which begins when the file says."""
    with open("/run/steady.ready", "w", encoding="ascii"):
        pass
    while not os.path.exists("/run/steady.start"):
        time.sleep(0.2)
    with open("/run/steady.start", encoding="ascii") as file:
        start = float(file.read())
    assert time.time() < start, "this guest was told too late when to start"
    time.sleep(start - time.time())
    load(name, lambda _: time.time() < start + float(seconds))


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
