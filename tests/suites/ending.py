# SPDX-License-Identifier: GPL-2.0
"""A run that is ended from outside ends with all that it has started, however it is ended; and what
ends in the root is reaped."""

import glob
import os
import signal
import subprocess

from testbed import wait
from testbed.report import Failure
from tools.steps import BUILD, CACHE, TOP

RULES = f"{BUILD}/ending.mk"
# Leaves a process behind, which ends, and prints what is a zombie then.
ORPHAN = """
import glob, subprocess, time
subprocess.run(["sh", "-c", "sleep 0.1 &"], check=True)
time.sleep(1)
for path in glob.glob("/proc/[0-9]*/stat"):
    text = open(path).read()
    if text.rpartition(")")[2].split()[0] == "Z":
        print(text)
"""


def sleepers(mark):
    """The processes that sleep for so long."""
    found = []
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            with open(path, "rb") as file:
                if file.read() == f"sleep\0{mark}\0".encode():
                    found.append(path)
        except OSError:
            # It has ended meanwhile.
            pass
    return found


def environment():
    """For a run within this one."""
    return {**os.environ, "XDG_CACHE_HOME": os.path.dirname(CACHE), "COLD": ""}


def ends(command, number):
    """A signal to the command ends what it has started in the root."""
    # Nobody else sleeps for so long.
    mark = str(100_000_000 + os.getpid())
    with open(RULES, "w", encoding="ascii") as file:
        file.write(f"ends:\n\t@$(enter) sleep {mark}\n")
    process = subprocess.Popen(
        command.format(rules=RULES, mark=mark).split(), cwd=TOP, env=environment(),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait.until(
            lambda: sleepers(mark) or process.poll() is not None,
            60,
            "nothing is started",
            pause=0.1,
        )
        if process.poll() is not None:
            raise Failure(f"it did not start: code {process.returncode}")
        process.send_signal(number)
        wait.until(
            lambda: not sleepers(mark), 10, f"what {command.split()[0]} had started goes on"
        )
    finally:
        process.kill()
        process.wait()
        for path in sleepers(mark):
            os.kill(int(path.split("/")[2]), signal.SIGKILL)


def reaps():
    """The first process in the root reaps those whose parents have ended."""
    done = subprocess.run(["tools/env/run", "python3", "-c", ORPHAN], cwd=TOP, timeout=60,
                          env=environment(), capture_output=True, text=True, check=True)
    if done.stdout:
        raise Failure(done.stdout)


def run(report):
    """Runs the suite."""
    make = "make -f Makefile -f {rules} ends"
    for name, command, number in (
        ("SIGTERM to make", make, signal.SIGTERM),
        ("SIGKILL to make", make, signal.SIGKILL),
        ("SIGTERM to tools/env/run", "tools/env/run sleep {mark}", signal.SIGTERM),
    ):
        report.check("ending", f"{name} ends everything", ends, command, number)
    report.check("ending", "orphans are reaped", reaps)
