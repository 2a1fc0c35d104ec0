# SPDX-License-Identifier: GPL-2.0
"""Keeps books of a TPM whose backend is killed, or which is taken away and given back: no command
counts twice, none that was answered is lost, and no PCR is reset in silence. What the books say is
in /run/ledger."""

import collections
import errno
import os
import struct
import sys
import time

from tpm import HOST, Tpm

PCR = 16
INDEX = 0x1500020
BOOK = "/run/ledger"
# How long a backend may be away. Longer than the host takes to notice.
PATIENCE = 120 * HOST
INTERVAL = 0.05


def device():
    """What tells tpm0 from another one that was there before it; nothing if there is none."""
    try:
        return os.stat("/sys/class/tpm/tpm0/").st_ino
    except FileNotFoundError:
        return 0


class Ledger:
    """What the TPM has to say next, and what happened so far."""

    def __init__(self, may_reset):
        self.device = device()
        self.tpm = Tpm()
        self.may_reset = may_reset
        self.pcr = self.tpm.pcr(PCR)
        self.counter = self.read_counter() if self.tpm.kind == "2.0" else 0
        self.seen = collections.Counter()
        # A command failed since the PCR was last read.
        self.failed = False

    def write(self, state):
        """Writes the book, whole: it is read at any moment."""
        seen = " ".join(f"{name} {count}" for name, count in sorted(self.seen.items()))
        with open(BOOK + ".new", "w", encoding="ascii") as file:
            file.write(f"{state} counter {self.counter} {seen}\n")
        os.rename(BOOK + ".new", BOOK)

    def nv(self, code, rest=b""):
        """A command on the counter, authorised by its own empty password."""
        session = struct.pack(">IIHBH", 9, 0x40000009, 0, 0, 0)
        return self.tpm.command(0x8002, code, struct.pack(">II", INDEX, INDEX) + session + rest)

    def read_counter(self):
        """The counter; zero if it was never used."""
        code, answer = self.nv(0x14e, struct.pack(">HH", 8, 0))
        if code == 0x14a:
            return 0
        assert code == 0, f"NV_Read: {code:#x}"
        return struct.unpack(">Q", answer[6:14])[0]

    def fails(self, why):
        """Notes that a command failed; returns the errno's name."""
        name = errno.errorcode.get(why.errno, str(why.errno))
        self.seen[name] += 1
        self.failed = True
        return name

    def retry(self, function):
        """Asks until there is an answer again."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                return function()
            except OSError as why:
                name = self.fails(why)
                self.write(f"waiting {name}")
                assert time.monotonic() < until, f"no answer for {PATIENCE} s: {name}"
                time.sleep(INTERVAL)
                self.reopen()

    def reopen(self):
        """Opens the TPM anew if it is another device than the one that was opened: that never comes
        back."""
        if device() == self.device:
            return
        self.tpm.close()
        self.seen["reopened"] += 1
        until = time.monotonic() + PATIENCE
        while True:
            self.device = device()
            try:
                # Of one that goes there is for a moment the one file without the other.
                if self.device:
                    self.tpm = Tpm()
                    if device() == self.device:
                        return
                    self.tpm.close()
            except OSError:
                pass
            self.write("waiting device")
            assert (
                time.monotonic() < until
            ), f"no /dev/tpm0 for {PATIENCE} s: {os.listdir('/sys/class/tpm')}"
            time.sleep(INTERVAL)

    def look(self, allowed, what):
        """The PCR has one of these values; or it is reset, where that may be and a failure told of
        it."""
        value = self.retry(lambda: self.tpm.pcr(PCR))
        if value not in allowed and self.may_reset and self.failed and value == bytes(len(value)):
            self.seen["resets"] += 1
        else:
            assert value in allowed, (
                f"{what}, and PCR {PCR} is {value.hex()}: not"
                f" {' or '.join(one.hex() for one in allowed)}"
            )
        self.pcr, self.failed = value, False

    def extend(self, number):
        """The PCR is the old one and the digest if the command was answered, else that or the old
        one."""
        digest = self.tpm.hash(b"%d" % number)
        after = self.tpm.hash(self.pcr + digest)
        try:
            code = self.tpm.extend(PCR, digest)
            assert code == 0, f"extend: {code:#x}"
        except OSError as why:
            self.fails(why)
            self.look([after, self.pcr], f"extend {number} was not answered")
            return
        if number % 4:
            self.pcr = after
        else:
            self.look([after], f"extend {number} was answered")

    def increment(self):
        """The counter goes up by one if the command was answered, else by one or not at all; never
        back."""
        least = self.counter + 1
        try:
            code, _ = self.nv(0x134)
            assert code == 0, f"NV_Increment: {code:#x}"
        except OSError as why:
            self.fails(why)
            least = self.counter
        value = self.retry(self.read_counter)
        allowed = range(least, self.counter + 2)
        # The first use starts at the highest value that any counter of this TPM had.
        assert (
            value in allowed or self.counter == 0 and value
        ), f"the counter went from {self.counter} to {value}"
        self.counter = value
        # The extends to come would hide a reset.
        if self.failed:
            self.look([self.pcr], "the counter's command failed")


def main(policy, least, pause):
    """Works until /run/ledger.stop is there. `least` is what the counter must have reached;
    `pause`, in seconds, is for a testbed with other things to do."""
    ledger = Ledger(policy == "restart")
    assert ledger.counter >= int(least), f"the counter went back from {least} to {ledger.counter}"
    number = 0
    while not os.path.exists(BOOK + ".stop"):
        number += 1
        ledger.extend(number)
        if ledger.tpm.kind == "2.0" and number % 2:
            ledger.increment()
        ledger.seen["rounds"] = number
        ledger.write("working")
        time.sleep(float(pause))
    ledger.write("ended")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except AssertionError as why:
        with open(BOOK, "w", encoding="ascii") as file:
            file.write(f"wrong {why}\n")
        raise
