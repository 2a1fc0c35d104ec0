# SPDX-License-Identifier: GPL-2.0
"""What a guest does and sees while its backend misbehaves: commands, binding, and whether all is
well after."""

import errno
import os
import re
import select
import signal
import struct
import sys
import time
import traceback

from tpm import SLOWNESS, version

DRIVER = "/sys/bus/xen/drivers/vtpm"
RANDOM = "/sys/class/misc/hw_random"
with open("/bed/complaints", encoding="ascii") as patterns:
    SPLAT = re.compile("|".join(line.rstrip("\n") for line in patterns if not line.startswith("#")))
# A command that has not ended by then is cancelled; then it has the driver's 5 s and some more, and
# after SIGKILL so long.
PATIENCE, GRACE, LAST = 2.0 * SLOWNESS, 5 + 3.0 * SLOWNESS, 5 + 5.0 * SLOWNESS
# How long a connection may take to come back, and a bind of the driver.
RETURN, BOUND = 20.0 * SLOWNESS, 30.0 * SLOWNESS
# Where orders come from, where it is said that one is done, and what came of it.
ORDERS, DONE, ANSWER = "/run/hostile.orders", "/run/hostile.done", "/run/hostile.answer"
# What the hostile backend makes up, and a secret that is long enough to be no chance.
MADE_UP, SECRET = 0xbb, b"a secret of this guest. "


def get_random(body=b"", count=8):
    """GetRandom of 8 bytes; with more behind it, it is no command that a TPM takes."""
    if version() == "1.2":
        return struct.pack(">HIII", 0xc1, 14 + len(body), 0x46, count) + body
    return struct.pack(">HIIH", 0x8001, 12 + len(body), 0x17b, count) + body


def judge(answer):
    """A word for an answer to GetRandom of 8 bytes."""
    _, length, code = struct.unpack(">HII", answer[:10])
    if length != len(answer):
        return "torn"
    if code:
        return "code"
    form, at = (">I", 14) if version() == "1.2" else (">H", 12)
    if len(answer) != at + 8 or struct.unpack(form, answer[10:at])[0] != 8:
        return "more"
    return "made-up" if answer[at:] == bytes([MADE_UP]) * 8 else "ok"


def transmit(request, tpm=None):
    """Sends a command, through an open device if there is one; returns the word for what came of
    it."""
    try:
        tpm = os.open("/dev/tpm0", os.O_RDWR) if tpm is None else tpm
        os.write(tpm, request)
        return judge(os.read(tpm, 4096))
    except OSError as why:
        return errno.errorcode.get(why.errno, str(why.errno))


class Child:
    """A process that does something and says a word about it."""

    def __init__(self, function, *arguments):
        self._end, end = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.write(end, function(*arguments).encode())
            os._exit(0)
        os.close(end)

    def word(self, seconds):
        """The word, once it is said, "" if the process is gone without; None if neither in that
        time."""
        if not select.select([self._end], [], [], seconds)[0]:
            return None
        word = os.read(self._end, 100).decode()
        os.close(self._end)
        os.waitpid(self.pid, 0)
        return word

    def kill(self):
        """SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)


def cancel():
    """Writes to the attribute `cancel`, which with the stock driver waits for the command's end."""
    try:
        with open("/sys/class/tpm/tpm0/cancel", "w", encoding="ascii") as file:
            file.write("1")
    except OSError as why:
        return errno.errorcode[why.errno]
    return "ok"


def one(request, patience):
    """One command: HOW:WHAT."""
    child = Child(transmit, request)
    word = child.word(patience)
    if word is not None:
        return f"self:{word}"
    helper = Child(cancel)
    word = child.word(GRACE)
    if word is None:
        child.kill()
        begin = time.monotonic()
        word = child.word(LAST)
        helper.kill()
        return f"stuck:{LAST:.0f}s" if word is None else f"kill:{time.monotonic() - begin:.0f}s"
    helper.word(1)
    return f"cancel:{word}"


def tries(count, patience=PATIENCE, body=b""):
    """So many commands, one after the other; all but the first wait for a connection that is being
    replaced."""
    found = []
    for number in range(int(count)):
        until = time.monotonic() + (RETURN if number else 0)
        while True:
            found.append(one(get_random(body), float(patience)))
            if found[-1] not in ("self:EPIPE", "self:ESHUTDOWN") or time.monotonic() > until:
                break
            if number:
                found.pop()
                time.sleep(0.1)
            else:
                break
    print("tries", *found)


def timed(count, patience):
    """So many commands, one after the other, and how long each takes."""
    found = []
    for _ in range(int(count)):
        begin = time.monotonic()
        found += [one(get_random(), float(patience)), f"{time.monotonic() - begin:.1f}"]
    print("timed", *found)


def cancels(seconds):
    """Cancels each command as soon as it has begun; says how many there were, and how many lines
    of the kernel's log are of them."""
    end, count = time.monotonic() + float(seconds), 0
    while time.monotonic() < end:
        child = Child(transmit, get_random())
        while (word := child.word(0.05)) is None and time.monotonic() < end + LAST:
            cancel()
        count += word is not None
    os.system("dmesg | grep -c 'tpm0.*error' >/run/lines")
    with open("/run/lines", encoding="ascii") as file:
        print("cancels", count, file.read().strip())


def stale():
    """A command whose response is as long as that of TPM_GetTicks or TPM2_ReadClock, and is
    cancelled; what the next command comes to, and what the driver says of the connection in
    between."""
    first = one(get_random(count=42 - 14 if version() == "1.2" else 35 - 12), PATIENCE)
    until = time.monotonic() + RETURN
    while (word := one(get_random(), PATIENCE)) != "self:ok" and time.monotonic() < until:
        time.sleep(0.1)
    print("stale", first, word, flush=True)
    os.system("dmesg")


def pcrs():
    """How many PCRs of a TPM 1.2 sysfs shows, or the errno."""
    def read():
        try:
            with open("/sys/class/tpm/tpm0/pcrs", encoding="ascii") as file:
                return str(len(file.readlines()))
        except OSError as why:
            return errno.errorcode[why.errno]

    print("pcrs", Child(read).word(60.0 * SLOWNESS) or "EDEAD")


def log():
    """Whether securityfs shows a log of the boot, and whether the driver says that it refuses
    one."""
    if not os.path.ismount("/sys/kernel/security"):
        os.system("mount -t securityfs securityfs /sys/kernel/security")
    path = "/sys/kernel/security/tpm0/binary_bios_measurements"
    found = "none"
    if os.path.exists(path):
        with open(path, "rb") as file:
            found = "log" if file.read() else "empty"
    said = os.system("dmesg | grep -q 'event log is refused'") == 0
    print("log", found, "said" if said else "silent")


def secret():
    """A command that is full of a secret."""
    tries(1, PATIENCE, SECRET * 160)


def killed():
    """A waiting process goes when it is killed."""
    child = Child(transmit, get_random())
    if child.word(1) is not None:
        print("killed ended")
        return
    begin = time.monotonic()
    child.kill()
    print("killed", "stuck" if child.word(LAST) is None else f"{time.monotonic() - begin:.1f}")


def write(path, text):
    """Writes to a file of sysfs: ok, or the errno."""
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(text)
    except OSError as why:
        return errno.errorcode[why.errno]
    return "ok"


def no_reader():
    """The kernel's own reader of random numbers would be one more who waits for the TPM."""
    if os.path.exists(f"{RANDOM}/rng_current"):
        Child(write, f"{RANDOM}/rng_current", "none").word(LAST)


def quiet():
    """The same, and no old lines in the kernel's log."""
    no_reader()
    os.system("dmesg -c >>/run/dmesg")
    print("quiet")


def unbind(seconds=LAST):
    """Takes the driver from the device."""
    begin = time.monotonic()
    word = Child(write, f"{DRIVER}/unbind", "vtpm-0").word(float(seconds))
    print(
        "unbind", "hangs" if word is None else word, f"{time.monotonic() - begin:.1f}", flush=True
    )


def bind(seconds=BOUND):
    """Binds the driver; says how that ended, and whether a TPM is there."""
    begin = time.monotonic()
    word = Child(write, f"{DRIVER}/bind", "vtpm-0").word(float(seconds))
    no_reader()
    there = "device" if os.listdir("/sys/class/tpm") else "none"
    print(
        "bind",
        "hangs" if word is None else there,
        word,
        f"{time.monotonic() - begin:.1f}",
        flush=True,
    )
    os.system("dmesg | grep -i -e vtpm -e tpm | tail -n 1")


def works(seconds):
    """Whether a command is answered within that time, stretched; returns the seconds that it
    took."""
    begin = time.monotonic()
    while time.monotonic() < begin + seconds * SLOWNESS:
        # A TPM 2.0 that the core takes for one in failure mode has no tpmrm0.
        whole = version() == "1.2" or os.path.exists("/dev/tpmrm0")
        if os.path.exists("/dev/tpm0") and whole and one(get_random(), 1.5 * PATIENCE) == "self:ok":
            return time.monotonic() - begin
        time.sleep(0.2)
    return None


def well(seconds, rebind):
    """With an honest backend again: the TPM works, by itself or with the driver bound anew; no
    splat."""
    taken = works(float(seconds))
    if taken is not None:
        print(f"well self {taken:.1f}", flush=True)
    elif rebind == "0":
        print("well no", flush=True)
    else:
        unbind()
        bind()
        taken = works(float(seconds))
        print("well", "no" if taken is None else f"rebound {taken:.1f}", flush=True)
    os.system("dmesg -c >/run/dmesg.new; cat /run/dmesg.new >>/run/dmesg")
    with open("/run/dmesg.new", encoding="utf-8", errors="replace") as file:
        lines = file.read().splitlines()
    for line in lines:
        if SPLAT.search(line):
            print("splat", line)


def hwrng():
    """The kernel's own reader of random numbers gets 32 bytes, or an error."""
    def read():
        try:
            return str(len(os.read(os.open("/dev/hwrng", os.O_RDONLY), 32)))
        except OSError as why:
            return errno.errorcode[why.errno]

    write(f"{RANDOM}/rng_current", "tpm-rng-0")
    word = Child(read).word(LAST)
    no_reader()
    print("hwrng", word or "hangs")


def watch(seconds):
    """How long it takes until the guest has noticed a key that the toolstack presses."""
    begin = time.monotonic()
    while os.system("dmesg | grep -q 'sysrq: HELP'"):
        if time.monotonic() > begin + float(seconds):
            print("watch never")
            return
        time.sleep(0.3)
    print(f"watch {time.monotonic() - begin:.1f}")


def interrupts():
    """How many events the driver has taken."""
    with open("/proc/interrupts", encoding="ascii") as file:
        return sum(
            int(line.split()[1])
            for line in file
            if re.search(r"\b(vtpm(-\d+)?|tpmif)$", line.strip())
        )


def work(seconds):
    """How much of something else gets done."""
    before, count, end = interrupts(), 0, time.monotonic() + float(seconds)
    while time.monotonic() < end:
        for _ in range(1000):
            pass
        count += 1
    print("work", count, interrupts() - before)


def serve():
    """Does what is written to the FIFO, one order after the other, each in a process of its own:
    that costs no start of Python, which takes seconds on a kernel that looks for mistakes."""
    os.mkfifo(ORDERS)
    os.mkfifo(DONE)
    while True:
        with open(ORDERS, encoding="ascii") as file:
            words = file.read().split()
        if os.fork() == 0:
            answer = os.open(ANSWER, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(answer, 1)
            os.dup2(answer, 2)
            sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
            try:
                globals()[words[0]](*words[1:])
            except Exception:  # pylint: disable=broad-except
                traceback.print_exc(file=sys.stdout)
            sys.stdout.flush()
            os._exit(0)
        os.wait()
        with open(DONE, "w", encoding="ascii") as file:
            file.write("done\n")


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
