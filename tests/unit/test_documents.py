# SPDX-License-Identifier: GPL-2.0
"""The checks of documents, on made-up ones."""

import types
import unittest
from unittest import mock

from suites import documents
from testbed.report import Failure

ROWS = {"gives": ("test", "boots: tpm_is_found, reads"), "moves": ("deep", "moves: xl save")}
GUEST = "check_tpm_is_found() {\n}\n\ncheck_reads() {\n}\n"
SCENARIOS = {"boots": ("test",), "moves": ("deep",)}


def table(rows):
    """The page with the claims."""
    bar = "=" * 10
    lines = [f"{name:<10}  {run:<10}  {checks}" for name, (run, checks) in rows.items()]
    bars = f"{bar}  {bar}  {bar * 4}"
    return "\n".join([bars, f"{'claim':<10}  {'run':<10}  checks", bars, *lines, bars, ""])


def readme(*claims):
    """A README that marks these."""
    return "".join(f"It does this.<!-- claim: {claim} -->\n" for claim in claims)


class Documents(unittest.TestCase):
    """What the checks make of the files that there are."""

    def setUp(self):
        self.files = {
            "README.md": readme(*ROWS), documents.CLAIMS: table(ROWS),
            "tests/guest/tpm.sh": GUEST,
            "tests/scenarios/moves.py": 'bed.record("xl save", save)\n',
        }
        found = {name: types.SimpleNamespace(sets=sets, module=types.SimpleNamespace(
            __file__=f"{documents.TOP}/tests/scenarios/{name}.py"))
            for name, sets in SCENARIOS.items()}
        for target, name, replacement in (
                (documents, "read", self.files.__getitem__),
                (documents, "sources", lambda: list(self.files)),
                (documents.scenarios, "known", lambda: found),
                (documents.os.path, "exists", lambda path: True)):
            patch = mock.patch.object(target, name, replacement)
            patch.start()
            self.addCleanup(patch.stop)

    def fails(self, function, *arguments, why):
        """It fails, and says why."""
        with self.assertRaises(Failure) as raised:
            function(*arguments)
        self.assertIn(why, str(raised.exception))

    def test_claims_that_have_checks_pass(self):
        self.assertIn("2 claims, 3 checks", documents.claimed())

    def test_a_claim_without_a_check_fails(self):
        self.files["README.md"] = readme(*ROWS, "flies")
        self.fails(documents.claimed, why="README claims flies")

    def test_a_check_of_no_claim_fails(self):
        self.files["README.md"] = readme("gives")
        self.fails(documents.claimed, why="moves, which README does not claim")

    def test_a_check_that_is_gone_fails(self):
        self.files["tests/guest/tpm.sh"] = GUEST.replace("check_reads", "check_read")
        self.fails(documents.claimed, why="no check is called reads")
        self.files["tests/guest/tpm.sh"] = GUEST
        self.files["tests/scenarios/moves.py"] = 'bed.record("xl restore", restore)\n'
        self.fails(documents.claimed, why="has no check 'xl save'")

    def test_a_check_of_another_run_fails(self):
        self.files[documents.CLAIMS] = table({**ROWS, "moves": ("test", "moves: xl save")})
        self.fails(documents.claimed, why="moves belongs to deep, and not to test")

    def test_what_was_not_made_was_not_shown(self):
        found, reads = (("testbed/boots", f"guest: {name}", "pass")
                        for name in ("tpm_is_found", "reads"))
        for checks, good in (((found, reads), True), ((found,), False),
                             ((found, (*reads[:2], "fail")), False),
                             ((found, ("testbed/boots-7.2", *reads[1:])), True),
                             ((found, ("testbed/other", *reads[1:])), False)):
            report = types.SimpleNamespace(
                checks=[dict(zip(("suite", "name", "status"), check)) for check in checks])
            if good:
                self.assertIn("2 checks of 1 claims", documents.shown(report))
            else:
                self.fails(documents.shown, report, why="reads was not made")

    def test_a_wide_line_fails_and_a_row_of_markdown_does_not(self):
        self.files["README.md"] = f"| {'cell ' * 30} |\n{'x' * 120}\n"
        documents.widths()
        self.files["README.md"] += "word " * 30
        self.fails(documents.widths, why="README.md:3: ")

    def test_a_file_that_is_named_has_to_be_there(self):
        text = ("[here](other.md), `tests/guest/tpm.sh`, `tests/DATE/x`, `make test`, "
                "[there](https://example.org/), `src/`")
        self.assertEqual(list(documents.named_files("docs/README.md", text)),
                         ["docs/other.md", "tests/guest/tpm.sh", "src"])
        text = ("`here <a.rst>`_, ``src/x.rs``, ``src/x.rs:7 --all``, Documentation/b.rst. "
                "``make test`` ``Documentation/DATE/`` ``tests/guest/``\n.. image:: c.svg\n")
        self.assertEqual(list(documents.named_files("Documentation/index.rst", text)),
                         ["Documentation/a.rst", "Documentation/c.svg", "src/x.rs",
                          "Documentation/b.rst", "tests/guest"])

    def test_the_path_of_a_check_quotes_what_is_there(self):
        page = "``tests/guest/tpm.sh``\n    Checks::\n\n        check_reads() {\n"
        self.files[documents.ONE_CHECK] = page
        self.assertEqual(documents.one_check(), "1 files")
        self.files[documents.ONE_CHECK] = page.replace("reads", "writes")
        self.fails(documents.one_check, why="no line with 'check_writes() {'")
        self.files[documents.ONE_CHECK] = "\n".join(
            page.replace("tpm.sh", f"{number}.sh") for number in range(7))
        self.fails(documents.one_check, why="7 files")
