# SPDX-License-Identifier: GPL-2.0
"""The driver with a seeded bug: the check that its patch names fails, and those before that do
not."""

import contextlib

from testbed import mutations
from testbed.machine import BedError
from testbed.report import Failure
from tools.steps import StepError

SETS = ("deep",)

STOPPED = {"stop swtpm": "swtpm", "stop the backend": "xen-vtpmd"}


def act(bed, guest, word):
    """A step before the check that has to fail: one of mutations.STEPS in dom0, or a check that
    passes."""
    if word in STOPPED:
        bed.machine.must(f"kill -STOP $(pidof {STOPPED[word]})")
    elif word == "go on":
        bed.machine.must(f"kill -CONT $(pidof {' '.join(STOPPED.values())})")
    elif word == "end the backend":
        bed.stop_backend()
    elif word == "start the backend":
        bed.start_backend()
    else:
        done = guest.check(word, 120)
        if done.code:
            raise Failure(
                f"{word}, which is to pass, ended with {done.code}: {done.output[-1000:]}"
            )


def found(bed, guest, words):
    """The last of these checks fails, or the guest dies of it."""
    *before, last = words
    for word in before:
        act(bed, guest, word)
    try:
        done = guest.check(last, 120)
    except BedError as why:
        return f"{last}: {why}"[:300]
    if done.code in (0, 77):
        raise Failure(f"{last} does not find it: {done.output[-1000:]}")
    return f"{last}: {(done.output.strip().splitlines() or ['no word'])[-1]}"[:300]


def well_again(bed, guest):
    """The next one finds dom0 as this one did."""
    bed.machine.run("kill -CONT $(pidof swtpm xen-vtpmd)")
    with contextlib.suppress(BedError):
        guest.destroy()
    if bed.machine.run("pidof xen-vtpmd")[0]:
        bed.start_backend()


def is_built(bed, path, bugs):
    """The driver with the bug builds, unless it is that which finds the bug."""
    name = mutations.name_of(path)
    fails = mutations.found_by(path) == [mutations.BUILD_FAILS]
    try:
        bugs[name] = path, mutations.build_module(bed.kernel, path)
    except StepError as why:
        if not fails:
            raise
        return str(why)[:300]
    if fails:
        del bugs[name]
        raise Failure("it builds")
    return ""


def run(bed):
    """A guest for each, with the same TPM."""
    bugs = {}
    for path in mutations.patches("driver"):
        bed.record(f"the build of {mutations.name_of(path)}", is_built, bed, path, bugs)
    vtpm = bed.vtpm("2.0")
    bed.boot([vtpm], config='on-death = "restart"',
             guest_files={f"/seeded/{name}.ko": module for name, (_, module) in bugs.items()})
    for name, (path, _) in bugs.items():
        guest = bed.new_guest(
            "mutant", [vtpm], options=f"bed.driver=rust bed.tpms=2.0 bed.module=/seeded/{name}.ko"
        )
        try:
            guest.start()
            bed.record(
                f"{name}: {mutations.says(path)}",
                found,
                bed,
                guest,
                ["module_loads", *mutations.found_by(path)],
            )
        finally:
            well_again(bed, guest)
