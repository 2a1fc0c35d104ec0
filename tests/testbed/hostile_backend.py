# SPDX-License-Identifier: GPL-2.0
"""A guest and a backend that misbehaves, one named way after the other; what came of it, as a
table."""

import os
import re
import threading

from testbed import programs, wait
from testbed.hostile_table import (
    DEADLINE, FIRST, LINES, ONE_VERSION, OTHER_TPM, PCRS, PROBE, PROMPT, REBOUND, RECONNECTS,
    REST, SAME_CONNECTION, SHORT, SPEED, SPELL, SPLAT, UNBIND, as_expected, behaviours,
    write_table)
from testbed.machine import BedError
from testbed.report import Failure, Noted

PROGRAM = "/usr/sbin/xen-hostile-backend"
SECRET = "a secret of this guest."
FILE = "/run/hostile.file"
# What the storm is measured against: a backend that only uses its processor; how often, and how
# long the storm lasts in all, in seconds.
CONTROL, TURNS, STORM = "spin", 3, 30

# The guest's processes that do one thing: not the one that serves orders.
OTHERS = "old() { for p in $(pidof python3); do grep -q serve /proc/$p/cmdline || echo $p; done; }"
# Scenarios run side by side, and have one table.
TABLE = threading.Lock()

START = """
swtpm socket {version} --tpmstate dir=/var/lib/xen-vtpmd/{uuid} \\
	--server type=unixio,path=/run/hostile.tpm --ctrl type=unixio,path=/run/hostile.control \\
	--flags not-need-init,startup-clear >/host/hostile-swtpm.log 2>&1 &
until [ -S /run/hostile.tpm ]; do sleep 0.1; done
xen-hostile-backend serve /run/hostile.tpm >/host/hostile-backend.log 2>&1 &
until grep -q ready /host/hostile-backend.log; do kill -0 $! || exit 1; sleep 0.1; done
"""


class Trial:
    """One guest with one vTPM, whose backend is told how to behave."""

    def __init__(self, bed, vtpm, attached=True):
        self.bed, self.vtpm, self.machine = bed, vtpm, bed.machine
        self.c_driver = bed.driver == "c"
        # The C driver can lose a device that is there when it is loaded (race T2): it gets it
        # later.
        options = f"bed.driver={bed.driver} bed.tpms={vtpm.version}"
        vtpms = [vtpm] if attached and not self.c_driver else []
        self.guest = bed.new_guest("victim", vtpms, memory=400, options=options)
        self.load = "load_driver"
        self.rows, self.ports, self.seen = {}, None, 0

    def start(self):
        """Puts the hostile backend into the daemon's place, and starts the guest."""
        self.serve()
        self.start_guest()

    def serve(self):
        """Puts the hostile backend into the daemon's place."""
        if self.machine.run("pidof xen-vtpmd")[0] == 0:
            self.bed.stop_backend()
        version = "--tpm2" if self.vtpm.version == "2.0" else ""
        self.machine.must(START.format(version=version, uuid=self.vtpm.uuid))

    def stop(self):
        """Ends the hostile backend, its swtpm and the guest, for another trial on the machine."""
        self.machine.run(
            "xl destroy victim; kill $(pidof xen-hostile-backend) $(pidof swtpm); "
            "while pidof xen-hostile-backend swtpm; do sleep 0.1; done; rm -f /run/hostile.*",
            60,
        )

    def start_guest(self):
        """Starts the guest, with an honest backend."""
        self.tell("behave honest")
        self.guest.start()
        self.seen = os.path.getsize(self.guest.log)
        self.ports = self._ports()
        self.ready_guest()
        if self.c_driver:
            self.machine.must(f"xl vtpm-attach victim uuid={self.vtpm.uuid} backend=0", 60)
        self.guest.must(
            "for i in $(seq 300); do [ -c /dev/tpm0 ] && break; sleep 0.1; done; [ -c /dev/tpm0 ]"
        )
        self.python("quiet")

    def ready_guest(self):
        """Loads the driver, and starts what takes orders: minutes on the debug kernel."""
        self.guest.must(
            f". /bed/lib.sh; {self.load} && {{ python3 -E -s /bed/hostile.py serve >/run/serve 2>&1"
            " & until [ -p /run/hostile.done ]; do sleep 0.1; done; }", 180
        )

    def _ports(self):
        """How many event channels the guest has."""
        return int(self.machine.must("event-channels $(xl domid victim) | wc -l"))

    def tell(self, order, limit=60):
        """Gives the backend an order; returns its answer."""
        return self.machine.must(f"xen-hostile-backend tell {order}", limit).strip()

    def python(self, words, limit=60):
        """Runs a part of the guest's program; returns its output, with the part's name in it."""
        output = self.guest.must(
            f"echo {words} >/run/hostile.orders; cat /run/hostile.done >/dev/null;"
            " cat /run/hostile.answer",
            limit,
        )
        name = {"secret": "tries"}.get(words.split()[0], words.split()[0])
        if f"\n{name} " not in f"\n{output} ":
            # An oops ends a process without a word.
            raise BedError(f"the guest's {name} has died: {output}")
        return output

    def face(self, behaviour):
        """One behaviour, and whether the guest is well after it; if not, it is replaced."""
        row = {"result": "", "after": "", "verdict": "bad"}
        self.rows[behaviour.name] = row
        try:
            row["result"] = getattr(self, "_" + behaviour.kind.replace("-", "_"))(behaviour, row)
            self._well(behaviour, row)
            row["verdict"] = "good"
        except BedError as why:
            row["after"] += f" the guest died or hung: {why}"
        finally:
            if not row.get("well"):
                self._replace(row)
        if row["verdict"] != "good":
            raise Failure(f"{row['result']}; {row['after']}")
        return f"{row['result']}; {row['after']}"

    def recorded(self, behaviour):
        """The same for a driver that is not ours: what it does is noted, and fails nothing."""
        try:
            found = "good: " + self.face(behaviour)
        except (Failure, BedError) as why:
            found = f"bad: {why}".replace("\n", " ")
        raise Noted(found)

    def _replace(self, row):
        with open(self.guest.log, encoding="utf-8", errors="replace") as file:
            found = [line for line in file.read()[self.seen:].splitlines() if SPLAT.search(line)]
        if found:
            row["after"] += f"; its console says: {found[0].strip()[:200]}"
        self.machine.run("xl destroy victim", 60)
        # The C driver may lose its device when it is loaded (race T2). Ours has one try.
        for left in (2, 1, 0) if self.c_driver else (0,):
            try:
                return self.start_guest()
            except BedError:
                if not left:
                    raise
                self.machine.run("xl destroy victim", 60)
        return None

    def _tries(self, behaviour, row, patience=None, words="tries"):
        count, patience = len(behaviour.expect.split()), patience or 2 * self.bed.slowness
        arguments = f" {count} {patience}" if words == "tries" else ""
        output = self.python(words + arguments, 60 + count * (patience + 45))
        found = output.split()[1:]
        row["result"] = " ".join(found)
        if not as_expected(found, behaviour.expect, self.c_driver):
            raise Failure(f"not {behaviour.expect}, but {' '.join(found)}")
        return row["result"]

    def _judged(self, row, function, *arguments):
        """What a step found is kept, as is that it was not what was expected."""
        try:
            return function(*arguments)
        except Failure as why:
            row["wrong"] = str(why)
            return row["result"]

    def _command(self, behaviour, row):
        self.tell(f"behave {behaviour.name}")
        result = self._judged(row, self._tries, behaviour, row)
        if "cancel:" in result or "kill:" in result or "stuck:" in result:
            self.tell(f"behave {behaviour.name}")
            killed = self.python("killed").split()[1]
            if killed == "stuck" or (killed != "ended" and float(killed) > self.bed.cancel_limit):
                row["wrong"] = row.get("wrong", "") + " a killed process is not gone"
            result += "" if killed == "ended" else f", killed {killed} s"
        if behaviour.name.startswith("random"):
            result += f", {self.python('hwrng').strip()}"
        return result

    def _secret(self, behaviour, row):
        self.tell(f"behave {behaviour.name}")
        result = self._judged(row, lambda: self._tries(behaviour, row, words="secret"))
        found = self.tell(f"find {SECRET}")
        if not re.fullmatch(r"pages [1-9]\d* hits 0 bytes 0", found):
            row["wrong"] = f"left in the page: {found}"
        return f"{result}, {found}"

    def _deadline(self, behaviour, row):
        self.tell(f"behave {behaviour.name}")
        return self._judged(row, self._tries, behaviour, row, wait.stretch(DEADLINE))

    def _bus(self, behaviour, row):
        self.tell(f"behave {behaviour.name}", 120)
        result = self._judged(row, self._tries, behaviour, row)
        return f"{result}, {self.status('connections')} connections so far"

    def status(self, what):
        """A number of the backend's."""
        return int(re.search(rf"{what} (\d+)", self.tell("status"))[1])

    def begun(self):
        """Waits until the backend has got a command; returns how many it has got."""
        self.machine.must(
            "for i in $(seq 100); do xen-hostile-backend tell status | grep -q 'commands [1-9]' &&"
            " break; sleep 0.1; done"
        )
        return self.status("commands")

    def _reconnects(self, behaviour, row):
        before = self.status("connections")
        result = self._bus(behaviour, row)
        self.machine.must(f"sleep {SPELL}")
        count = self.status("connections") - before
        if count > RECONNECTS:
            row["wrong"] = f"more than {RECONNECTS} connections in about {SPELL} s"
        return f"{result}, {count} of them in {SPELL} s"

    def _timeout(self, behaviour, row):
        self.tell(f"behave {behaviour.name}")
        count = len(behaviour.expect.split())
        _, *found = self.python(f"timed {count} {DEADLINE}", 60 + count * (DEADLINE + 45)).split()
        words, seconds = found[::2], [float(number) for number in found[1::2]]
        if not as_expected(words, behaviour.expect, self.c_driver):
            row["wrong"] = f"not {behaviour.expect}, but {' '.join(words)}"
        elif any(number > SHORT * self.bed.slowness for number in seconds[1:]):
            row["wrong"] = f"a command behind one that timed out takes more than {SHORT} s"
        return ", ".join(f"{word} after {number} s" for word, number in zip(words, seconds))

    def _cancel_storm(self, behaviour, row):
        self.tell(f"behave {behaviour.name}")
        self.python("quiet")
        _, count, lines = self.python(f"cancels {SPELL}", 60 + 2 * SPELL).split()
        word = "quiet" if int(lines) <= LINES else "loud"
        if word != behaviour.expect or not int(count):
            row["wrong"] = f"{lines} lines in the kernel's log of {count} commands in {SPELL} s"
        return f"{word}, {lines} lines of {count} commands in {SPELL} s"

    def _stale(self, behaviour, row):
        """Of two connections that are in order the driver knows which TPM it has; then comes the
        response to a command that the one before could not end."""
        for _ in range(2):
            self.tell("reconnect")
            self.python("tries 2")
        self.python("quiet")
        self.tell(f"behave {behaviour.name}")
        first, *found = self.python("stale", 120).splitlines()
        row["result"] = " ".join(first.split()[1:])
        if not as_expected(first.split()[-1:], behaviour.expect, self.c_driver):
            row["wrong"] = f"not {behaviour.expect} on the next connection"
        if self.status("commands") < 3:
            row["wrong"] = "the stale response was not given"
        if said := [line for line in found if OTHER_TPM.search(line)]:
            row["wrong"] = f"it takes a stale response for its own: {said[0]}"
        return row["result"]

    def _storm(self, behaviour, row):
        # In turns, because what else the host does changes.
        work, taken = {CONTROL: 0, behaviour.name: 0}, 0
        for name in (CONTROL, behaviour.name) * TURNS:
            self.tell(f"behave {name}")
            _, count, events = self.python(f"work {STORM / TURNS}", 120).split()
            work[name] += int(count)
            taken += int(events)
        result = self._judged(row, self._tries, behaviour, row)
        share = work[behaviour.name] / work[CONTROL]
        if share < SPEED:
            row["wrong"] = f"the guest's other work has {share:.2f} of its speed"
        return f"{result}, {share:.2f} of the speed, {taken} events taken in {STORM} s"

    def _probe(self, behaviour, row, patience=None):
        patience = patience or PROBE * self.bed.slowness
        self.python("unbind")
        self.tell(f"behave {behaviour.name}")
        lines = self.python(f"bind {patience}", patience + 60).splitlines()
        if len(lines[0].split()) < 4:
            raise BedError(f"the process that binds has died: {lines}")
        word, seconds = lines[0].split()[1], lines[0].split()[3]
        if word not in behaviour.expect.split("|"):
            row["wrong"] = f"not {behaviour.expect}, but {word}"
        result = f"{word} after {seconds} s"
        if word == "device":
            result += ", " + self.python("tries 1").split()[1]
        return f"{result} ({lines[-1].split('] ')[-1]})" if len(lines) > 1 else result

    def _pcrs(self, behaviour, row):
        result = self._probe(behaviour, row)
        if result.startswith("device"):
            count = self.python("pcrs", 120).split()[1]
            if not count.startswith("E") and int(count) > PCRS:
                row["wrong"] = f"{count} PCRs are read, which the TPM core has no room for"
            result += f", {count} PCRs"
        return result

    def _event_log(self, behaviour, row):
        self.python("unbind")
        self.tell(f"behave {behaviour.name}")
        bound = self.python("bind", 90).split()[1]
        result = ":".join([bound, *self.python("log").split()[1:]])
        self.machine.must(
            f"xenstore-rm /local/domain/0/backend/vtpm/$(xl domid {self.guest.name})/0/event-log"
        )
        if result != behaviour.expect:
            row["wrong"] = f"not {behaviour.expect}, but {result}"
        return result

    def _registration(self, behaviour, row):
        self.python("unbind")
        self.tell(f"behave {behaviour.name}")
        limit = PROBE + REST * self.bed.slowness
        word, _, seconds = self.python(f"bind {limit}", limit + 60).splitlines()[0].split()[1:]
        wrong = (
            [] if word in behaviour.expect.split("|") else [f"not {behaviour.expect}, but {word}"]
        )
        found = {}
        noticed = self._noticed(found)
        wrong += found.values()
        running = self.status("commands")
        _, unbound, took = self.python("unbind 60", 120).split()
        if unbound != "ok" or float(took) > UNBIND + REST * self.bed.slowness:
            wrong.append(f"unbinding meanwhile: {unbound}")
        if not running:
            wrong.append("the backend has seen no command")
        if wrong:
            row["wrong"] = "; ".join(wrong)
        self.tell("behave honest")
        self.python("bind", 90)
        return (
            f"{word} after {seconds} s and {running} commands, other watches {noticed}, unbound"
            f" after {took} s"
        )

    def _slow_probe(self, behaviour, row):
        return self._probe(behaviour, row, FIRST * self.bed.slowness)

    def _unbind(self, behaviour, row):
        self.tell(f"behave {behaviour.name}")
        limit = FIRST * self.bed.slowness
        _, word, seconds = self.python(f"unbind {limit}", limit + 60).split()
        if word != "ok":
            row["wrong"] = f"unbinding ends with {word}"
        self.tell("behave honest")
        self.python("bind", 90)
        return f"{'unbound' if word == 'ok' else word} after {seconds} s"

    def _busy_unbind(self, behaviour, row):
        before = self.status("interrupted")
        self.tell(f"behave {behaviour.name}")
        self.guest.must(f"python3 -E -s /bed/hostile.py tries 1 {DEADLINE} >/run/tries 2>&1 &")
        begun = self.begun()
        result = self._unbind_now(row)
        if not begun:
            row["wrong"] = "no command ran"
        elif self.status("interrupted") > before:
            row["wrong"] = "the page is closed while the backend has a command"
        self.tell("behave honest")
        self.python("bind", 90)
        return result

    def _unbind_now(self, row):
        """Unbinds within the time that this may take."""
        _, word, seconds = self.python("unbind 60", 120).split()
        if word != "ok" or float(seconds) > UNBIND + REST * self.bed.slowness:
            row["wrong"] = f"unbinding ends with {word} after {seconds} s"
        return f"{'unbound' if word == 'ok' else word} after {seconds} s"

    def _detach(self, behaviour, row):
        """The toolstack waits for ten seconds and then removes the device; meanwhile it is not
        connected again."""
        self.tell(f"behave {behaviour.name}")
        before = self.status("connections")
        # xl says that it has failed, and has removed the device by force.
        self.machine.run(f"xl vtpm-detach victim {self.vtpm.uuid}", 60)
        again = self.status("connections") - before
        word = (
            "still there" if self.guest.run("[ ! -e /sys/bus/xen/devices/vtpm-0 ]").code else "gone"
        )
        if word != behaviour.expect:
            row["wrong"] = f"not {behaviour.expect}, but {word}"
        elif again:
            row["wrong"] = f"it is connected again {again} times though the backend's online is 0"
        self.tell("behave honest")
        self.machine.must(f"xl vtpm-attach victim uuid={self.vtpm.uuid} backend=0", 60)
        return f"{word}, connected again {again} times"

    def _suspend(self, behaviour, row):
        self.machine.must(
            f"xl save -c victim {FILE} & sleep 1.5; xen-hostile-backend tell behave"
            f" {behaviour.name}; wait $!; code=$?; rm -f {FILE}; exit $code",
            120,
        )
        return self._judged(row, self._tries, behaviour, row)

    def _restore(self, behaviour, row):
        self.machine.must(f"xl save victim {FILE}", 120)
        self.tell(f"behave {behaviour.name}")
        self.machine.must(f"xl restore {FILE}; code=$?; rm -f {FILE}; exit $code", 120)
        self.guest.attach()
        return self._judged(row, self._tries, behaviour, row)

    def _late(self, behaviour, row):
        self.python("unbind")
        self.tell("behave probe-idle")
        self.python("bind", 90)
        self.tell(f"behave {behaviour.name}")
        self.tell("reconnect")
        return self._noticed(row)

    def _watch(self, behaviour, row):
        self.tell(f"behave {behaviour.name}")
        self.guest.must(f"python3 -E -s /bed/hostile.py tries 1 {DEADLINE} >/run/tries 2>&1 &")
        result = self._noticed(row)
        self.guest.run(f"{OTHERS}; kill -9 $(old); while [ \"$(old)\" ]; do sleep 0.1; done")
        return result

    def _noticed(self, row):
        """How long it takes until the guest notices something else that is written to xenstore."""
        self.machine.must("sleep 2; xl sysrq victim h")
        seconds = self.python(f"watch {DEADLINE}", DEADLINE + 60).split()[1]
        if seconds == "never" or float(seconds) > PROMPT * self.bed.slowness:
            row["wrong"] = f"the guest's other watches wait for {seconds} s"
        return f"{'late' if 'wrong' in row else 'prompt'}, after {seconds} s"

    def _well(self, behaviour, row):
        """The backend is honest again: the TPM has to work. Where it was about the connection,
        there is another one."""
        self.tell("behave honest")
        # A backend that is started anew is more than the C driver survives: it is not blamed for
        # that in every row.
        if behaviour.kind not in SAME_CONNECTION and not self.c_driver:
            self.tell("reconnect")
        refused = behaviour.name in REBOUND
        # What the C driver has lost it finds again only by a bind, if at all.
        seconds = 3 if refused else 8 if self.c_driver else 20
        rebind = refused or not self.c_driver or "probe" in behaviour.kind
        lines = self.python(f"well {seconds} {int(rebind)}", 180).splitlines()
        words = next(line for line in lines if line.startswith("well")).split()
        splats = [line[6:] for line in lines if line.startswith("splat")]
        row["after"] = " ".join(words[1:])
        row["well"] = words[1] != "no" and not splats
        may_rebind = refused or (self.c_driver and "probe" in behaviour.kind)
        if words[1] != "self" and not (words[1] == "rebound" and may_rebind):
            row["wrong"] = row.get("wrong", "") + " it does not go on by itself"
        if splats:
            row["wrong"] = row.get("wrong", "") + f" the kernel says: {splats[0]}"
        if "wrong" in row:
            row["after"] += f"; {row['wrong'].strip()}"
            raise Failure(f"{row['result']}; {row['after']}")

    def nothing_left(self):
        """Unbound, the driver has given back its ports, and has not used up grants."""
        self.python("unbind")
        ports = self._ports()
        grants = [
            int(number) for number in re.search(r"grants (\S*)", self.tell("status"))[1].split(",")
        ]
        self.python("bind")
        numbers = (
            f"event channels {self.ports} before, {ports} unbound; {len(grants)} connections had"
            f" {len(set(grants))} grant references from {min(grants)} to {max(grants)}, the last"
            f" {grants[-1]}"
        )
        if ports != self.ports or grants[-1] - grants[0] > 80:
            raise Failure(numbers)
        return numbers


def scenario(bed, names, version="2.0"):
    """Faces these behaviours, or all, with one guest for as long as it lives; those alone that
    BEHAVIOURS= names, where it names some."""
    wanted = (os.environ.get("BEHAVIOURS") or "").split()
    vtpm = bed.vtpm(version)
    bed.boot([vtpm], dom0_memory=1792, files={PROGRAM: programs.hostile_backend_path()})
    trial, known = Trial(bed, vtpm), behaviours()
    trial.start()
    column = (
        f"{'C' if trial.c_driver else 'Rust'}, TPM"
        f" {version}{f', {bed.guest_kernel.series} kernel' if bed.debug else ''}"
    )
    other = ONE_VERSION["1.2" if version == "2.0" else "2.0"]
    for name in names or [name for name in known if name != CONTROL and name not in other]:
        if wanted and name not in wanted:
            continue
        bed.record(
            f"{name}: {known[name].wrong}",
            trial.recorded if trial.c_driver else trial.face,
            known[name],
        )
        with TABLE:
            write_table(column, trial.rows)
    if not trial.c_driver:
        bed.record("event channels and grants are given back", trial.nothing_left)
        bed.checks(trial.guest, *bed.last_checks())
        trial.guest.shutdown()
