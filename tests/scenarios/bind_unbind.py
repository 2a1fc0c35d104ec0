# SPDX-License-Identifier: GPL-2.0
"""The driver is unbound, unloaded and bound again, whatever the backend does meanwhile; and the
stock C driver takes its place and gives it back."""

import time

from testbed import guest_resources, programs, wait
from testbed.hostile_backend import PROGRAM, Trial
from testbed.lacking import lacking
from testbed.guest_scripts import WORKS, in_guest
from testbed.report import Failure, Noted

SETS = ("compare",)

# How long it may take to unbind: the grace of a cancel, and a little for a busy host.
LIMIT = 10.0
# How long we look on: the C driver waits for a silent backend for as long as the core lets it.
PATIENCE = 150
END = """
kill $(pidof xen-hostile-backend)
while pidof xen-hostile-backend; do sleep 0.1; done
xenstore-write /local/domain/0/backend/vtpm/$(xl domid victim)/0/state 1
"""
SERVE = """
pidof xen-hostile-backend && exit
xen-hostile-backend serve /run/hostile.tpm >>/host/hostile-backend.log 2>&1 &
for i in $(seq 50); do
	xen-hostile-backend tell status >/dev/null 2>&1 && exit
	sleep 0.1
done
exit 1
"""


def missing(trial):
    """The driver offers a channel, and there is no backend, but for what the toolstack writes for
    it."""
    trial.python("unbind")
    trial.machine.must(END)
    trial.python("bind", 90)


def bound_to(behaviour):
    """The driver is bound while the backend does this."""
    def reach(trial):
        trial.python("unbind")
        trial.tell(f"behave {behaviour}")
        trial.python("bind", 90)
    return reach


def silent(trial):
    """No command is answered from now on."""
    trial.tell("behave unbind-silent")


def running(trial):
    """A command runs that gets no answer."""
    trial.tell("behave unbind-silent")
    in_guest(
        trial.guest,
        "python /bed/lifecycle.py running; wait_for 10 grep -q running /run/running; sleep 1",
    )


def wedged(trial):
    """The backend has not even answered a cancel, nor does it answer Closing."""
    trial.tell("behave unbind-dead")
    trial.python("tries 1")


STATES = {
    "missing": missing,
    "never connects": bound_to("never-connects"),
    "closing": bound_to("closing-at-once"),
    "silent": silent,
    "in the midst of a command": running,
    "wedged": wedged,
}
# The others are reached slowly, or were never left slowly.
QUICK = ("silent", "wedged")
# Sixteen times unbound and bound, and unbound and unloaded in every state that there is.
VARIANTS = {"deep": {"sets": ("deep",), "count": 16, "states": tuple(STATES)}}


def honest(trial):
    """There is a backend, and it is in order."""
    trial.machine.must(SERVE)
    trial.tell("behave honest")


def leaves(trial, reach):
    """Unbound and unloaded in this state, within the limit; loaded again it works, with an honest
    backend."""
    try:
        reach(trial)
        told = []
        for words in (f"hostile.py unbind {PATIENCE}", "lifecycle.py rmmod 30"):
            _, word, seconds = in_guest(trial.guest, f"python /bed/{words}", PATIENCE + 30).split()
            told.append(f"{words.split()[1]} {word} after {seconds} s")
            if word not in ("ok", "0") or float(seconds) > wait.stretch(LIMIT):
                raise Failure(", ".join(told))
        honest(trial)
        in_guest(
            trial.guest,
            "load_driver; wait_for 30 test -c /dev/tpm0; python /bed/hostile.py quiet; "
            "python /bed/tpm.py works",
        )
        return ", ".join(told)
    except Failure:
        # The next state is to have a chance.
        honest(trial)
        trial.guest.destroy()
        trial.start_guest()
        raise


def turns(bed, guest, count):
    """Unbound and bound so many times: it is tpm0, and works, each time."""
    start = time.monotonic()
    in_guest(guest, f"for n in $(seq {count}); do echo vtpm-0 >/sys/bus/xen/drivers/vtpm/unbind; "
                    "[ -z \"$(ls /sys/class/tpm)\" ] || fail \"$n: still there\"; "
                    "echo vtpm-0 >/sys/bus/xen/drivers/vtpm/bind; wait_for 30 test -c /dev/tpm0; "
                    f"{WORKS} || fail \"$n: it does not work\"; done", 60 + 10 * count)
    return f"{count} in {time.monotonic() - start:.0f} s"


def other_driver(guest):
    """Ours goes, the C driver takes the device, gives it back, and the TPM has gone on: both see
    the same PCR."""
    # A device that is there when it is loaded the C driver may lose (race T2): then it is loaded
    # once more. One that it always loses is its own fault.
    said = in_guest(
        guest,
        """
there() { for i in $(seq 100); do [ -c /dev/tpm0 ] && return; sleep 0.1; done; return 1; }
gone() {
	for bound in /sys/bus/xen/drivers/vtpm/vtpm-*; do
		echo ${bound##*/} >/sys/bus/xen/drivers/vtpm/unbind
	done
	rmmod xen_tpmfront
}
python /bed/held.py extend >before
gone
for try in 1 2 3 4 5; do insmod $stock; there && break; gone; done
if [ ! -c /dev/tpm0 ]; then
	modprobe xen-tpmfront
	there
	echo "the C driver lost the device $try times"
	exit
fi
like "the taint of the C driver" "$(cat /sys/module/xen_tpmfront/taint)" ''
python /bed/held.py pcr $(cat before) >/dev/null
python /bed/held.py extend >between
gone
modprobe xen-tpmfront
there
like "the taint of ours" "$(cat /sys/module/xen_tpmfront/taint)" '[OE]+'
python /bed/held.py pcr $(cat between) >/dev/null
python /bed/held.py extend >/dev/null
echo "the C driver had it after $try tries"
""",
        120,
    )
    if "lost the device" in said:
        raise Noted(said)
    return said


def run(bed, count=5, states=QUICK):
    """First with the real backend, then with one that is told what to do."""
    version = "1.2" if bed.driver == "c" else "2.0"
    vtpms = [bed.vtpm(version), bed.vtpm(version)]
    bed.boot(vtpms, files={PROGRAM: programs.hostile_backend_path()})
    with bed.guest("bindings", vtpms[:1]) as guest:
        bed.checks(guest, "module_loads")
        bed.record("unbound and bound once", turns, bed, guest, 1)
        before = guest_resources.take(guest)
        bed.record(f"{count} times unbound and bound", turns, bed, guest, count)
        bed.record("nothing is left of it", lambda: guest_resources.same(before, guest))
        if not lacking("stock driver"):
            bed.record("the C driver in between", other_driver, guest)
    trial = Trial(bed, vtpms[1])
    trial.start()
    before = guest_resources.take(trial.guest)
    for name in states:
        bed.record(f"unbind and rmmod: {name}", leaves, trial, STATES[name])
    bed.record("nothing is left", lambda: guest_resources.same(before, trial.guest))
    bed.checks(trial.guest, *bed.last_checks())
    trial.guest.shutdown()
