# SPDX-License-Identifier: GPL-2.0
"""make test-deep: what it is made of, and the fair share of it that PART=n/m runs. The shares of
one m are all of it."""

import re
import time

from suites import coverage, guest_package, host, intree, proof, scenarios, series
from tools.arch import TARGET
from tools.steps import StepError

# Minutes on two quiet processors, which the shares are made by; those of a kernel of our own with
# what it takes to build it. A scenario has a third of its time, since it runs beside two others.
# What is not here takes MINUTES_OTHERWISE. `make results` has what the last run took.
MINUTES = {
    "host": 10,
    "proof": 6.6,
    "coverage": 6,
    "mutations": 11,
    "corners": 6,
    "series": 1,
    "debug kernel": 24.9,
    "race kernel": 12,
    "intree kernel": 34.8,
    "hostile_backend_deep": 13,
    "migrate_failures": 5.5,
    "migrate_ssh": 1.7,
    "module_reload": 1.8,
    "bind_unbind_deep": 0.8,
    "hostile_backend_seeded": 3,
    "driver_mutations": 3,
    "package": 1.7,
    "whole_chain": 1.7,
    "debian_guest": 1.7,
    "debian_programs": 1.6,
    "luks_root": 2.4,
    "luks_root_by_systemd": 2.7,
    "create_destroy": 0.8,
    "vcpus_memory_suspend": 0.6,
    "boots_own_kernel_by_pygrub": 0.4,
    "boots_own_kernel": 0.6,
    "hvm": 0.9,
    "driver_domain": 1,
    "power_cut": 1.3,
    "hostile_frontend_deep": 1.3,
    "guest_package": 3.5,
}
MINUTES_OTHERWISE = 0.8
# Suites that have the kernel of some scenarios: it is built but once.
WITH_KERNEL = {"intree": "intree kernel", "series build": "intree kernel"}
# The same tree, and nearly the same objects.
SAME_TREE = {"hmac": "intree", "series": "intree"}


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
    if not scenario.kernel:
        return scenario.name
    return f"{SAME_TREE.get(scenario.kernel, scenario.kernel)} kernel"


def timed(report, name, suite):
    """Runs a suite; how long it took is in the report, for MINUTES."""
    start = time.monotonic()
    suite()
    seconds = time.monotonic() - start
    report.add("deep", f"the time of {name}", "noted", seconds, f"{seconds / 60:.1f} minutes")


def suites_of(report, kernels, newest):
    """All suites, by their names, as functions. What is cross-built is not booted: a kernel for
    each size of pages."""
    if TARGET.foreign:
        sizes = [kernel for kernel in kernels if kernel.plain_series == newest.plain_series]
        return {"series": lambda: [series.run_parts(report, kernel) for kernel in sizes]}
    return {
        "host": lambda: host.run_deep(report),
        "proof": lambda: proof.run(report),
        "coverage": lambda: coverage.run(report),
        "mutations": lambda: proof.run_mutations(report),
        "intree": lambda: intree.run(report, newest),
        "corners": lambda: intree.run_corners(report, newest),
        "guest_package": lambda: guest_package.run_deep(report, kernels),
        "series": lambda: [
            series.run(report, kernel.source) for kernel in kernels if kernel != newest
        ],
        "series build": lambda: series.run_whole(report, newest),
    }


def units_of(suites, chosen):
    """What is dealt out, with its minutes."""
    names = [*(WITH_KERNEL.get(name, name) for name in suites), *map(unit, chosen)]
    return {name: MINUTES.get(name, MINUTES_OTHERWISE) for name in names}


def run(report, kernels, xen, named, part):
    """All of it, a part, or the scenarios that are named."""
    newest, chosen = scenarios.booted(kernels)[0], scenarios.selected(named or "deep")
    suites = {} if named else suites_of(report, kernels, newest)
    units = units_of(suites, chosen)
    mine = share(units, part)
    minutes = sum(units[name] for name in mine)
    print(f"    to do, in about {minutes:.0f} minutes: {', '.join(sorted(mine))}", flush=True)
    for name, suite in suites.items():
        if WITH_KERNEL.get(name, name) in mine:
            timed(report, name, suite)
    # The longest begin first: a run that ends with one of them has a processor that rests.
    ours = [one for one in chosen if unit(one) in mine]
    ours.sort(key=lambda one: units[unit(one)], reverse=True)
    if ours:
        timed(report, "scenarios", lambda: scenarios.run(report, kernels, xen, ours))
