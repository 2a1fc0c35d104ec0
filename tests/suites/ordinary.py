# SPDX-License-Identifier: GPL-2.0
"""The daemon's tests as an ordinary user runs them: root of a user namespace with 65,536 ids, to
which no file of the real root's belongs. Run as a program, it is the process in that namespace."""

import os
import re
import shutil
import subprocess
import sys

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# The user, and how many ids /etc/subuid gives to one.
FIRST, COUNT = 1_000_000, 65_536
# What differs for such a user: the ids of vTPMs, and what a sandbox of another user's may do. Test
# programs, by their names, and which of their tests.
PROGRAMS = {
    "xen_vtpmd": ("state::",),
    "swtpm": ("isolation::",),
    "native": ("archive::",),
}


def programs(log):
    """Where Cargo built those programs, by its log."""
    found = {}
    for path in re.findall(r"Running .*\(([^)]*/deps/[^)]*)\)", log):
        name = os.path.basename(path).rpartition("-")[0]
        # The unit tests of the library are called as those of the program are: both are run.
        found.setdefault(name, []).append(os.path.join(TOP, path))
    return {name: found.get(name, []) for name in PROGRAMS}


def inside(script):
    """Runs a script there; returns its code and its output."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        if int(file.read().split()[2]) <= 2 * COUNT:
            # It is an ordinary user who runs all of this.
            done = subprocess.run(
                ["sh", "-c", script],
                cwd=TOP,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            return done.returncode, done.stdout
    process = subprocess.Popen(
        [sys.executable, __file__, script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for line in process.stdout:
        if line.strip() == "ready":
            break
        print(f"    {line.rstrip()}")
    else:
        return process.wait(), "the namespace was not made"
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/{process.pid}/{name}", "w", encoding="ascii") as file:
            file.write(f"0 {FIRST} {COUNT}\n")
    output, _ = process.communicate("go\n")
    return process.returncode, output


def mount(*words):
    """mount(8)."""
    subprocess.run(["mount", *words], check=True)


def main(script):
    """Makes a copy of what the tests need that belongs to that user, in the place of the clone; and
    becomes the user."""
    os.unshare(os.CLONE_NEWNS)
    mount("-t", "tmpfs", "tmpfs", "/mnt")
    parts = TOP.strip("/").split("/")
    copy = "/mnt/" + "/".join(parts)
    shutil.copytree(
        TOP,
        copy,
        symlinks=True,
        ignore=lambda folder, _: {"build", ".git"} if folder == TOP else set(),
    )
    for path in os.environ["XT_COPY"].split(":"):
        os.makedirs(os.path.dirname(copy + path.removeprefix(TOP)), exist_ok=True)
        shutil.copy(path, copy + path.removeprefix(TOP))
    subprocess.run(["chown", "-R", f"{FIRST}:{FIRST}", f"/mnt/{parts[0]}"], check=True)
    mount("--bind", f"/mnt/{parts[0]}", f"/{parts[0]}")
    # The root is that user's, too; of it the tests write to these.
    for path in ("/tmp", "/var/lib/swtpm-localca"):
        was = os.stat(path)
        owner = f"uid={FIRST + was.st_uid},gid={FIRST + was.st_gid},mode={was.st_mode & 0o7777:o}"
        mount("-t", "tmpfs", "-o", owner, "tmpfs", path)
    os.unshare(os.CLONE_NEWUSER)
    print("ready", flush=True)
    sys.stdin.readline()
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    os.unshare(os.CLONE_NEWNS)
    os.chdir(TOP)
    os.execvp("sh", ["sh", "-c", script])


if __name__ == "__main__":
    main(sys.argv[1])
