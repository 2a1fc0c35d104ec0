# SPDX-License-Identifier: GPL-2.0
"""What the driver counts, which debugfs shows, beside what was done."""

import os
import re
import struct
import sys

from tpm import Tpm, error_of

DIRECTORY = "/sys/kernel/debug/vtpm-0"
# Each command ends in one of these ways.
ENDS = (
    "completed",
    "malformed",
    "no_backend",
    "restarted",
    "cancelled",
    "timed_out",
    "interrupted",
    "bad_responses",
)
# How many commands are counted.
COUNT = 16


def read(name):
    """A file in debugfs."""
    with open(f"{DIRECTORY}/{name}", encoding="ascii") as file:
        return file.read()


def counters():
    """The counters by name; those of commands fit together."""
    found = {
        name: int(value) for name, value in re.findall(r"^(\w+) (\d+)$", read("counters"), re.M)
    }
    assert found["commands"] == sum(
        found[end] for end in ENDS
    ), f"the ends are not those of all commands: {found}"
    return found


def differences(function):
    """What a function changes."""
    before = counters()
    function()
    after = counters()
    return {name: after[name] - before[name] for name in after if after[name] != before[name]}


def some(tpm):
    """GetRandom of 8 bytes, some times: 12 bytes and 20, or for a TPM 1.2 14 and 22."""
    for _ in range(COUNT):
        assert len(tpm.random(8)) == 8


def too_short(tpm):
    """One that is shorter than a TPM's header, which the core lets pass."""
    assert error_of(os.write, tpm.fd, struct.pack(">HI", 0x8001, 8) + bytes(2)) != 0


def commands():
    """Commands, their bytes and their ends; nothing else is counted for them."""
    tpm = Tpm()
    sent, received = (12, 20) if tpm.kind == "2.0" else (14, 22)
    found = differences(lambda: some(tpm))
    spurious = found.pop("spurious_events", 0)
    wanted = {
        "commands": COUNT,
        "completed": COUNT,
        "request_bytes": COUNT * sent,
        "response_bytes": COUNT * received,
    }
    assert found == wanted, f"{found}, and not {wanted}"
    assert spurious <= 1, f"{spurious} spurious events"
    found = differences(lambda: too_short(tpm))
    assert found.get("malformed", 0) == 1, f"a command that is too short changed {found}"
    assert re.fullmatch(r"Connected for \d+ ms\n", read("state")), f"state: {read('state')!r}"


def are(*wanted):
    """Counters have a value, NAME=VALUE, or are at least that, NAME>VALUE."""
    found = counters()
    print(found)
    for text in wanted:
        name, operator, value = re.fullmatch(r"(\w+)([=>])(\d+)", text).groups()
        right = found[name] == int(value) if operator == "=" else found[name] >= int(value)
        assert right, f"{name} is {found[name]}, and should be {text}"


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
