# SPDX-License-Identifier: GPL-2.0
"""What make test-deep does on the host: wide model checks, fuzzing, and whether seeded bugs are
found."""

import os
import re
import subprocess
import tomllib

from testbed import mutations
from tools.build import cargo_environment
from suites.host import MUST
from testbed.report import Failure
from tools.steps import BUILD, LOGS, REPORT, TOP, logged, must
from tools.sources import read

# The ways of finding a bug, and what Cargo calls them. The deep ones, which take minutes, are not
# among them.
WAYS = {
    "unit and property tests": "-p xen-tpm-protocol --",
    "all worlds": "-p xen-tpm-model --test explore",
    "all orders": "-p xen-tpm-model --test orders",
    "fuzz corpus": "-p xen-tpm-fuzz --test corpus",
}
PACKAGES = ("xen-tpm-protocol", "xen-tpm-model", "xen-tpm-fuzz")
# Seconds after which a test that does not end has found something. One that does takes 20.
PATIENCE = 600
MUTANTS = f"{BUILD}/mutants"

TARGET = "x86_64-unknown-linux-gnu"
FUZZER = f"{BUILD}/fuzz/{TARGET}/release/xen-tpm-fuzz"
# What cargo-fuzz would ask of rustc; the release profile, but with its checks.
FUZZ_FLAGS = (
    "--cfg fuzzing -C passes=sancov-module -C llvm-args=-sanitizer-coverage-level=4 -C"
    " llvm-args=-sanitizer-coverage-inline-8bit-counters -C llvm-args=-sanitizer-coverage-pc-table"
    " -C llvm-args=-sanitizer-coverage-trace-compares -C codegen-units=1 -C debug-assertions -C"
    " overflow-checks -C linker=clang -C link-arg=-fsanitize=fuzzer"
)
# Shares of the time, by how much there is to find.
FUZZ_SHARES = {"exchange": 0.6, "page": 0.3, "packet": 0.1}
FUZZ_SECONDS = int(os.environ.get("FUZZ_SECONDS") or 60)


def log_text(log):
    """The text of a log."""
    with open(f"{LOGS}/{log}", encoding="utf-8", errors="replace") as file:
        return file.read()


def wide_models():
    """The model checks that take minutes."""
    log = "model-wide.log"
    if logged(
        ["nice", "cargo", "test", "-p", "xen-tpm-model", "--", "--ignored", "--nocapture"],
        log,
        env=cargo_environment(),
    ):
        raise Failure(log_text(log)[-3000:])
    found = {what: sum(int(n) for n in re.findall(rf"(\d+) {what}\b", log_text(log)))
             for what in ("worlds", "steps", "orders")}
    if not all(found.values()):
        raise Failure(f"the log tells of {found}")
    return ", ".join(f"{count:,} {what}" for what, count in found.items())


def build_fuzzer():
    """Links the targets with libFuzzer."""
    log = "fuzz-build.log"
    environment = {
        **cargo_environment(),
        "CARGO_TARGET_DIR": f"{BUILD}/fuzz",
        "RUSTFLAGS": FUZZ_FLAGS,
    }
    if logged(
        ["nice", "cargo", "build", "--release", "-p", "xen-tpm-fuzz", "--target", TARGET],
        log,
        env=environment,
    ):
        raise Failure(log_text(log)[-3000:])


def fuzz(name, seconds):
    """Runs one target; what it finds new stays in build/, what breaks it in build/log/."""
    found, log = f"{BUILD}/corpus/{name}", f"fuzz-{name}.log"
    os.makedirs(found, exist_ok=True)
    code = logged(
        [
            "nice",
            FUZZER,
            f"-max_total_time={seconds}",
            "-max_len=256",
            "-timeout=10",
            "-print_final_stats=1",
            f"-artifact_prefix={LOGS}/fuzz-{name}-",
            found,
            f"{TOP}/tests/fuzz/corpus/{name}",
        ],
        log,
        env={"XT_FUZZ": name},
    )
    text = log_text(log)
    if code:
        raise Failure(text[-3000:])
    inputs = int(re.search(r"number_of_executed_units: (\d+)", text)[1])
    steps = max([int(n) for n in re.findall(r"^steps: (\d+)", text, re.MULTILINE)], default=inputs)
    return f"{inputs:,} inputs, over {steps:,} steps"


def fresh_copy():
    """A copy of what the host ways need, to be broken."""
    # Cargo wants all members of the workspace, whatever is tested.
    members = [f"{member}/" for member in tomllib.loads(read("Cargo.toml"))["workspace"]["members"]]
    needed = ("src/protocol/", "Documentation/", "README.md", "Cargo.toml", "tests/", "tools/")
    mutations.copy(f"{MUTANTS}/src", lambda name: name.startswith((*needed, *members)))


def environment_of_copy():
    """Cargo's there. Without debug information a mutant is built sooner."""
    return {
        **cargo_environment(),
        "CARGO_TARGET_DIR": f"{MUTANTS}/target",
        "CARGO_PROFILE_DEV_DEBUG": "0",
    }


def finds():
    """Which ways find something in the copy."""
    command = [
        "nice",
        "cargo",
        "test",
        "--no-fail-fast",
        *(f"-p={name}" for name in PACKAGES),
        "--tests",
    ]
    environment = {**os.environ, **environment_of_copy()}
    try:
        done = subprocess.run(
            command,
            cwd=f"{MUTANTS}/src",
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        return [hung((late.stderr or b"").decode(errors="replace"))]
    found = [way for way, test in WAYS.items() if f"`{test}" in done.stderr]
    if bool(found) != bool(done.returncode):
        raise Failure(done.stdout[-1000:] + done.stderr[-2000:])
    return found


def hung(log):
    """The way whose test was begun last, by Cargo's log. A build that does not end has found
    nothing."""
    begun = re.findall(r"Running (?:unittests )?(\S+)\.rs \((\S+)\)", log)
    source, program = begun[-1] if begun else ("", "")
    for way, test in WAYS.items():
        package, _, target = test.removeprefix("-p ").partition(" --test ")
        crate = package.split()[0].replace("-", "_")
        unit = f"/{crate}-" in program or f"xen_tpm_{os.path.basename(source)}" == crate
        if target == os.path.basename(source) if target else unit:
            return way
    raise Failure(f"no end after {PATIENCE} s, in {source or 'the build'}")


def unbroken():
    """The ways find nothing in a copy that nothing was done to; otherwise what they find says
    nothing."""
    fresh_copy()
    if found := finds():
        raise Failure(", ".join(found))


def mutant(path, table):
    """Breaks the copy as a patch says; one way at least has to see it."""
    if why := mutations.seed(path, f"{MUTANTS}/src"):
        fresh_copy()
        raise Failure(why)
    try:
        found = finds()
    finally:
        mutations.seed(path, f"{MUTANTS}/src", "-R")
    table[mutations.name_of(path)] = (mutations.says(path), found)
    if not found:
        raise Failure("nothing found it")
    return ", ".join(found)


def in_copy(command):
    """Runs tests in the copy."""
    try:
        return subprocess.run(
            ["nice", *command],
            cwd=f"{MUTANTS}/src",
            env={**os.environ, **environment_of_copy(), **MUST},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        # It may be the build: nobody has found anything.
        raise Failure(f"no end after {PATIENCE} s: {' '.join(command)}") from None


def none_fails(paths, command):
    """Without a bug the tests pass that are to find them: otherwise a failure says nothing. They
    are built first, which may take long."""
    if command is daemon_tests:
        must(
            ["nice", "cargo", "test", "-p", "xen-vtpmd", "--no-run"],
            "mutants-build.log",
            "the daemon's tests do not build",
            cwd=f"{MUTANTS}/src",
            env=environment_of_copy(),
        )
    programs = {}
    for path in paths:
        *program, test = command(mutations.found_by(path)[-1])
        programs.setdefault(tuple(program), set()).add(test)
    for program, tests in programs.items():
        done = in_copy([*program, *sorted(tests)])
        if done.returncode:
            raise Failure(f"{' '.join(program)}: {(done.stdout + done.stderr)[-2000:]}")


def one_fails(path, command, ran):
    """A bug is put into the copy: of the tests that `command` runs there, the one that its patch
    names fails. `ran` finds the failed ones in what is printed."""
    wanted = mutations.found_by(path)[-1]
    if why := mutations.seed(path, f"{MUTANTS}/src"):
        fresh_copy()
        raise Failure(why)
    try:
        done = in_copy(command(wanted))
    finally:
        mutations.seed(path, f"{MUTANTS}/src", "-R")
    failed = ran.findall(done.stdout + done.stderr)
    if wanted.rpartition(" ")[2] not in failed:
        raise Failure(
            f"{wanted} does not fail, but {failed or 'nothing'}:"
            f" {(done.stdout + done.stderr)[-2000:]}"
        )
    return ", ".join(failed)


# A bug of the daemon's is found by a test of Cargo's, `TARGET TEST` where it is not a unit test;
# one of the testbed's by a unit test of Python's.
def daemon_tests(wanted):
    """The command that runs the named test."""
    target, _, name = wanted.rpartition(" ")
    return [
        "cargo",
        "test",
        "-p",
        "xen-vtpmd",
        *(["--test", target] if target else ["--lib", "--bins"]),
        "--",
        name,
    ]


def testbed_tests(_):
    """The command that runs them all, which takes a second."""
    return ["python3", "-m", "unittest", "discover", "-s", "tests/unit", "-t", "."]


NATIVE = (("daemon", daemon_tests, re.compile(r"^test (\S+) \.\.\. FAILED", re.MULTILINE)),
          ("testbed", testbed_tests, re.compile(r"^(?:FAIL|ERROR): (\w+) ", re.MULTILINE)))


def run_mutations(report):
    """The bugs of the daemon and the testbed."""
    fresh_copy()
    for kind, command, ran in NATIVE:
        paths = mutations.patches(kind)
        if not paths or not report.check(
            "mutations", f"{kind}: without a bug nothing fails", none_fails, paths, command
        ):
            continue
        for path in paths:
            report.check(
                "mutations",
                f"{kind}: {mutations.name_of(path)}: {mutations.says(path)}",
                one_fails,
                path,
                command,
                ran,
            )


def write_table(table):
    """Which way found what, as a table, to build/report/mutations.md."""
    os.makedirs(REPORT, exist_ok=True)
    with open(f"{REPORT}/mutations.md", "w", encoding="utf-8") as file:
        file.write(f"| seeded bug | {' | '.join(WAYS)} |\n|{' --- |' * (len(WAYS) + 1)}\n")
        for name, (why, found) in sorted(table.items()):
            file.write(
                f"| {name}: {why} |"
                f" {' | '.join('found' if way in found else '-' for way in WAYS)} |\n"
            )


def run(report):
    """Runs the suite."""
    report.check("proof", "model checks with wide bounds", wide_models)
    if report.check("proof", "the fuzz targets build", build_fuzzer):
        for name, share in FUZZ_SHARES.items():
            report.check("proof", f"fuzzing {name}", fuzz, name, max(1, int(FUZZ_SECONDS * share)))
    table = {}
    if report.check("proof", "nothing is found where no bug was seeded", unbroken):
        for path in mutations.patches():
            report.check("proof", f"seeded bug {mutations.name_of(path)}", mutant, path, table)
    write_table(table)
