# SPDX-License-Identifier: GPL-2.0
"""An swtpm that somebody took over takes what it can get of memory, tasks and processor time: its
cgroup stops it, and another guest's TPM works on. The native tests of this name have what resource
limits and the sandbox stop."""

from testbed import ledger, programs, wait
from testbed.toolstack import must_be

SETS = ("deep",)

CONFIG = "[limits]\nmemory = 64\ntasks = 16\ncpu-percent = 30\n"
STAND_IN, REAL = "/usr/lib/hostile-swtpm", "/usr/lib/real"
STATE = "/var/lib/xen-vtpmd"
# What swtpm does, and where the kernel says that it was stopped. Of the tasks it has half, so that
# the worker can go on. The group of a vTPM that has died is gone, the kernel's message is not.
TAKES = {
    "processor": "grep -q '^nr_throttled [1-9]' $group/cpu.stat",
    "tasks": "n=$(cat $group/pids.current); [ $n -ge 9 ] && [ $n -lt 16 ]",
    "heap": "dmesg | grep -q 'Memory cgroup out of memory: Killed process .*swtpm'",
}


def is_stopped(bed, guests, vtpm, takes):
    """It takes, is stopped, and goes; the other guest's TPM works meanwhile."""
    victim, neighbour = guests
    domid = bed.machine.must(f"xl domid {victim.name}").strip()
    bed.machine.must(f"printf {takes} >{STATE}/{vtpm.uuid}/behaviour")
    bed.machine.must(f"xl vtpm-attach {victim.name} uuid={vtpm.uuid} backend=0", 60)
    script = f"group=$(echo /sys/fs/cgroup/xen-vtpmd/vtpm-{domid}-*); {TAKES[takes]}"
    says = "cd /sys/fs/cgroup/xen-vtpmd; grep . vtpm-*/cpu.stat vtpm-*/*.events; dmesg | tail"
    wait.until(lambda: bed.machine.run(script)[0] == 0, 60,
               lambda: f"{takes}: not stopped: {bed.machine.run(says)[1]}", pause=0.5)
    ledger.progress(neighbour)
    bed.machine.must(f"xl vtpm-detach {victim.name} {vtpm.uuid}", 60)
    # No process stays. The directory may, for the next vTPM of that name.
    procs = f"/sys/fs/cgroup/xen-vtpmd/vtpm-{domid}-*/cgroup.procs"
    must_be(bed.machine, f"cat {procs} 2>/dev/null | wc -l", "0", 30)
    ledger.progress(neighbour)


def run(bed):
    """One guest's swtpm takes one thing after the other, beside a guest that works."""
    good, bad = bed.vtpm("2.0"), bed.vtpm("2.0")
    files = {STAND_IN: programs.build_hostile_swtpm()}
    bed.boot([good, bad], config=CONFIG, files=files)
    bed.machine.must(
        f"mkdir -p {REAL}; mv /usr/bin/swtpm {REAL}/swtpm; mv {STAND_IN} /usr/bin/swtpm"
    )
    with bed.guest("works", [good]) as neighbour, bed.guest("victim", []) as victim:
        bed.checks(neighbour, "module_loads", "ledger_counter")
        ledger.start(neighbour, "closed", 0.1)
        ledger.says(neighbour, "working")
        for takes in TAKES:
            bed.record(f"takes all it can get: {takes}", is_stopped, bed, (victim, neighbour),
                       bad, takes)
        bed.record("nothing is lost", ledger.ends_well, (neighbour,))
