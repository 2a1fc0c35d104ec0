# SPDX-License-Identifier: GPL-2.0
"""A process that keeps /dev/tpm0 open while the backend goes and comes back, and what it has
seen."""

import errno
import os
import sys
import time

from tpm import Tpm

LOG = "/run/reconnect.log"
INTERVAL = 0.1


def hold():
    """Sends a command again and again from the one open file, in the background; logs each end."""
    tpm = Tpm()
    if os.fork():
        return
    os.setsid()
    with open(LOG, "w", encoding="ascii", buffering=1) as log:
        while True:
            try:
                word = "ok" if len(tpm.random(8)) == 8 else "short"
            except OSError as why:
                word = errno.errorcode.get(why.errno, str(why.errno))
            log.write(word + "\n")
            time.sleep(INTERVAL)


def seen():
    """Answers at first, then EPIPE and nothing else, then answers again."""
    with open(LOG, encoding="ascii") as log:
        words = log.read().split()
    phases = [word for place, word in enumerate(words) if place == 0 or words[place - 1] != word]
    print(" ".join(f"{word}" for word in phases), len(words))
    # The command that the end of the connection caught is abandoned by the backend, or has no
    # backend.
    phases = [word for word in phases if word != "ECANCELED"]
    assert phases == ["ok", "EPIPE", "ok"], "that is not an interruption with one end"
    names = sorted(os.listdir("/sys/class/tpm"))
    assert names == ["tpm0"], f"there are {names} now"


if __name__ == "__main__":
    globals()[sys.argv[1]]()
