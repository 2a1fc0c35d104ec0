# SPDX-License-Identifier: GPL-2.0
"""A guest on the testbed: made by xl, told what to do through its console."""

import base64
import dataclasses
import os
import re
import time

from testbed import wait
from testbed.machine import BedError
from tools.arch import TARGET

START_LIMIT = 240
# What a guest is where a scenario does not say; arm64 has but one type.
TYPE = "pv" if TARGET.name == "amd64" else "pvh"
END = re.compile(r"^.*?@@end (\S+) (\d+) ([\d.]+)$")
DEAD = re.compile(r"Kernel panic|Attempted to kill init|---\[ end Kernel panic")


@dataclasses.dataclass
class Vtpm:
    """One vTPM of a guest: the version of its TPM, whether that has an endorsement key, who serves
    it, and what the backend's configuration has for it beside the version."""

    uuid: str
    version: str = "2.0"
    key: bool = True
    backend: str = "0"
    policy: str = ""


@dataclasses.dataclass
class Outcome:
    """How a check ended: exit code (77 is skip), seconds, output."""

    code: int
    seconds: float
    output: str


class Guest:
    """A guest with the given vTPMs, of TYPE unless `type` says otherwise. `slowness` is by how much
    longer than with a stock kernel all that it does may take; the host's own slowness comes to
    that."""

    def __init__(
        self,
        machine,
        name,
        vtpms=(),
        vcpus=1,
        memory=512,
        options="",
        slowness=1,
        early="earlyprintk=xen",
        start_limit=START_LIMIT,
        **config,
    ):
        self.machine, self.name, self.vtpms = machine, name, list(vtpms)
        self._start_limit = start_limit
        self._host = wait.slowness()
        self._slowness = slowness * self._host
        self._config = {
            "name": f"'{name}'", "type": f"'{TYPE}'", "vcpus": vcpus, "memory": memory,
            "kernel": "'/boot/vmlinux'", "ramdisk": "'/boot/guest.cpio'",
            "extra": f"'console=hvc0 {early} quiet rdinit=/init {options}'",
            "on_reboot": "'destroy'", "on_crash": "'destroy'",
            **config,
        }
        if vtpms:
            self._config["vtpm"] = [
                f"backend={vtpm.backend},uuid={vtpm.uuid}" for vtpm in self.vtpms
            ]
        self.config = f"/run/{name}.cfg"
        self.log = self.own_log
        self._offset = 0
        self._tty = None
        self._partial = ""

    @property
    def own_log(self):
        """Where its console is when it was made under its own name."""
        return f"{self.machine.share}/console/guest-{self.name}.log"

    @property
    def create(self):
        """What creates it."""
        return f"xl create {self.config}"

    def write_config(self):
        """Writes the guest's configuration for xl."""
        # None is what the configuration is not to have.
        known = {key: value for key, value in self._config.items() if value is not None}
        text = "".join(f"{key}={value}\n" for key, value in known.items())
        self.machine.must(f"cat >{self.config} <<'END'\n{text}END")

    def start(self, before=None, meanwhile=None):
        """Creates the guest and waits until it takes commands. `before` is called when the
        toolstack has made it, and it has not run; `meanwhile` when it boots."""
        self.write_config()
        # What another guest of this name has said.
        self._lines()
        self.machine.must(f"{self.create} -p" if before else self.create, 120)
        if before:
            before()
            self.machine.must(f"xl unpause {self.name}")
        self.attach()
        if meanwhile:
            meanwhile()
        self.wait_ready()

    def attach(self):
        """Finds the guest's console, which is another one after a restore or a reboot."""
        self._tty = self.machine.must(
            f"xenstore-read /local/domain/$(xl domid {self.name})/console/tty").strip()

    def incoming_log(self, machine):
        """Where its console is after it was migrated to a machine."""
        return f"{machine.share}/console/guest-{self.name}--incoming.log"

    def migrated(self):
        """Finds the console of a guest that xl has migrated: its log is called after the name that
        the domain had when it was made."""
        log = self.incoming_log(self.machine)
        if self.log != log:
            self.log, self._offset, self._partial = log, 0, ""
        self.attach()

    def forget_migration(self):
        """The toolstack is about to make it anew, under its own name."""
        self.log, self._offset, self._partial = self.own_log, os.path.getsize(self.own_log), ""

    def wait_ready(self, anew=False):
        """Waits until the guest takes commands. With `anew` the toolstack makes it again: for a
        while there is none of that name, and then it has another console."""
        self._wait(lambda line: "@@ready" in line, self._start_limit, "start", anew)
        if anew:
            self.attach()
        # Not by the command line, which is measured: it is the same on every host.
        self.type(f"slowness {self._slowness} {self._host}")

    def _lines(self):
        try:
            with open(self.log, "r", encoding="utf-8", errors="replace", newline="") as file:
                file.seek(self._offset)
                data = file.read()
                self._offset = file.tell()
        except FileNotFoundError:
            return []
        *lines, self._partial = (self._partial + data).split("\n")
        return [line.rstrip("\r") for line in lines]

    def _wait(self, stop, limit, what, anew=False):
        """Collects lines until `stop` says so of one."""
        until = time.monotonic() + limit * self._slowness * self.machine.patience
        seen, check = [], 0
        while True:
            for line in self._lines():
                seen.append(line)
                if stop(line):
                    return seen
                if DEAD.search(line):
                    raise BedError(f"guest {self.name} died during {what}: {line}")
            if time.monotonic() > until:
                raise BedError(
                    f"guest {self.name}: no end of {what} in {limit * self._slowness} s: see"
                    f" {self.log}"
                )
            check += 1
            if check % 100 == 0 and not anew and not self.alive():
                raise BedError(f"guest {self.name} is gone during {what}: see {self.log}")
            time.sleep(0.05)

    def _do(self, line, name, limit):
        self._lines()
        self.type(line)
        seen = self._wait(lambda text: (END.match(text) or [0, ""])[1] == name, limit, name)
        end = END.match(seen[-1])
        output = "\n".join(text[3:] for text in seen if text.startswith("@| "))
        return Outcome(int(end[2]), float(end[3]), output)

    def check(self, name, limit=60):
        """Runs the guest's check `check_NAME`; the guest itself ends it after `limit` seconds."""
        return self._do(f"check {name} {limit * self._slowness}", name, limit + 60)

    def run(self, script, limit=60):
        """Runs a short shell script in the guest."""
        code = base64.b64encode(script.encode()).decode()
        return self._do(f"sh script {code}", "script", limit)

    def must(self, script, limit=60):
        """Runs a script that has to succeed; returns its output."""
        done = self.run(script, limit)
        if done.code:
            raise BedError(
                f"guest {self.name}: {script!r} ended with {done.code}: {done.output[-2000:]}"
            )
        return done.output

    def alive(self):
        """Whether it runs."""
        return self.machine.run(f"xl domid {self.name}")[0] == 0

    def type(self, text):
        """Types into the guest's console without waiting."""
        self.machine.must(f"printf '%s\\n' '{text}' >{self._tty}")

    def left_shell(self):
        """Whether the shell that was asked for by `type("shell")` has ended since the last look."""
        return any(END.match(line) for line in self._lines())

    def shutdown(self, limit=90):
        """Asks the guest to end, as a person would."""
        self.machine.must(f"xl shutdown -w {self.name}", limit)

    def destroy(self):
        """Ends the guest at once."""
        self.machine.must(f"xl destroy {self.name}", 60)
