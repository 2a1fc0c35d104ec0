# SPDX-License-Identifier: GPL-2.0
"""What a command costs, counted in instructions, beside the bare exchange and beside the C
driver."""

from statistics import median

from testbed import bench, programs
from testbed.report import Failure

SETS = ("test",)

ROUNDS = 200
# The goals are 1.10 and 17 (Documentation/performance.rst): these are what nobody may fall back to.
MOST_OF_FLOOR = 1.2
LEAST_SPEEDUP = 12


def cost(measured):
    """The ratio to the bare exchange, and to the C driver."""
    found = {
        name: median(samples) for name, samples in measured.times(bench.SHORTEST, ROUNDS).items()
    }
    ratio, speedup = found["rust"] / found["floor"], found["c"] / found["rust"]
    numbers = (
        f"{found['rust']:.0f} us, {ratio:.2f} of the floor, {speedup:.1f} times as fast as the C"
        " driver: "
        + ", ".join(f"{name} {value:.1f}" for name, value in found.items())
    )
    if ratio > MOST_OF_FLOOR or speedup < LEAST_SPEEDUP:
        raise Failure(numbers)
    return numbers


def run(bed):
    """One guest with four vTPMs of a backend that answers at once."""
    programs.build_bench_modules(bed.kernel)
    bed.boot([], icount=1, **bench.files())
    bed.stop_backend()
    bed.machine.must(bench.START_NULL)
    measured = bench.Measured(bed, "null", [bed.vtpm() for _ in bench.DRIVERS])
    measured.start()
    measured.bind()
    bed.record("a command that is answered at once", cost, measured)
    measured.guest.shutdown()
