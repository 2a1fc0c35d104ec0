# SPDX-License-Identifier: GPL-2.0
"""The driver with a seeded bug, and the misbehaving backend: with each bug there is a behaviour
that the driver fails."""

from testbed import hostile_backend, hostile_table, programs
from testbed.machine import BedError
from testbed import mutations
from testbed.report import Failure

SETS = ("deep",)

# By the bug, the behaviour that is to find it. What is not here is not to be seen from a guest's
# processes, or there is another check behind it.
BUGS = {
    "header-not-compared": "header-longer",
    "no-wipe-after-answer": "secret-answered",
    "no-wipe-after-idle": "secret-idle",
    "nonsense-is-idle": "states-4-to-255",
    "offset-from-page": "extra-pages",
    "stale-answer": "slow-64",
    "wedged-page-reused": "silent",
}


def found(trial, behaviour):
    """The behaviour has to find the driver wrong."""
    try:
        seen = trial.face(behaviour)
    except (Failure, BedError) as why:
        return str(why)[:300]
    raise Failure(f"{behaviour.name} does not find it: {seen}")


def run(bed):
    """A guest for each."""
    modules = {
        mutations.name_of(path): mutations.build_module(bed.kernel, path)
        for path in mutations.patches()
        if mutations.name_of(path) in BUGS
    }
    vtpm, known = bed.vtpm("2.0"), hostile_table.behaviours()
    bed.boot(
        [vtpm],
        dom0_memory=1792,
        files={hostile_backend.PROGRAM: programs.hostile_backend_path()},
        guest_files={f"/seeded/{name}.ko": path for name, path in modules.items()},
    )
    trial = hostile_backend.Trial(bed, vtpm)
    trial.serve()
    for name, behaviour in BUGS.items():
        trial.load = f"insmod /seeded/{name}.ko"
        trial.start_guest()
        bed.record(f"{name}: {behaviour}", found, trial, known[behaviour])
        trial.guest.destroy()
