# SPDX-License-Identifier: GPL-2.0
"""Linters over the shell scripts, the Python and the documents, and the unit tests of the tools.
Debian 13 has no ruff: flake8 is what it has."""

import io
import re
import subprocess

from docutils import core

from testbed import mutations
from testbed.report import Failure
from tools.sources import read, sources
from tools.steps import TOP

# Tabs are in shell scripts within strings. A space may stand before a colon, a line break may stand
# before an operator or behind it.
FLAKE8 = ("--max-line-length=100", "--extend-ignore=E101,E203,W191,W503,W504")
# What one file sets for another that reads it: SC2034, SC2154.
SHELLCHECK = (
    "--severity=warning",
    "--external-sources",
    "--source-path=SCRIPTDIR",
    "--exclude=SC2034,SC2154",
    "--format=gcc",
)
SHELL = re.compile(r"#!.*\b(sh|bash)\b")
SOURCED = re.compile(r".*\.(sh|postrm|prerm|postinst)$")


def clean(command, count):
    """Fails when a linter finds anything, or has nothing to look at."""
    done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=False)
    if done.returncode or done.stdout.strip() or not count:
        raise Failure((done.stdout + done.stderr)[-4000:] or f"{command[0]}: no file")
    return f"{count} files"


def python():
    """flake8 over all Python."""
    files = [name for name in sources() if name.endswith(".py")]
    return clean(["flake8", *FLAKE8, *files], len(files))


def shell():
    """shellcheck over all shell scripts, by their first line or their name."""
    first = {name: read(name).partition("\n")[0] for name in sources()}
    scripts = [name for name, line in first.items() if SHELL.match(line)]
    sourced = [name for name in first if SOURCED.match(name) and name not in scripts]
    clean(["shellcheck", *SHELLCHECK, *scripts], len(scripts))
    clean(["shellcheck", *SHELLCHECK, "--shell=sh", *sourced], len(sourced))
    return f"{len(scripts) + len(sourced)} scripts"


def documents():
    """docutils reads every document, and warns of nothing."""
    files, said = [name for name in sources() if name.endswith(".rst")], io.StringIO()
    for name in files:
        core.publish_doctree(
            read(name),
            source_path=name,
            settings_overrides={"report_level": 2, "halt_level": 5, "warning_stream": said},
        )
    if said.getvalue() or not files:
        raise Failure(said.getvalue().strip() or "no document")
    return f"{len(files)} documents"


def units():
    """The unit tests of what finds versions and of what writes the report, with made-up input."""
    done = subprocess.run(
        ["python3", "-m", "unittest", "discover", "-s", "tests/unit", "-t", "."],
        cwd=TOP,
        capture_output=True,
        text=True,
        check=False,
    )
    count = re.search(r"Ran (\d+) tests?", done.stderr)
    if done.returncode or not count or not int(count[1]):
        raise Failure(done.stderr[-4000:])
    return f"{count[1]} tests"


def bugs():
    """The seeded bugs of tests/mutations still fit the sources, and name checks that there are."""
    wrong, count = [], 0
    for kind in ("protocol", "driver", "daemon", "testbed"):
        for path in mutations.patches(kind):
            count += 1
            if kind != "protocol" and (missing := mutations.not_there(kind, path)):
                wrong.append(f"{kind}/{mutations.name_of(path)}: no {', '.join(missing)}")
            if why := mutations.seed(path, TOP, "--dry-run"):
                wrong.append(f"{kind}/{mutations.name_of(path)}: {why}")
    if wrong or not count:
        raise Failure("\n".join(wrong) or "there is none")
    return f"{count} bugs"


def run(report):
    """Runs the suite."""
    report.check("lint", "flake8 finds nothing", python)
    report.check("lint", "shellcheck finds nothing", shell)
    report.check("lint", "docutils reads every document", documents)
    report.check("lint", "unit tests of the tools", units)
    report.check("lint", "the seeded bugs fit the sources", bugs)
