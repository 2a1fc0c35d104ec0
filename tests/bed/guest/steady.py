# SPDX-License-Identifier: GPL-2.0
"""A guest that uses its TPM as any would: extends PCR 16 with its own data, and follows the hash chain."""

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
            assert tpm.pcr(PCR) == value, f"after extend {len(times)} the PCR is not hash(old || digest)"
    assert tpm.pcr(PCR) == value, "at the end the PCR is not that of the chain"
    print(f"commands {len(times)} median_us {sorted(times)[len(times) // 2] * 1e6:.0f}")


def count(name, number):
    """So many extends."""
    load(name, lambda done: done < int(number))


def window(name, start, seconds):
    """As many extends as there are in a span of time."""
    time.sleep(max(0.0, float(start) - time.time()))
    end = float(start) + float(seconds)
    load(name, lambda _: time.time() < end)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
