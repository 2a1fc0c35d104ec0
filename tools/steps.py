# SPDX-License-Identifier: GPL-2.0
"""Paths, and running steps so that a person sees what is done and how long it takes."""

import contextlib
import os
import shutil
import subprocess
import time

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUILD = f"{TOP}/build"
REPORT = f"{BUILD}/report"
LOGS = f"{BUILD}/log"
CACHE = os.environ.get("XT_CACHE", "/nonexistent")
HEARTBEAT = 20
# How many things are done at a time: compilations, and machines of the testbed.
JOBS = int(os.environ.get("JOBS") or len(os.sched_getaffinity(0)))


class StepError(Exception):
    """A step failed; the message is the one line that says why."""


def memory_mb():
    """What the host has of memory for us."""
    with open("/proc/meminfo", encoding="ascii") as file:
        fields = dict(line.split(":") for line in file)
    return int(fields["MemAvailable"].split()[0]) // 1024


def ordinary_user():
    """Whether this root is an ordinary user's, in a namespace of some ids."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        return int(file.read().split()[2]) < 2 ** 32 - 1


def need_space(gib, where, what):
    """Fails before a long step where the disk has not the room for it."""
    os.makedirs(where, exist_ok=True)
    free = shutil.disk_usage(where).free / 2 ** 30
    if free < gib:
        raise StepError(f"{what}: {gib} GiB have to be free under {where}, and {free:.1f} are")


@contextlib.contextmanager
def step(what):
    """Says what is done, and at its end how long it took."""
    start = time.monotonic()
    print(f"==> {what}", flush=True)
    yield
    print(f"    done in {time.monotonic() - start:.0f} s: {what}", flush=True)


def last_line(path):
    """The last line of a log that says something."""
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 4000))
        lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1].strip()[:90] if lines else ""


def logged(command, log, cwd=TOP, env=None):
    """Runs a command with its output in build/log/LOG, and a line now and then; returns its
    code."""
    os.makedirs(LOGS, exist_ok=True)
    path = f"{LOGS}/{log}"
    with open(path, "wb") as file:
        process = subprocess.Popen(command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=file,
                                   stderr=subprocess.STDOUT, env={**os.environ, **(env or {})})
        start = time.monotonic()
        try:
            while True:
                try:
                    return process.wait(HEARTBEAT)
                except subprocess.TimeoutExpired:
                    print(f"    {time.monotonic() - start:4.0f} s  {last_line(path)}", flush=True)
        except BaseException:
            process.kill()
            process.wait()
            raise


def must(command, log, why, cwd=TOP, env=None):
    """Runs a command that has to succeed."""
    code = logged(command, log, cwd, env)
    if code:
        raise StepError(f"{why} (code {code}: {last_line(f'{LOGS}/{log}')}; see build/log/{log})")


def output(*command):
    """The output of a command that has to succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StepError(
            f"{' '.join(command)}: {done.stderr.strip().splitlines()[-1:] or done.returncode}"
        )
    return done.stdout
