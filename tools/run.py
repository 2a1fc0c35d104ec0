# SPDX-License-Identifier: GPL-2.0
"""What `make` runs inside the root for all that is no test: one command, by its name."""

import fcntl
import os
import signal
import subprocess
import sys

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, TOP)

from tools import build  # noqa: E402
from tools.kernels.prepare import prepare  # noqa: E402
from tools.package.deb import build_deb, build_guest_debs  # noqa: E402
from tools.steps import BUILD, StepError, step  # noqa: E402


def build_all(kernels):
    """Builds the module for every kernel, and the backend. Returns the kernels that the module
    builds for; one has to be among them."""
    built = []
    for kernel in kernels:
        try:
            with step(f"building the module for {kernel.release}"):
                build.build_module(kernel)
            built.append(kernel)
        except StepError as why:
            print(f"error: {why}", file=sys.stderr)
    if not built:
        raise StepError("the module builds for no kernel")
    with step("building the backend"):
        build.build_backend()
    return built


def command_build(have):
    """make: all that can be built."""
    built = build_all(have.kernels)
    print(
        f"built: {', '.join(build.module_path(kernel) for kernel in built)}, {build.backend_path()}"
    )
    return 0 if built == have.kernels and not have.failed else 1


def command_deb(have):
    """make deb: the backend's package, and the driver's."""
    with step("building the package of the backend"):
        paths = [build_deb()]
    with step("building the packages of the driver"):
        for kernel in have.kernels:
            build.build_module(kernel)
        paths += build_guest_debs(have.kernels)
    print("\n".join(["built:", *paths]))
    return 0


def command_kdir(have):
    """make kdir: the prepared trees."""
    for kernel in have.kernels:
        print(f"{kernel.release}: KDIR={kernel.build}")
    return 0


def command_shell(_):
    """make shell: a look around."""
    return subprocess.call(["bash", "-i"])


COMMANDS = {
    "build": command_build,
    "deb": command_deb,
    "kdir": command_kdir,
    "shell": command_shell,
}
# These make nothing under build/ that another run could take away.
UNLOCKED = ("kdir", "shell")


def lock_build():
    """Two runs in one clone would take each other's files away."""
    os.makedirs(BUILD, exist_ok=True)
    lock = open(f"{BUILD}/lock", "ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("    another run works in this clone: waiting for it")
        fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def main(commands, unlocked=()):
    """Runs the command that the command line names; what stops it is one line."""
    sys.stdout.reconfigure(line_buffering=True)
    # tools/env/run starts this in the background of a shell, which ignores it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    name = sys.argv[1]
    try:
        if name in unlocked:
            return commands[name](prepare())
        with lock_build():
            return commands[name](prepare())
    except (StepError, OSError) as why:
        print(f"error: {why}", file=sys.stderr)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(COMMANDS, UNLOCKED))
