# SPDX-License-Identifier: GPL-2.0
"""A process that has a command running, and /dev/tpm0 open, while something happens to the device;
and how long it takes to take the driver away."""

import os
import sys
import time

from hostile import Child, get_random, no_reader, transmit

LOG = "/run/running"


def running(stay="0"):
    """Sends a command in the background, and says what came of it. With `stay` that process keeps
    the device open until it is told to go."""
    no_reader()
    if os.fork():
        return
    os.setsid()
    held = os.open("/dev/tpm0", os.O_RDWR) if stay == "1" else None
    with open(LOG, "w", encoding="ascii", buffering=1) as log:
        log.write("running\n")
        begin = time.monotonic()
        log.write(f"{transmit(get_random(), held)} {time.monotonic() - begin:.1f}\n")
    while held is not None and not os.path.exists(f"{LOG}.stop"):
        time.sleep(0.1)


def rmmod(seconds):
    """Unloads the module."""
    begin = time.monotonic()
    word = Child(lambda: str(os.waitstatus_to_exitcode(os.system("rmmod xen_tpmfront")))).word(
        float(seconds)
    )
    print("rmmod", "hangs" if word is None else word, f"{time.monotonic() - begin:.1f}")


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
