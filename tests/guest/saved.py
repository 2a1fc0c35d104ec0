# SPDX-License-Identifier: GPL-2.0
"""A process that has /dev/tpm0 open while its guest is saved, and follows the hash chain of a PCR.
What became of its commands is in /run/saved, a word for each."""

import collections
import errno
import os
import sys
import time

from tpm import HOST, Tpm, error_of, packet

PCR = 12
LOG = "/run/saved"
GO, STOP = "/run/saved.go", "/run/saved.stop"
INTERVAL = 0.02
LAST = 30 * HOST


class Chain:
    """The PCR as it has to be."""

    def __init__(self):
        self.tpm = Tpm()
        self.value, self.number = self.tpm.pcr(PCR), 0

    def digest(self):
        """The next one."""
        self.number += 1
        return self.tpm.hash(b"saved %d" % self.number)

    def extend(self, digest):
        """Extends; an answer has to be that it was done."""
        code = self.tpm.extend(PCR, digest)
        assert code == 0, f"extend {self.number}: {code:#x}"

    def follow(self, digest, counts):
        """The PCR is that of the chain; with a digest that was not answered it `counts` once or not
        at all."""
        after = self.tpm.hash(self.value + digest)
        allowed = [after] if counts else [after, self.value]
        value = self.tpm.pcr(PCR)
        assert (
            value in allowed
        ), f"extend {self.number}: the PCR is {value.hex()}, not {allowed[0].hex()}"
        self.value = value


def background(function):
    """Runs it in a process of its own, whose last word is what went wrong with it."""
    for path in (LOG, GO, STOP):
        if os.path.exists(path):
            os.remove(path)
    chain = Chain()
    if os.fork():
        return
    os.setsid()
    with open(LOG, "w", encoding="ascii", buffering=1) as log:
        try:
            function(chain, lambda word: log.write(word + "\n"))
            log.write("end\n")
        except (AssertionError, OSError) as why:
            log.write(f"wrong: {why!r}\n")


def work(chain, say):
    """One extend after the other, one at least, each of which has to succeed."""
    while True:
        digest = chain.digest()
        code = error_of(chain.extend, digest)
        say(errno.errorcode.get(code, "ok"))
        chain.follow(digest, code == 0)
        if os.path.exists(STOP):
            break
        time.sleep(INTERVAL)


def wait(chain, say):
    """One extend that runs while the guest is saved: the kernel waits for it, and the process
    sleeps, so that it can be frozen."""
    digest, tpm = chain.digest(), chain.tpm
    say("ready")
    while not os.path.exists(GO):
        time.sleep(INTERVAL)
    os.set_blocking(tpm.fd, False)
    os.write(tpm.fd, packet(*tpm.extending(PCR, digest)))
    say("sent")
    while not os.path.exists(STOP):
        time.sleep(INTERVAL)
    # The kernel's worker holds the lock that reading takes until there is an answer.
    code = error_of(os.read, tpm.fd, 4096)
    say(errno.errorcode.get(code, "ok"))
    os.set_blocking(tpm.fd, True)
    chain.follow(digest, code == 0)
    work(chain, say)


def ended(*wanted):
    """Ends the process: its commands went as wanted, and the PCR is right to the end."""
    with open(STOP, "w", encoding="ascii"):
        pass
    until = time.monotonic() + LAST
    while True:
        with open(LOG, encoding="ascii") as log:
            words = log.read().split("\n")[:-1]
        if words and words[-1] == "end":
            break
        assert not words or not words[-1].startswith("wrong"), words[-1]
        assert time.monotonic() < until, f"no end after {LAST} s: {words[-3:]}"
        time.sleep(0.1)
    found = collections.Counter(words[:-1])
    print(dict(found))
    assert list(found) == list(wanted), f"{dict(found)}, and not {wanted}"
    names = sorted(os.listdir("/sys/class/tpm"))
    assert names == ["tpm0"], f"there are {names} now"


if __name__ == "__main__":
    if sys.argv[1] == "ended":
        ended(*sys.argv[2:])
    else:
        background(globals()[sys.argv[1]])
