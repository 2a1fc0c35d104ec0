# SPDX-License-Identifier: GPL-2.0
"""Lets the allocations and calls of the driver fail one by one, on the debug kernel: each failure
is an errno, or is made up for, and the next try succeeds. Where there are more of them than MOST,
it is every second or every tenth, from a number that is drawn."""

import collections
import contextlib
import ctypes
import errno
import os
import random
import sys

from tpm import Tpm, version

DEBUG = "/sys/kernel/debug"
DRIVER = "/sys/bus/xen/drivers/vtpm"
DEVICE = "vtpm-0"
ALLOCATIONS = ("failslab", "fail_page_alloc", "fail_usercopy")
# Not bind_evtchn_to_irqhandler_lateeoi: one that fails has closed the port, but for what is
# injected.
FUNCTIONS = """
xenbus_setup_ring gnttab_alloc_grant_references
xenbus_alloc_evtchn request_threaded_irq
xenbus_transaction_start xenbus_write xenbus_read tpm_chip_alloc
tpm_chip_start tpm2_probe tpm_chip_bootstrap tpm_chip_register
device_create_file compat_only_sysfs_link_entry_to_kobj
""".split()
# More than any operation has.
MANY = 100000
# Each try takes seconds on this kernel.
MOST = 8
# What asks for the backend's state.
STATE = "xenbus_read_driver_state"
# What may come out of a failed allocation or user copy.
USUAL = {"ENOMEM", "EFAULT"}


def write(path, text):
    """Writes to a file of the kernel's."""
    with open(path, "wb", buffering=0) as file:
        file.write(str(text).encode())


def read(path):
    """Reads one."""
    with open(path, encoding="ascii") as file:
        return file.read().strip()


def code_of(name):
    """From where to where the code of a module goes, or that of a function of the kernel's."""
    with open("/proc/kallsyms", encoding="ascii") as file:
        symbols = [line.split() for line in file]
    places = sorted(int(fields[0], 16) for fields in symbols if fields[1] in "tT")
    inside = [
        int(fields[0], 16)
        for fields in symbols
        if fields[1] in "tT" and fields[-1] in (f"[{name}]", name)
    ]
    assert inside and min(inside), f"no address of {name}: is it there?"
    return min(inside), next(
        (place for place in places if place > max(inside)), (max(inside) | 0xFFF) + 1
    )


def arm(behind=None, but=None):
    """Every allocation may fail, also those that could wait. With `behind` those alone that have
    this module or function in their stack trace, with `but` those that do not have this one."""
    start, end = code_of(behind) if behind else (0, 2 ** 64 - 1)
    reject_start, reject_end = code_of(but) if but else (0, 0)
    for name in ALLOCATIONS:
        folder = f"{DEBUG}/{name}"
        settings = {
            "verbose": 0,
            "probability": 0,
            "ignore-gfp-wait": "N",
            "ignore-gfp-highmem": "N",
            "min-order": 0,
            "cache-filter": "N",
            "stacktrace-depth": 32,
            "require-start": f"{start:#x}",
            "require-end": f"{end:#x}",
            "reject-start": f"{reject_start:#x}",
            "reject-end": f"{reject_end:#x}",
        }
        for setting, value in settings.items():
            if os.path.exists(f"{folder}/{setting}"):
                write(f"{folder}/{setting}", value)


class Nth:
    """The n-th allocation of this task fails; `left` says afterwards how many were missing to
    that."""

    def __init__(self, number):
        self._file = os.open("/proc/thread-self/fail-nth", os.O_RDWR)
        self._number = str(number).encode()
        self.left = None

    def __enter__(self):
        os.write(self._file, self._number)
        return self

    def __exit__(self, *_):
        # This reading may itself be what fails, and what is counted.
        with contextlib.suppress(OSError):
            self.left = int(os.pread(self._file, 20, 0))
        self.left = self.left or 0
        with contextlib.suppress(OSError):
            os.write(self._file, b"0")
        os.close(self._file)


def attempt(function, number):
    """Calls a function whose n-th allocation fails; returns how it ended, and how many allocations
    were missing."""
    word = "ok"
    with Nth(number) as nth:
        try:
            function()
        except OSError as why:
            word = errno.errorcode.get(why.errno, str(why.errno))
    return word, nth.left


def walk(name, function, undo, allowed=frozenset(USUAL), most=MOST):
    """Calls it with one allocation that fails, another one each time; `undo` makes the next try
    possible."""
    ends = collections.Counter()
    word, left = attempt(function, MANY)
    undo(word)
    assert word == "ok", f"{name}: with nothing to fail: {word}"
    total = MANY - left
    step = -(-total // most)
    first = random.randint(1, step)
    for number in range(first, total + 1, step):
        word, left = attempt(function, number)
        state = undo(word)
        assert word == "ok" or word in allowed, f"{name}: {number}: {word}"
        # There may be fewer allocations than the first time.
        if left:
            assert word == "ok", f"{name}: {number}: nothing failed, and yet: {word}"
        else:
            ends[f"{word}{state}"] += 1
    print(
        f"{name}: {sum(ends.values())} failures of {total} (from {first} by {step}): {dict(ends)}",
        flush=True,
    )
    assert ends, "nothing failed at all"


class Opened:
    """A file that is written to in one call, without an allocation of Python's own."""

    def __init__(self, path, data):
        self._file, self._data = os.open(path, os.O_WRONLY), data

    def __call__(self):
        os.write(self._file, self._data)


def bound():
    """Whether the driver has the device."""
    return os.path.exists(f"{DRIVER}/{DEVICE}")


def works():
    """The TPM answers."""
    tpm = Tpm()
    assert len(tpm.random(8)) == 8, "no random numbers"
    tpm.close()


def set_unbound(_=None):
    """Unbinds the device if it is bound; says what was there."""
    if not bound():
        assert not os.path.exists("/dev/tpm0"), "a TPM without a driver"
        return ""
    state = ", a TPM" if os.path.exists("/dev/tpm0") else ", no TPM"
    write(f"{DRIVER}/unbind", DEVICE)
    assert not bound(), "it is still bound"
    assert not os.path.exists("/dev/tpm0"), "a TPM that is left over"
    return state


def set_bound(_=None):
    """Binds it, with nothing that fails."""
    if not bound():
        write(f"{DRIVER}/bind", DEVICE)
    works()
    return ""


def bind():
    """Every allocation of probe(): page, event channel, xenstore, the TPM's registration."""
    try_to_bind = Opened(f"{DRIVER}/bind", DEVICE.encode())
    set_unbound()
    # How often the backend is asked for its state is a matter of its speed: of these a few are
    # enough.
    arm(STATE)
    walk("bind, the backend's state", try_to_bind, set_unbound, most=8)
    arm("xen_tpmfront", but=STATE)
    walk("bind", try_to_bind, set_unbound, USUAL | {"ENODEV", "EIO"})
    set_bound()


def unbind():
    """Every allocation of remove(): it cannot fail, and leaves nothing."""
    arm("xen_tpmfront", but=STATE)
    set_bound()

    def again(word):
        assert (
            word == "ok" and not bound() and not os.path.exists("/dev/tpm0")
        ), f"{word}, and it is still there"
        return set_bound()

    walk("unbind", Opened(f"{DRIVER}/unbind", DEVICE.encode()), again)


def load():
    """Every allocation of loading the module, which finds its device, but those of its tracepoints:
    without memory for them the kernel warns, of whatever module."""
    arm(but="event_create_dir")
    set_unbound()
    path = f"/lib/modules/{os.uname().release}/updates/xen-tpmfront.ko"
    libc = ctypes.CDLL(None, use_errno=True)
    file = os.open(path, os.O_RDONLY)
    arguments = (313, file, b"", 0)
    # The device is for bind().
    write("/sys/bus/xen/drivers_autoprobe", 0)

    def insert():
        if libc.syscall(*arguments):
            raise OSError(ctypes.get_errno(), "finit_module")

    def remove(_=None):
        if os.path.exists("/sys/module/xen_tpmfront"):
            if libc.syscall(176, b"xen_tpmfront", os.O_NONBLOCK):
                raise OSError(ctypes.get_errno(), "delete_module")
        return ""

    remove()
    walk("load", insert, remove, USUAL | {"ENOEXEC", "EINVAL"})
    write("/sys/bus/xen/drivers_autoprobe", 1)
    insert()
    works()


def send():
    """Every allocation and user copy of opening the device, of a command, and of closing it."""
    arm()
    request = bytes.fromhex("80010000000c0000017b0008") if version() == "2.0" else \
        bytes.fromhex("00c10000000e0000004600000008")
    for path in ("/dev/tpm0", "/dev/tpmrm0"):
        if not os.path.exists(path):
            continue

        def command(path=path):
            file = os.open(path, os.O_RDWR)
            try:
                os.write(file, request)
                os.read(file, 4096)
            finally:
                os.close(file)

        walk(f"send {path}", command, lambda _: works() or "", USUAL | {"EINTR"})
    for name, value in (("locality", b"1"), ("cancel", b"1"), ("locality", b"0")):
        path = f"/sys/class/tpm/tpm0/{name}"
        walk(
            f"write {name}",
            lambda path=path, value=value: Opened(path, value)(),
            lambda _: works() or "",
        )


def functions():
    """Every call that the driver makes when it binds fails, the first time, the second, and so
    on."""
    folder = f"{DEBUG}/fail_function"
    for setting, value in {"verbose": 0, "probability": 100, "interval": 1, "times": 0}.items():
        write(f"{folder}/{setting}", value)
    for function in FUNCTIONS:
        set_unbound()
        write(f"{folder}/inject", function)
        # -ENOSPC: nothing else here comes to that.
        write(f"{folder}/{function}/retval", f"{2 ** 64 - errno.ENOSPC:#x}")
        ends = []
        for number in range(1, 50):
            # So many calls pass first.
            write(f"{folder}/space", number)
            write(f"{folder}/times", 1)
            word = "ok"
            try:
                write(f"{DRIVER}/bind", DEVICE)
            except OSError as why:
                word = errno.errorcode[why.errno]
            left = int(read(f"{folder}/times"))
            write(f"{folder}/times", 0)
            state = set_unbound()
            if left:
                assert (word, state) == (
                    "ok",
                    ", a TPM",
                ), f"{function}: nothing failed, and yet: {word}{state}"
                break
            assert word in ("ok", "ENOSPC"), f"{function}, call {number}: {word}"
            ends.append(word + state)
        write(f"{folder}/inject", f"!{function}")
        print(f"{function}: {ends}")
        assert ends, f"{function} is never called"
    # That is a second close of one that is closed already, and may be another device's by then.
    closed = os.system("dmesg | grep 'freeing event channel'") == 0
    assert not closed, "an event channel is closed that is not there"
    set_bound()


def watcher():
    """The task that takes xenstore's watches."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if read(f"/proc/{pid}/comm") == "xenwatch":
                return f"/proc/{pid}/fail-nth"
    raise AssertionError("no xenwatch")


def watch(number):
    """From now on the n-th allocation fails that the driver makes when its backend changes."""
    arm("xen_tpmfront", but=STATE)
    write(watcher(), number)


def watched():
    """How many were missing to that; nothing fails any more."""
    print("left", read(watcher()))
    write(watcher(), 0)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
