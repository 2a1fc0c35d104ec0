# SPDX-License-Identifier: GPL-2.0
"""IMA's measurement list against the TPM: its first entry, which is over PCRs 0 to 9, and PCR 10,
into which every entry went; and work that makes the list grow."""

import collections
import hashlib
import itertools
import json
import os
import re
import struct
import sys
import threading
import time

from tpm import Tpm

IMA = "/sys/kernel/security/ima"
PCR = 10
# By name, as IMA and hashlib have it: the number that a TPM 2.0 has for the bank.
BANKS = {"1.2": {"sha1": None}, "2.0": {"sha1": 0x04, "sha256": 0x0b}}
READERS = 4
# What ends `churn`, and what `caught_up` knows.
CHURN_STOP, CAUGHT_UP = "/run/churn.stop", "/run/caught-up.json"
# Whose files are appraised, and with what an HMAC of EVM's begins: security/integrity/integrity.h.
APPRAISED, EVM_XATTR_HMAC = 4712, 2
# Of one kill at most so many measurements are not in the PCR.
MISSING = 2

Entry = collections.namedtuple("Entry", "pcr digest template data")


def read(name):
    """A file of IMA's."""
    with open(f"{IMA}/{name}", "rb") as file:
        return file.read()


def count(name="runtime_measurements_count"):
    """How many entries the list has, or of another thing there are."""
    return int(read(name))


def entries(bank):
    """The measurement list as it is for a bank."""
    data, size, found, at = (
        read(f"binary_runtime_measurements_{bank}"),
        hashlib.new(bank).digest_size,
        [],
        0,
    )

    def take(length):
        nonlocal at
        piece = data[at:at + length]
        assert len(piece) == length, f"the list ends at {len(data)}, in the middle of an entry"
        at += length
        return piece

    while at < len(data):
        pcr, = struct.unpack("<I", take(4))
        digest = take(size)
        template = take(*struct.unpack("<I", take(4))).decode()
        found.append(Entry(pcr, digest, template, take(*struct.unpack("<I", take(4)))))
    return found


def fields(entry):
    """The fields of an entry's template, each with its length before it."""
    found, data = [], entry.data
    while data:
        size, = struct.unpack("<I", data[:4])
        found.append(data[4:4 + size])
        data = data[4 + size:]
    return found


def name_of(entry):
    """What the entry is of."""
    return fields(entry)[1].rstrip(b"\0").decode()


def extended(bank, listed):
    """What each entry has extended PCR 10 of the bank with."""
    size, found = hashlib.new(bank).digest_size, []
    for number, entry in enumerate(listed):
        assert entry.pcr == PCR, f"entry {number} is for PCR {entry.pcr}"
        digest = hashlib.new(bank, entry.data).digest()
        if entry.digest == bytes(size):
            # A violation: whatever was measured, it could have been something else.
            digest = b"\xff" * size
        assert (
            digest == entry.digest or digest == b"\xff" * size
        ), f"entry {number} of {bank} is not its data's digest"
        found.append(digest)
    return found


def extend(bank, value, digests):
    """What a PCR with this value is after these."""
    for digest in digests:
        value = hashlib.new(bank, value + digest).digest()
    return value


def chain(bank, listed):
    """What PCR 10 of the bank has to be after these entries."""
    return extend(bank, bytes(hashlib.new(bank).digest_size), extended(bank, listed))


def missing(bank, digests, before, value, most):
    """How many of these are not in the PCR, `most` at most; None if it is another value."""
    # By how many are missing: all that the PCR can be so far.
    found = [{before}] + [set() for _ in range(most)]
    new_hash = getattr(hashlib, bank)
    for digest in digests:
        found = [
            {new_hash(one + digest).digest() for one in values}
            | (found[number - 1] if number else set())
            for number, values in enumerate(found)
        ]
    return next((number for number, values in enumerate(found) if value in values), None)


def missing_run(bank, digests, before, value, most):
    """How many of these in a row are not in the PCR: those of the time without a backend. `most` at
    most; None if it is another value."""
    for first, digest in enumerate(digests):
        for number in range(1, most + 1):
            if extend(bank, before, digests[first + number:]) == value:
                return number
        before = extend(bank, before, [digest])
    return None


def settled(function):
    """Calls it until the list has not grown meanwhile."""
    for _ in range(20):
        before = count()
        result = function()
        if count() == before:
            return result
    raise AssertionError("the list does not stop growing")


def replay():
    """In each bank, PCR 10 is what the whole list makes of it."""
    tpm = Tpm()
    for bank, number in BANKS[tpm.kind].items():
        listed, found = settled(lambda: (entries(bank), tpm.pcr(PCR, number)))
        assert (
            len(listed) == count()
        ), f"{len(listed)} entries in {bank}'s list, and {count()} counted"
        wanted = chain(bank, listed)
        assert (
            found == wanted
        ), f"PCR 10 of {bank} is {found.hex()}, and {len(listed)} entries make it {wanted.hex()}"
        print(f"{bank}: PCR 10 is the replay of {len(listed)} measurements", end="; ")
    print(f"{count('violations')} violations")


def boot_aggregate():
    """The first entry is the digest of PCRs 0 to 9, for SHA-1 of 0 to 7, and those are not
    zeroes."""
    tpm = Tpm()
    bank, number = list(BANKS[tpm.kind].items())[-1]
    pcrs = [tpm.pcr(pcr, number) for pcr in range(10)]
    assert (
        len(set(pcrs)) == 10 and bytes(len(pcrs[0])) not in pcrs
    ), "nothing was measured into PCRs 0 to 9 before IMA"
    wanted = hashlib.new(bank, b"".join(pcrs[:8] if bank == "sha1" else pcrs)).digest()
    first = entries(bank)[0]
    assert name_of(first) == "boot_aggregate", f"the first entry is {name_of(first)}"
    assert (
        fields(first)[0] == bank.encode() + b":\0" + wanted
    ), f"{fields(first)[0]} is not {bank}:{wanted.hex()}"
    print(f"{bank}:{wanted.hex()}")


def bypassed():
    """Without a TPM the first entry is of zeroes, and the list goes on all the same."""
    listed = entries("sha1")
    digest = fields(listed[0])[0]
    assert name_of(listed[0]) == "boot_aggregate", f"the first entry is {name_of(listed[0])}"
    assert not digest.split(b"\0", 1)[1].strip(
        b"\0"
    ), f"boot_aggregate is {digest}, and there was no TPM"
    print(f"{len(listed)} measurements, none of them in a TPM")


def make(folder, number, first=0):
    """Makes files of which no two are the same."""
    paths = [f"{folder}/{first + index}" for index in range(number)]
    for path in paths:
        with open(path, "wb") as file:
            file.write(os.urandom(16) + path.encode())
    return paths


def read_each(paths):
    """Reads them, one after the other."""
    for path in paths:
        with open(path, "rb") as file:
            file.read()


def read_all(paths):
    """Reads them, some at a time, while others ask the TPM for random numbers."""
    done = threading.Event()
    commands = [0]

    def ask():
        tpm = Tpm()
        while not done.is_set():
            tpm.random(16)
            commands[0] += 1
        tpm.close()

    asking = threading.Thread(target=ask)
    readers = [
        threading.Thread(target=read_each, args=(paths[first::READERS],))
        for first in range(READERS)
    ]
    for thread in (asking, *readers):
        thread.start()
    for thread in readers:
        thread.join()
    done.set()
    asking.join()
    return commands[0]


def load(folder, number):
    """Reading that many files makes as many measurements, while the TPM has other users; and they
    are all in PCR 10."""
    before = count()
    paths = make(folder, int(number))
    commands = read_all(paths)
    grown = count() - before
    assert grown >= len(
        paths
    ), f"{len(paths)} files were read, and there are {grown} measurements more"
    assert commands, "nobody else used the TPM meanwhile"
    names = {name_of(entry) for entry in entries("sha1")}
    assert names >= set(paths), f"{len(set(paths) - names)} of the files are not in the list"
    print(f"{grown} measurements beside {commands} other commands", end="; ")
    replay()


def timed(folder, number):
    """Prints how many us it takes to read that many files, of which each is measured, one after the
    other."""
    paths = make(folder, int(number))
    before, start = count(), time.monotonic_ns()
    read_each(paths)
    took = time.monotonic_ns() - start
    assert count() - before == len(
        paths
    ), f"{len(paths)} files were read, and there are {count() - before} measurements more"
    print(took // 1000)


def churn(folder):
    """Until it is told to stop: reads a new file, which is measured, and asks the kernel for a
    random number of the TPM's, which may fail. Each turn has a folder of its own."""
    os.mkdir(folder)
    for number in itertools.count():
        if os.path.exists(CHURN_STOP):
            break
        read_each(make(folder, 1, number))
        try:
            with open("/dev/hwrng", "rb", buffering=0) as file:
                file.read(8)
        except OSError:
            pass
    print(number)


def failed():
    """How many measurements the kernel's log says not to be in the TPM, since the last look."""
    os.system("dmesg -c >/run/dmesg.new; cat /run/dmesg.new >>/run/dmesg")
    with open("/run/dmesg.new", encoding="utf-8", errors="replace") as file:
        lines = file.read().splitlines()
    return sum(bool(re.search("ima: Error Communicating to TPM", line)) for line in lines)


def caught_up():
    """PCR 10 is what the measurements since the last look make of the PCR then, but for those that
    failed: for each there is a line in the kernel's log. Of a command that was cut off nobody knows
    whether the TPM has carried it out."""
    tpm = Tpm()
    bank, number = list(BANKS[tpm.kind].items())[-1]
    listed, value = settled(lambda: (entries(bank), tpm.pcr(PCR, number)))
    lost = failed()
    known = {"count": 0, "value": bytes(len(value)).hex()}
    if os.path.exists(CAUGHT_UP):
        with open(CAUGHT_UP, encoding="ascii") as file:
            known = json.load(file)
    new, before = listed[known["count"]:], bytes.fromhex(known["value"])
    digests = extended(bank, new)
    # Most often none is missing, and with more it takes long, unless they are in a row.
    tries = [(missing, most) for most in range(min(lost, MISSING) + 1)]
    for function, most in tries + [(missing_run, lost)]:
        dropped = function(bank, digests, before, value, most)
        if dropped is not None:
            with open(CAUGHT_UP, "w", encoding="ascii") as file:
                json.dump({"count": len(listed), "value": value.hex()}, file)
            print(f"{len(new)} measurements, {lost} of which failed, {dropped} are not in the PCR")
            return
    raise AssertionError(
        f"PCR 10 is {value.hex()}: not the replay of {len(new)} measurements, of which {lost}"
        f" failed and at most {MISSING} are left out, or {lost} in a row"
    )


def violation(folder):
    """A file that is read while somebody may write to it is a violation, which the list and the PCR
    have, too."""
    before = count("violations")
    with open(f"{folder}/violation", "wb", buffering=0) as file:
        file.write(b"one")
        with open(f"{folder}/violation", "rb") as other:
            other.read()
    assert count("violations") > before, "no violation is counted"
    replay()


def appraisal(mounted, disk):
    """A file that was changed on the disk, and the digest beside it, is refused; another is read.
    Only who has the key makes `security.evm`."""
    names = [f"{mounted}/appraised/{name}" for name in ("kept", "changed")]
    texts = [os.urandom(32).hex().encode() for _ in names]
    os.mkdir(f"{mounted}/appraised")
    os.chown(f"{mounted}/appraised", APPRAISED, APPRAISED)
    os.seteuid(APPRAISED)
    for name, text in zip(names, texts):
        with open(name, "wb") as file:
            file.write(text)
    os.seteuid(0)
    for name in names:
        assert os.getxattr(name, "security.evm")[0] == EVM_XATTR_HMAC, f"{name} has no HMAC"
        whole(name)
    forged = texts[1][::-1]
    assert os.system(f"umount {mounted}") == 0
    with open(disk, "r+b") as file:
        data = file.read()
        for old, new in ((texts[1], forged),
                         (hashlib.sha256(texts[1]).digest(), hashlib.sha256(forged).digest())):
            assert data.count(old) == 1, f"{disk} has it {data.count(old)} times"
            file.seek(data.index(old))
            file.write(new)
    assert os.system(f"mount -t ext2 -o loop {disk} {mounted}") == 0
    assert whole(names[0]) == texts[0]
    digest = os.getxattr(names[1], "security.ima")[2:]
    assert digest == hashlib.sha256(forged).digest(), "IMA alone would refuse it"
    try:
        found = whole(names[1])
    except PermissionError:
        return
    raise AssertionError(f"{found!r} is read in place of {texts[1]!r}")


def whole(name):
    """A file's content."""
    with open(name, "rb") as file:
        return file.read()


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
