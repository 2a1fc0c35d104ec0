# SPDX-License-Identifier: GPL-2.0
"""make test-deep: what it is made of, and the fair share of it that PART=n/m runs. The shares of
one m are all of it."""

import re

from suites import coverage, host, intree, proof, scenarios, series
from tools.steps import StepError

# Minutes on two quiet processors, which the shares are made by; each scenario beside two others.
# What is not here takes MINUTES_OTHERWISE.
MINUTES = {
    "host": 10,
    "proof": 25,
    "coverage": 5,
    "mutations": 10,
    "intree": 20,
    "corners": 15,
    "series": 15,
    "series build": 30,
    # With what it takes to build the kernel.
    "debug kernel": 60,
    "race kernel": 45,
    "intree kernel": 25,
    "series kernel": 20,
    "hostile_backend_deep": 20,
    "random_lifecycle_deep": 15,
    "kill_daemon_50": 10,
    "hotplug_deep": 6,
    "hostile_backend_seeded": 5,
    "driver_mutations": 10,
    "save_restore_20": 5,
    "module_reload_deep": 6,
    "package": 5,
}
MINUTES_OTHERWISE = 2


def share(units, part):
    """The names of what PART=n/m runs, of `units`: the longest first, each to the part that has
    least so far."""
    if not part:
        return set(units)
    match = re.fullmatch(r"(\d+)/(\d+)", part)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise StepError(f"PART={part}: it has to be like 2/6, the second of six parts")
    number, count = int(match[1]), int(match[2])
    loads, chosen = [0] * count, [set() for _ in range(count)]
    for name in sorted(units, key=lambda name: (-units[name], name)):
        least = loads.index(min(loads))
        loads[least] += units[name]
        chosen[least].add(name)
    return chosen[number - 1]


def unit(scenario):
    """What a scenario is dealt out with: others with the same kernel of our own, which is built but
    once."""
    return f"{scenario.kernel} kernel" if scenario.kernel else scenario.name


def run(report, kernels, xen, named, part):
    """All of it, a part, or the scenarios that are named."""
    newest, chosen = scenarios.booted(kernels)[0], scenarios.selected(named or "deep")
    suites = {
        "host": lambda: host.run_deep(report),
        "proof": lambda: proof.run(report),
        "coverage": lambda: coverage.run(report),
        "mutations": lambda: proof.run_mutations(report),
        "intree": lambda: intree.run(report, newest),
        "corners": lambda: intree.run_corners(report, newest),
        "series": lambda: [
            series.run_other(report, kernel) for kernel in kernels if kernel != newest
        ],
        "series build": lambda: series.run_whole(report, newest),
    }
    if named:
        suites.clear()
    units = {name: MINUTES.get(name, MINUTES_OTHERWISE) for name in [*suites, *map(unit, chosen)]}
    mine = share(units, part)
    print(f"    to do: {', '.join(sorted(mine))}", flush=True)
    for name, suite in suites.items():
        if name in mine:
            suite()
    if ours := [one for one in chosen if unit(one) in mine]:
        scenarios.run(report, kernels, xen, ours)
