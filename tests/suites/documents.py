# SPDX-License-Identifier: GPL-2.0
"""The documents: their lines are short, what they name exists, and README claims what a check
shows. That docutils takes them is a matter of lint.py."""

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
INDEX = "Documentation/index.rst"
CLAIMS = "Documentation/testing/claims.rst"
DRIVER = "Documentation/xen-tpmfront.rst"
ONE_CHECK = "Documentation/testing/one-check.rst"
MOST_FILES = 6
CLAIM = re.compile(r"<!--\s+claim:\s+([a-z0-9-]+)\s+-->")
# In front of the name of a scenario in the table.
ARM64 = "arm64/"
RUNS = {"test", "deep", "bench", "compare"}
# A path from the top that a document names, perhaps with a pattern in it; no command, and nothing
# with a PLACEHOLDER. Other paths are on the reader's machine.
OURS = re.compile(r"(?!.*/[A-Z]{2,}(/|$))(Documentation|backend|src|tests|tools)/[\w./*+-]*")
MD_LINK, MD_LITERAL = re.compile(r"\]\(([^)#\s]+)"), re.compile(r"`([^`\n]+)`")
RST_LINK = re.compile(r"(?:<(?=[^>]*>`_)|^\.\. image:: )([^>`\s]+)", re.MULTILINE)
PAGE = re.compile(r"\bDocumentation/[\w/-]+\.(?:rst|md)\b")
RST_LITERAL = re.compile(r"(?:``|(?<![\w`/])(?=Documentation/))([^`\s]+\w/?)(?:``)?")


def documents(*endings):
    """The documents' names."""
    found = [name for name in sources() if name.endswith(endings)]
    if not found:
        raise Failure(f"no document ends in {' or '.join(endings)}")
    return found


def parsed(name):
    """A document's tree."""
    return core.publish_doctree(read(name), source_path=name)


def widths():
    """No line is wider than WIDEST; a row of a Markdown table cannot be broken, nor can a word."""
    none([
        f"{name}:{number}: {len(line)} columns"
        for name in documents(".rst", ".md")
        for number, line in enumerate(read(name).splitlines(), 1)
        if len(line) > WIDEST and " " in line.strip()
        and not (name.endswith(".md") and line.startswith("|"))
    ])


def named_files(name, text):
    """The files of the project that a document names: links, and paths from the top. Of other files
    only what they name of Documentation/ is looked at."""
    if not name.endswith((".md", ".rst")):
        yield from PAGE.findall(text)
        return
    link, literal = (MD_LINK, MD_LITERAL) if name.endswith(".md") else (RST_LINK, RST_LITERAL)
    folder = os.path.dirname(name)
    yield from (os.path.normpath(os.path.join(folder, path)) for path in link.findall(text)
                if "://" not in path)
    yield from (path.rstrip("/") for path in literal.findall(text) if OURS.fullmatch(path))


def links():
    """What documents link to and name of the project's files is there, and the pages that sources
    name. (The unit tests name pages that are made up, the tools those of a kernel tree.)"""
    none([
        f"{name}: no {path}"
        for name in sources() if not re.match(r"tests/unit/|tools/.*(?<!\.md)$", name)
        for path in dict.fromkeys(named_files(name, read(name)))
        if not glob.glob(f"{TOP}/{path}")
    ])


def index():
    """Every document of Documentation/ is named in the index."""
    linked = set(named_files(INDEX, read(INDEX)))
    none([f"{INDEX} does not name {name}" for name in documents(".rst")
          if name.startswith("Documentation/") and name not in linked | {INDEX}])


def claims():
    """The table of claims: for each the runs, and the checks as pairs of a suite or scenario and a
    name."""
    found = {}
    for row in parsed(CLAIMS).findall(nodes.row):
        cells = [" ".join(cell.astext().split()) for cell in row.findall(nodes.entry)]
        if len(cells) != 3 or cells[0] == "claim":
            continue
        claim, runs, checks = cells[0], set(cells[1].split(", ")), []
        for part in cells[2].split("; "):
            where, mark, names = part.partition(": ")
            checks += [(where, name) for name in names.split(", ")]
            if not mark:
                raise Failure(f"{CLAIMS}: {claim}: '{part}' is not 'SCENARIO: CHECK, CHECK'")
        if claim in found or not runs <= RUNS:
            raise Failure(f"{CLAIMS}: {claim} is there twice, or its run is none of {sorted(RUNS)}")
        found[claim] = runs, checks
    if not found:
        raise Failure(f"{CLAIMS} has no table of claims")
    return found


def missing_check(runs, where, name):
    """What is wrong with a check's name; None where there is such a check, made in these runs."""
    if where == "cargo":
        wanted, pattern = rf"\bfn {re.escape(name)}\(", r".*\.rs$"
    else:
        wanted, pattern = rf"^check_{re.escape(name)}\(\)", r"tests/guest/\w+\.sh$"
    one = scenarios.known().get(where.removeprefix(ARM64))
    # Of arm64 make test has a set of its own.
    runs = {"short"} if where.startswith(ARM64) else runs
    if one and not runs & set(one.sets):
        return f"{where} belongs to {', '.join(one.sets)}, and not to {', '.join(runs)}"
    if where == "cargo" or one and re.fullmatch(r"[a-z0-9_]+", name):
        files = "\n".join(read(file) for file in sources() if re.match(pattern, file))
        return None if re.search(wanted, files, re.MULTILINE) else f"no check is called {name}"
    path = os.path.relpath(one.module.__file__, TOP) if one else f"tests/suites/{where}.py"
    if not os.path.exists(f"{TOP}/{path}"):
        return f"there is no scenario or suite '{where}'"
    return None if name in read(path) else f"{path} has no check '{name}'"


def claimed():
    """Each claim that README marks is in the table with a check that exists, and the table has no
    other."""
    marked, table = CLAIM.findall(read("README.md")), claims()
    wrong = [f"README marks {claim} twice" for claim in set(marked) if marked.count(claim) > 1]
    wrong += [f"README claims {claim}, which {CLAIMS} does not have" for claim in marked
              if claim not in table]
    wrong += [f"{CLAIMS} has {claim}, which README does not claim" for claim in table
              if claim not in marked]
    wrong += [f"{claim}: {why}" for claim, (runs, checks) in table.items() for check in checks
              if (why := missing_check(runs, *check))]
    none(wrong)
    return f"{len(marked)} claims, {sum(len(checks) for _, checks in table.values())} checks"


def place(suite):
    """What a suite of the report is called in the table; a scenario on another kernel has that
    kernel behind its own name."""
    kind, _, name = suite.rpartition("/")
    return (ARM64 if kind == "testbed-arm64" else "") + re.sub(r"-[\d.]+$", "", name)


def shown(report):
    """After a whole `make test`: each check that a claim rests on was made and has passed."""
    # A check of a guest has the guest's name before its own.
    passed = {(place(check["suite"]), name)
              for check in report.checks if check["status"] == "pass"
              for name in (check["name"], check["name"].partition(": ")[2])}
    known = scenarios.known()
    wanted = [(claim, where, name) for claim, (runs, checks) in claims().items() if "test" in runs
              for where, name in checks if where not in ("cargo", "bench")
              and (where not in known or "test" in known[where].sets)]
    none([f"{claim}: {where}: {name} was not made, or has not passed"
          for claim, where, name in wanted if (where, name) not in passed])
    return f"{len(wanted)} checks of {len({claim for claim, *_ in wanted})} claims"


def version():
    """README and the newest part of CHANGELOG are about the version that this is."""
    real = re.search(r'^version = "([\d.]+)"', read("Cargo.toml"), re.MULTILINE)[1]
    told = {"README.md": re.search(r"^Version ([\d.]+)\. ", read("README.md"), re.MULTILINE),
            "CHANGELOG.md": re.search(r"^## ([\d.]+)", read("CHANGELOG.md"), re.MULTILINE)}
    none([f"{name} is about {found and found[1]}, and not {real}" for name, found in told.items()
          if not found or found[1] != real])
    return real


def driver():
    """The page of the driver explains messages that the driver has, and all of its counters."""
    page, code = read(DRIVER), "".join(read(name) for name in sources()
                                       if name.startswith("src/") and name.endswith(".rs"))
    code = re.sub(r"\\\n\s*", "", code)
    # What stands for a number, a name or an error in a message.
    shown = re.compile(r"domain \d+(?:'s)?|tpm\d|TPM [12]\.[02]|\(\.\.\.\)|\.\.\.")
    messages = re.findall(r'^"(.+)"$', page, re.MULTILINE)
    wrong = [f"no message of the driver is '{message}'" for message in messages
             for part in shown.split(message) if part.strip(" ,:") not in code]
    documented = set(re.findall(r"^    ``(\w+)``  +\S", page, re.MULTILINE))
    counted = set(re.findall(r'^    \w+ "(\w+)",$', code, re.MULTILINE))
    wrong += [f"{name} is not in both of {DRIVER} and the driver" for name in documented ^ counted]
    if not messages or not counted:
        raise Failure(f"{len(messages)} messages and {len(counted)} counters")
    none(wrong)
    return f"{len(messages)} messages, {len(counted)} counters"


def one_check():
    """The page about the path of one check quotes lines that are there, of few enough files."""
    path = {item[0].astext(): "\n".join(text.astext() for text in item.findall(nodes.literal_block))
            for item in parsed(ONE_CHECK).findall(nodes.definition_list_item)}
    if not path or len(path) > MOST_FILES or not all(path.values()):
        raise Failure(f"{ONE_CHECK} has {len(path)} files, and should quote at least one line of "
                      f"each of up to {MOST_FILES}")
    none([f"{name} has no line with '{line.strip()}'" for name, quotes in path.items()
          for line in quotes.splitlines() if line.strip() not in read(name)])
    return f"{len(path)} files"


def recipes():
    """README's commands for a TPM 2.0 do what it says, as they are printed: on a swtpm, with what
    is left in the TPM flushed as /dev/tpmrm0 does it. The secret opens, and no more when the PCR
    has changed."""
    section = read("README.md").partition("\n## Recipes\n")[2].partition("\n## ")[0]
    lines = [line for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
             for line in block.splitlines() if re.search(r"\btpm2_", line)]
    extend = [line for line in lines if line.startswith("tpm2_pcrextend ")]
    if not extend or not lines[-1].startswith("tpm2_unseal "):
        raise Failure(f"the recipes do not extend a PCR, or do not end in tpm2_unseal: {lines}")
    with tempfile.TemporaryDirectory() as folder:
        server = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={folder}", "--flags",
                  "startup-clear", "--server", f"type=unixio,path={folder}/tpm",
                  "--ctrl", f"type=unixio,path={folder}/tpm.ctrl"]
        environment = {**os.environ, "TPM2TOOLS_TCTI": f"swtpm:path={folder}/tpm"}

        def does(line):
            return subprocess.run(["sh", "-ec", f"{line}\ntpm2_flushcontext -Q -t"], cwd=folder,
                                  env=environment, capture_output=True, text=True, check=False,
                                  timeout=60)

        with subprocess.Popen(server, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as tpm:
            try:
                does("for i in $(seq 100); do [ -S tpm ] && break; sleep 0.05; done")
                for line in lines:
                    done = does(line)
                    if done.returncode:
                        raise Failure(f"{line}: {done.stderr}")
                if done.stdout != "secret\n":
                    raise Failure(f"{lines[-1]}: {done.stdout!r}")
                if does(extend[0]).returncode or not does(lines[-1]).returncode:
                    raise Failure("the secret opens though its PCR has changed")
            finally:
                tpm.kill()
    return f"{len(lines)} commands"


def run(report):
    """Runs the suite."""
    report.check("documents", f"no line is wider than {WIDEST} columns", widths)
    report.check("documents", "what documents name is there", links)
    report.check("documents", "the index names every document", index)
    report.check("documents", "README and CHANGELOG are about this version", version)
    report.check("documents", "messages and counters are the driver's", driver)
    report.check("documents", "the path of one check is as its page says", one_check)
    report.check("documents", "README's recipes do what it says", recipes)
    report.check("documents", "README's claims have checks", claimed)


def run_last(report):
    """After all other suites of `make test`."""
    report.check("documents", "README's claims were shown", shown, report)
