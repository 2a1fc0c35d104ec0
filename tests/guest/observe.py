# SPDX-License-Identifier: GPL-2.0
"""What the driver shows to those who watch: tracepoints, uevents, and the counter of spurious
events."""

import os
import re
import socket
import sys

from tpm import Tpm

TRACING = "/sys/kernel/tracing"
EVENTS = f"{TRACING}/events/xen_tpmfront"
UEVENTS = "/run/uevents"
COUNTERS = "/sys/kernel/debug/vtpm-0/counters"
# NETLINK_KOBJECT_UEVENT, and the group that the kernel sends to.
KOBJECT_UEVENT, KERNEL = 15, 1
COMMANDS = 4000
SKIP = 77
# By a TPM's version: the ordinal of GetRandom, the lengths of the command, and of the response with
# 8 bytes.
RANDOM = {"1.2": (0x46, 14, 22), "2.0": (0x17b, 12, 20)}


def write(path, text):
    """Writes to a file of the kernel's."""
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def traced():
    """The lines that were traced."""
    with open(f"{TRACING}/trace", encoding="ascii") as file:
        return re.findall(r": (xen_tpmfront_\w+): vtpm-0 (.*)", file.read())


def trace():
    """Begins to trace."""
    if not os.path.exists(f"{TRACING}/events"):
        os.system(f"mount -t tracefs tracing {TRACING} 2>/dev/null")
    if not os.path.exists(f"{TRACING}/events"):
        print("this kernel has no tracepoints")
        sys.exit(SKIP)
    write(f"{TRACING}/trace", "")
    write(f"{EVENTS}/enable", "1")


def command():
    """A command is traced with its ordinal, locality, lengths and time."""
    trace()
    tpm = Tpm()
    ordinal, length, response = RANDOM[tpm.kind]
    tpm.random(8)
    write("/sys/class/tpm/tpm0/locality", "2")
    try:
        tpm.random(8)
    finally:
        write("/sys/class/tpm/tpm0/locality", "0")
    tpm.close()
    write(f"{EVENTS}/enable", "0")
    lines = [text for name, text in traced() if name == "xen_tpmfront_command"]
    for locality in (0, 2):
        pattern = (
            rf"ordinal={ordinal:#x} locality={locality} request={length} response=(-?\d+) us=(\d+)"
        )
        found = [match for match in (re.fullmatch(pattern, line) for line in lines) if match]
        assert found, f"no line like {pattern}: {lines}"
        assert int(found[0][1]) == response, f"not {response} bytes: {found[0][0]}"
        assert 0 < int(found[0][2]) < 60_000_000, f"no time for a command: {found[0][0]}"
    before = len(traced())
    os.system("python3 -E -s /bed/tpm.py works >/dev/null")
    assert len(traced()) == before, "commands are traced when nobody wants it"
    print(lines[0])


def states():
    """The states of the connection since `trace`, over which the backend has gone and come back."""
    write(f"{EVENTS}/enable", "0")
    found = [text for name, text in traced() if name == "xen_tpmfront_connection"]
    print(" ".join(found))
    assert (
        found[-1:] == ["Connected"] and "Disconnected" in found and "Initialised" in found
    ), "not a reconnect's states"


def listen():
    """Takes down the chip's uevents, in the background."""
    try:
        events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, KOBJECT_UEVENT)
        events.bind((0, KERNEL))
    except OSError as why:
        print(f"this kernel tells of no uevents: {why}")
        sys.exit(SKIP)
    open(UEVENTS, "w", encoding="ascii").close()
    if os.fork():
        return
    os.setsid()
    while True:
        text = events.recv(8192).replace(b"\0", b" ").decode(errors="replace")
        if "/tpm/tpm0" in text:
            with open(UEVENTS, "a", encoding="utf-8") as file:
                file.write(text + "\n")


def changed():
    """There was one uevent that says that the TPM was reset."""
    with open(UEVENTS, encoding="utf-8") as file:
        lines = [line for line in file.read().splitlines() if line.startswith("change@")]
    print(*lines, sep="\n")
    assert sum(" RESET=1" in line for line in lines) == 1, "not one uevent of a TPM that was reset"


def spurious():
    """Some thousand commands on one connection, each with an event that is expected, add none that
    is not."""
    def count():
        with open(COUNTERS, encoding="ascii") as file:
            return int(re.search(r"^spurious_events (\d+)$", file.read(), re.M)[1])

    tpm, before = Tpm(), count()
    for _ in range(COMMANDS):
        tpm.random(8)
    tpm.close()
    found = count() - before
    print(f"{found} spurious events beside {COMMANDS} commands, {before} before")
    # One comes when the event channel is bound.
    assert before <= 1 and found == 0, "ordinary commands make spurious events"


if __name__ == "__main__":
    globals()[sys.argv[1]]()
