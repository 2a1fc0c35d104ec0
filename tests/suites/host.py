# SPDX-License-Identifier: GPL-2.0
"""Checks that need no guest: Cargo's, and the rules of the sources."""

import ast
import os
import re
import subprocess

from suites import ordinary
from testbed.report import Failure
from tools.build import cargo_environment
from tools.sources import read, sources
from tools.steps import LOGS, TOP, logged

# The root has all that the integration tests need: none may be skipped. They wait more than they
# compute, for timeouts and for disks.
MUST = {"XEN_VTPMD_MUST": "1", "RUST_TEST_THREADS": "4"}
CARGO = (
    ("cargo test", ["cargo", "test", "--workspace", "--", "--show-output"], MUST),
    (
        "cargo clippy",
        ["cargo", "clippy", "--workspace", "--all-targets", "--", "-D", "warnings"],
        {},
    ),
    ("cargo fmt", ["cargo", "fmt", "--all", "--check", "--", "--color", "never"], {}),
    (
        "cargo doc",
        ["cargo", "doc", "--workspace", "--no-deps", "--document-private-items"],
        {"RUSTDOCFLAGS": "-D warnings"},
    ),
)
# Those that take long, which `make test` leaves out, and a test that takes as long as it is told.
DEEP = (
    ("tests that take long",
     ["cargo", "test", "--release", "-p", "xen-vtpmd", "--", "--ignored", "--show-output"], MUST),
    ("10^7 steps of the fuzzer of the backend's side",
     ["cargo", "test", "--release", "-p", "xen-vtpmd", "--lib", "swtpm::fuzz", "--",
      "--show-output"], {"XEN_VTPMD_STEPS": "10000000", **MUST}),
)
SOURCES = (".rs", ".c", ".h", ".py", ".sh", ".toml", ".rst")
NAMED_SOURCES = ("Makefile", "Kbuild", "Kconfig", "packages")
UNSAFE_ROOMS = ("src/xen/", "src/tpm/", "src/xen_sys/", "backend/src/sys/")
LONGEST = 500


def none(found):
    """Fails when there is something in the list."""
    if found:
        raise Failure("\n".join(found))


def cargo(report, name, command, environment):
    """Runs one of Cargo's commands."""
    log = re.sub("[^a-z0-9]+", "-", name) + ".log"
    code = logged(["nice", *command], log, cwd=TOP, env={**cargo_environment(), **environment})
    with open(f"{LOGS}/{log}", encoding="utf-8", errors="replace") as file:
        text = file.read()
    if code:
        raise Failure(text[-4000:])
    return count_tests(report, name, text) if command[1] == "test" else ""


def count_tests(report, name, text):
    """How many tests ran, by what Cargo said with --show-output. One that says that it skipped
    something has not passed: it is in the report by its name."""
    passed = sum(
        int(number) for number in re.findall(r"^test result: ok\. (\d+) passed", text, re.MULTILINE)
    )
    if not passed:
        raise Failure("cargo test ran no test")
    skipped = re.findall(
        r"^---- (\S+) stdout ----\n(?:(?!---- |\n\n).*\n)*?.*SKIPPED:? *(.*)$", text, re.MULTILINE
    )
    for test, why in skipped:
        report.add("host", f"{name}: {test}", "skip", 0, why)
    return f"{passed - len(skipped)} tests"


# Which of the project's Python packages may import which. What is in nobody's list is imported by
# nobody.
PACKAGES = {
    "tools": ("tools",),
    "testbed": ("tools", "testbed"),
    "scenarios": ("tools", "testbed"),
    "suites": ("tools", "testbed", "suites"),
    "guest": (),
    "run": ("tools", "testbed", "suites", "demo"),
    "demo": ("tools", "testbed"),
    "results": ("tools",),
}


def imported(name):
    """The packages of ours that a Python file imports."""
    for node in ast.walk(ast.parse(read(name), name)):
        found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else \
            [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        yield from ((node.lineno, module) for module in found if module.split(".")[0] in PACKAGES)


def imports():
    """Tools know no tests, the testbed knows no scenario and no suite, and a scenario knows no
    other one."""
    wrong, seen = [], 0
    for name in sources():
        if not name.endswith(".py") or not name.startswith(("tools/", "tests/")):
            continue
        package = "tools" if name.startswith("tools/") else name.removesuffix(".py").split("/")[1]
        for line, module in imported(name):
            seen += 1
            if package in PACKAGES and module.split(".")[0] not in PACKAGES[package]:
                wrong.append(f"{name}:{line}: {package} imports {module}")
    none(wrong)
    if not seen:
        raise Failure("no import was looked at")
    return f"{seen} imports"


def as_ordinary_user():
    """The tests of the daemon that go by users' ids, of those that `cargo test` has built."""
    with open(f"{LOGS}/cargo-test.log", encoding="utf-8", errors="replace") as file:
        found = ordinary.programs(file.read())
    if missing := [name for name, paths in found.items() if not paths]:
        raise Failure(f"cargo test has built no {', '.join(missing)}")
    daemon = f"{cargo_environment()['CARGO_TARGET_DIR']}/debug/xen-vtpmd"
    os.environ["XT_COPY"] = ":".join(
        [daemon, *(path for paths in found.values() for path in paths)]
    )
    script = "export XEN_VTPMD_MUST=1 RUST_TEST_THREADS=4; " + " && ".join(
        f"{path} --show-output {' '.join(ordinary.PROGRAMS[name])}"
        for name, paths in found.items()
        for path in paths
    )
    code, said = ordinary.inside(script)
    if code:
        raise Failure(said[-4000:])
    passed = [
        int(number) for number in re.findall(r"^test result: ok\. (\d+) passed", said, re.MULTILINE)
    ]
    if not any(passed) or re.search(r"SKIPPED: not root", said):
        raise Failure(said[-2000:])
    return f"{sum(passed)} tests"


def kernel_rustfmt(kernel):
    """The module's Rust is formatted as the kernel's is."""
    files = [
        f"{TOP}/{name}" for name in sources() if name.startswith("src/") and name.endswith(".rs")
    ]
    if not files:
        raise Failure("no Rust file under src/")
    done = subprocess.run(["rustfmt", "--edition", "2021", "--check", "--config-path",
                           f"{kernel.source}/.rustfmt.toml", *files],
                          capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failure((done.stdout + done.stderr)[-3000:])


def licences():
    """Every source file says its licence in its first lines."""
    none([name for name in sources()
          if (name.endswith(SOURCES) or os.path.basename(name) in NAMED_SOURCES or
              read(name).startswith("#!"))
          and "SPDX-License-Identifier: GPL-2.0" not in "\n".join(read(name).splitlines()[:2])])


def unsafe_rooms():
    """Only the rooms of raw bindings and their safe wrappers have unsafe code in the module."""
    word = re.compile(r"\bunsafe\b(?!_)")
    none([f"{name}:{number}: {line.strip()}" for name in sources()
          if name.startswith("src/") and name.endswith(".rs") and not name.startswith(UNSAFE_ROOMS)
          for number, line in enumerate(read(name).splitlines(), 1)
          if word.search(line.split("//")[0]) and not re.search(r"(deny|forbid)\(.*unsafe", line)])


def lengths():
    """No file is too long to be read at once."""
    none(
        [
            f"{name}: {count} lines"
            for name in sources()
            if (count := read(name).count("\n")) > LONGEST
            and not name.startswith(("LICENSES/", "COPYING", "Cargo.lock"))
        ]
    )


def no_hosts():
    """No archive's host is named: it is the reader's machine that knows its own."""
    word = re.compile(
        r"\b(deb|ftp|snapshot|security)\.debian\.org|\bmirror\.[a-z]|(static|index)\.crates\.io"
    )
    none([f"{name}: {match[0]}" for name in sources()
          if name != "tests/suites/host.py" and (match := word.search(read(name)))])


def run(report, kernels):
    """Runs the suite."""
    first = next(kernel for kernel in kernels if kernel.bootable)
    for name, command, environment in CARGO:
        report.check("host", name, cargo, report, name, command, environment)
    report.check("host", "the daemon's tests as an ordinary user", as_ordinary_user)
    report.check("host", "rustfmt with the kernel's rules", kernel_rustfmt, first)
    report.check("host", "every source file names its licence", licences)
    report.check(
        "host", "unsafe only in src/xen, src/tpm, src/xen_sys and backend/src/sys", unsafe_rooms
    )
    report.check("host", f"no file over {LONGEST} lines", lengths)
    report.check("host", "no archive host in the sources", no_hosts)
    report.check("host", "tools import no tests, scenarios no scenario", imports)


def run_deep(report):
    """Runs what is too slow for every day."""
    for name, command, environment in DEEP:
        report.check("host", name, cargo, report, name, command, environment)
