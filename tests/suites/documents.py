# SPDX-License-Identifier: GPL-2.0
"""The documents: their lines are short, what they name exists, and README claims what a check shows. That docutils takes
them is a matter of lint.py."""

import glob
import os
import re
import subprocess
import tempfile

from docutils import core, nodes

from suites import scenarios
from suites.host import none
from testbed.report import Failure
from tools.sources import read, sources
from tools.steps import TOP

WIDEST = 100
# Being rewritten as a whole.
WIDE = ("Documentation/xen-vtpmd.rst",)
INDEX = "Documentation/index.rst"
CLAIMS = "Documentation/testing/claims.rst"
ONE_CHECK = "Documentation/testing/one-check.rst"
MOST_FILES = 6
CLAIM = re.compile(r"<!--\s+claim:\s+([a-z0-9-]+)\s+-->")
# What a document may name: a path from the top that begins so. Others are on the reader's machine.
TREES = ("Documentation", "backend", "src", "tests", "tools")
RUNS = {"test", "deep", "bench", "compare"}


def documents(*endings):
    """The documents' names."""
    found = [name for name in sources() if name.endswith(endings)]
    if not found:
        raise Failure(f"no document ends in {' or '.join(endings)}")
    return found


def parsed(name):
    """A document's tree."""
    return core.publish_doctree(read(name), source_path=name, settings_overrides={"file_insertion_enabled": False})


def widths():
    """No line is wider than WIDEST; a row of a Markdown table cannot be broken, nor can a single word."""
    none([f"{name}:{number}: {len(line)} columns" for name in documents(".rst", ".md") if name not in WIDE
          for number, line in enumerate(read(name).splitlines(), 1)
          if len(line) > WIDEST and not (name.endswith(".md") and line.startswith("|")) and " " in line.strip()])


def named_files(name, text):
    """The files of the project that a document names: links, and paths from the top in ``literals``."""
    folder = os.path.dirname(name)
    if name.endswith(".md"):
        links = re.findall(r"\]\(([^)#\s]+)", text)
        literals = re.findall(r"`([^`\n]+)`", text)
    else:
        links = re.findall(r"<([^>`\s]+)>`_", text) + re.findall(r"^\.\. image:: (\S+)", text, re.MULTILINE)
        literals = re.findall(r"``([^`\n]+)``", text)
        literals += re.findall(r"(?<![\w`/])Documentation/[\w./-]*\w", text)
    yield from (os.path.normpath(os.path.join(folder, link)) for link in links if "://" not in link)
    for literal in literals:
        # A path, perhaps with a pattern in it; no command, and nothing with a PLACEHOLDER.
        if re.fullmatch(rf"({'|'.join(TREES)})/[\w./*+-]*", literal) and not re.search(r"/[A-Z]{2,}(/|$)", literal):
            yield literal.rstrip("/")


def links():
    """What documents link to and name of the project's files is there."""
    names = documents(".rst", ".md")
    none([f"{name}: no {path}" for name in names for path in dict.fromkeys(named_files(name, read(name)))
          if not glob.glob(f"{TOP}/{path}")])


def index():
    """Every document of Documentation/ is named in the index."""
    text = read(INDEX)
    none([f"{INDEX} does not name {name}" for name in documents(".rst")
          if name.startswith("Documentation/") and name != INDEX
          and f"<{os.path.relpath(name, os.path.dirname(INDEX))}>" not in text])


def claims():
    """The table of claims: for each the runs, and the checks as pairs of a suite or scenario and a name."""
    found = {}
    for row in parsed(CLAIMS).findall(nodes.row):
        cells = [cell.astext() for cell in row.findall(nodes.entry)]
        if len(cells) != 3 or cells[0] == "claim":
            continue
        runs = set(re.split(r",\s*", cells[1]))
        checks = []
        for part in re.split(r";\s*", " ".join(cells[2].split())):
            where, mark, names = part.partition(": ")
            checks += [(where, name) for name in re.split(r", (?=\S)", names)]
            if not mark:
                raise Failure(f"{CLAIMS}: {cells[0]}: '{part}' is not 'SCENARIO: CHECK, CHECK'")
        if cells[0] in found or not runs <= RUNS:
            raise Failure(f"{CLAIMS}: {cells[0]} is there twice, or its run is not one of {sorted(RUNS)}")
        found[cells[0]] = runs, checks
    if not found:
        raise Failure(f"{CLAIMS} has no table of claims")
    return found


def missing_check(runs, where, name):
    """What is wrong with a check's name; None where there is such a check, and it is made in these runs."""
    if where == "cargo":
        text = "".join(read(file) for file in sources() if file.endswith(".rs"))
        return None if re.search(rf"\bfn {re.escape(name)}\(", text) else f"no Rust test is called {name}"
    one = scenarios.known().get(where)
    if one and not runs & set(one.sets):
        return f"{where} belongs to {', '.join(one.sets)}, and not to {', '.join(runs)}"
    if one and re.fullmatch(r"[a-z0-9_]+", name):
        guests = "".join(read(file) for file in sources() if re.match(r"tests/guest/\w+\.sh$", file))
        return None if f"\ncheck_{name}()" in guests else f"no check of a guest is called {name}"
    path = os.path.relpath(one.module.__file__, TOP) if one else f"tests/suites/{where}.py"
    if not os.path.exists(f"{TOP}/{path}"):
        return f"there is no scenario or suite '{where}'"
    return None if name in read(path) else f"{path} has no check '{name}'"


def claimed():
    """Each claim that README marks is in the table with a check that exists, and the table has no other."""
    marked = CLAIM.findall(read("README.md"))
    table = claims()
    wrong = [f"README marks {claim} twice" for claim in sorted(set(marked)) if marked.count(claim) > 1]
    wrong += [f"README claims {claim}, and {CLAIMS} has no check for it" for claim in marked if claim not in table]
    wrong += [f"{CLAIMS} has {claim}, which README does not claim" for claim in table if claim not in marked]
    wrong += [f"{claim}: {why}" for claim, (runs, checks) in table.items() for check in checks
              if (why := missing_check(runs, *check))]
    none(wrong)
    return f"{len(marked)} claims, {sum(len(checks) for _, checks in table.values())} checks"


def shown(report):
    """After a whole `make test`: each check that a claim rests on, and that belongs to it, was made and has passed."""
    # A check of a guest has the guest's name before its own; a scenario on another kernel has that behind its own.
    passed = [(check["suite"].rpartition("/")[2], f": {check['name']}") for check in report.checks
              if check["status"] == "pass"]
    wanted = [(claim, *check) for claim, (runs, checks) in claims().items() if "test" in runs for check in checks]
    none([f"{claim}: {where}: {name} was not made, or has not passed" for claim, where, name in wanted
          if where != "cargo" and not any(re.match(rf"{where}(-[\d.]+)?$", suite) and text.endswith(f": {name}")
                                          for suite, text in passed)])
    return f"{len(wanted)} checks of {len({claim for claim, *_ in wanted})} claims"


def one_check():
    """The page about the path of one check quotes lines that are there, of no more than MOST_FILES files."""
    path = [(item[0].astext(), [line for block in item.findall(nodes.literal_block) for line in block.astext().splitlines()])
            for item in parsed(ONE_CHECK).findall(nodes.definition_list_item)]
    if not path or len(path) > MOST_FILES or not all(lines for _, lines in path):
        raise Failure(f"{ONE_CHECK} has {len(path)} files, and should quote at least one line of up to {MOST_FILES}")
    none([f"{name} has no line with '{line.strip()}'" for name, lines in path for line in lines
          if line.strip() not in read(name)])
    return f"{len(path)} files"


def recipes():
    """README's commands for a TPM 2.0 do what it says, as they are printed: on a swtpm, and with what is left in a TPM
    flushed as /dev/tpmrm0 does it. The secret opens, and no more when the PCR has changed."""
    section = read("README.md").partition("\n## Recipes\n")[2].partition("\n## ")[0]
    lines = [line for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL) for line in block.splitlines()
             if re.search(r"\btpm2_", line)]
    if len(lines) < 2 or not lines[-1].startswith("tpm2_unseal "):
        raise Failure(f"the recipes do not end in tpm2_unseal: {lines}")
    extends = [line for line in lines if line.startswith("tpm2_pcrextend ")]
    with tempfile.TemporaryDirectory() as folder:
        def tpm(line):
            return subprocess.run(["sh", "-ec", f"{line}\ntpm2_flushcontext -Q -t"], cwd=folder, timeout=60, check=False,
                                  capture_output=True, text=True,
                                  env={**os.environ, "TPM2TOOLS_TCTI": f"swtpm:path={folder}/tpm"})
        with subprocess.Popen(["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={folder}", "--flags", "startup-clear",
                               "--server", f"type=unixio,path={folder}/tpm", "--ctrl", f"type=unixio,path={folder}/tpm.ctrl"],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as swtpm:
            try:
                tpm("for i in $(seq 100); do [ -S tpm ] && break; sleep 0.05; done")
                for line in lines:
                    if (done := tpm(line)).returncode:
                        raise Failure(f"{line}: {done.stderr}")
                if done.stdout != "secret\n":
                    raise Failure(f"{lines[-1]}: {done.stdout!r}")
                if tpm(extends[0]).returncode or not tpm(lines[-1]).returncode:
                    raise Failure("the secret opens though its PCR has changed")
            finally:
                swtpm.kill()
    return f"{len(lines)} commands"


def run(report):
    """Runs the suite."""
    report.check("documents", f"no line is wider than {WIDEST} columns", widths)
    report.check("documents", "what documents name is there", links)
    report.check("documents", "the index names every document", index)
    report.check("documents", "the path of one check is as its page says", one_check)
    report.check("documents", "README's recipes do what it says", recipes)
    report.check("documents", "README's claims have checks", claimed)


def run_last(report):
    """After all other suites of `make test`."""
    report.check("documents", "README's claims were shown", shown, report)
