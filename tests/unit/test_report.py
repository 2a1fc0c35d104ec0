# SPDX-License-Identifier: GPL-2.0
"""What the report says, by checks that are made up."""

import json
import os
import tempfile
import unittest
from unittest import mock
from xml.etree import ElementTree

from suites import deep, host, proof, scenarios
from testbed import report as reports
from testbed import wait
from testbed.guest import Guest
from testbed.report import Failure, Noted, Report, Skip
from tools.steps import StepError


def raising(error):
    """A check that ends so."""
    def check():
        raise error
    return check


class OfChecks(unittest.TestCase):
    """Each in a directory of its own, and silent."""

    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        for patch in (
            mock.patch.object(reports.steps, "REPORT", self.folder.name),
            mock.patch("builtins.print"),
            mock.patch.dict(os.environ, {"XT_COMMIT": "abc-dirty"}),
        ):
            patch.start()
            self.addCleanup(patch.stop)

    def written(self, name="tests"):
        """The report as JSON, and its Markdown."""
        with open(f"{self.folder.name}/{name}.json", encoding="utf-8") as file:
            found = json.load(file)
        with open(f"{self.folder.name}/{name}.md", encoding="utf-8") as file:
            return found, file.read()

    def test_interrupted_until_it_ends(self):
        report = Report("tests", "SCENARIOS=x")
        self.assertIn("interrupted", self.written()[1])
        report.check("s", "one", lambda: "fine")
        found, text = self.written()
        self.assertEqual(
            (found["state"], found["commit"], found["selection"]),
            ("interrupted", "abc-dirty", "SCENARIOS=x"),
        )
        self.assertEqual(found["checks"][0]["detail"], "fine")
        self.assertIn("interrupted", text)
        report.end()
        found, text = self.written()
        self.assertEqual(found["state"], "complete")
        self.assertNotIn("interrupted", text)
        for line in ("commit: abc-dirty", "selection: SCENARIOS=x", "host: ", "began: "):
            self.assertIn(line, text)

    def test_an_older_report_does_not_stay(self):
        first = Report("tests")
        first.check("s", "old", lambda: "")
        first.end()
        Report("tests")
        found, _ = self.written()
        self.assertEqual((found["checks"], found["state"]), ([], "interrupted"))

    def test_any_exception_is_that_checks_failure(self):
        report = Report("tests")
        for error in (
            Failure("a"),
            StepError("b"),
            KeyError("c"),
            OSError(28, "d"),
            TypeError("e"),
            IndexError("f"),
        ):
            self.assertFalse(report.check("s", "bad", raising(error)))
        self.assertTrue(report.check("s", "good", lambda: ""))
        self.assertEqual(report.totals(), "1 passed, 6 failed, 0 skipped")
        self.assertIn("KeyError", self.written()[1])

    def test_skips_are_failures_but_for_a_list(self):
        report = Report("tests")
        self.assertTrue(report.check("s", "guest: trusted_keys", raising(Skip("no option"))))
        report.check("s", "guest: tpm2_nv", raising(Skip("not today")))
        self.assertEqual(report.totals(), "0 passed, 1 failed, 1 skipped")
        other = Report("compare")
        other.check("s", "guest: tpm2_nv", raising(Skip("not today")))
        self.assertEqual(other.totals(), "0 passed, 0 failed, 1 skipped")

    def test_noted_is_neither(self):
        report = Report("tests")
        self.assertTrue(report.check("s", "the C driver", raising(Noted("bad: hangs"))))
        self.assertEqual(report.totals(), "0 passed, 0 failed, 0 skipped, 1 noted")

    def test_junit_is_well_formed(self):
        report = Report("tests")
        report.check("s", 'a "name" <&>', raising(Failure("line\nwith \x1b[1m and <&>\"")))
        tree = ElementTree.parse(f"{self.folder.name}/tests.xml").getroot()
        self.assertEqual((tree.get("tests"), tree.get("failures")), ("1", "1"))
        self.assertEqual(tree[0].get("name"), 'a "name" <&>')

    def test_a_bar_does_not_break_the_table(self):
        report = Report("tests")
        report.check("s", "x", lambda: "a | b")
        self.assertIn("| a \\| b |", self.written()[1])

    def test_cargo_tests_that_skip_are_named(self):
        report, text = Report("tests"), """
---- a::quiet stdout ----
something else

---- b::skips stdout ----
a line
SKIPPED: not root

test result: ok. 3 passed; 0 failed
"""
        self.assertEqual(host.count_tests(report, "cargo test", text), "2 tests")
        check, = self.written()[0]["checks"]
        self.assertEqual((check["name"], check["status"]), ("cargo test: b::skips", "fail"))
        with self.assertRaisesRegex(Failure, "ran no test"):
            host.count_tests(report, "cargo test", "test result: ok. 0 passed; 0 failed")


class Hung(unittest.TestCase):
    """Which way of finding bugs did not end."""

    def test_the_one_that_was_begun_last(self):
        log = "     Running unittests src/protocol/lib.rs (/b/deps/xen_tpm_protocol-0a1b)\n"
        self.assertEqual(proof.hung(log), "unit and property tests")
        log += "     Running tests/orders.rs (/b/deps/orders-0a1b)\n"
        self.assertEqual(proof.hung(log), "all orders")

    def test_a_build_that_does_not_end_finds_nothing(self):
        with self.assertRaisesRegex(Failure, "the build"):
            proof.hung("   Compiling xen-tpm-model v0.1.0\n")


class Waiting(unittest.TestCase):
    """The one loop that polls."""

    def test_returns_what_is_true(self):
        answers = iter([None, "", 7])
        self.assertEqual(wait.until(lambda: next(answers), 5, "nothing", pause=0), 7)

    def test_says_what_it_waited_for(self):
        with self.assertRaisesRegex(Failure, "no guest"):
            wait.until(lambda: False, 0.01, "no guest", pause=0)

    def test_slowness_stretches(self):
        with mock.patch.object(wait.HOST, "chosen", 2):
            self.assertEqual(wait.stretch(10), 20)

    def test_a_slow_boot_is_measured(self):
        with mock.patch.multiple(wait.HOST, chosen=0, measured=1), mock.patch("builtins.print"):
            for seconds, wanted in ((12, 1), (25, 2), (45, 3), (20, 3), (1000, wait.MOST)):
                wait.booted(seconds)
                self.assertEqual(wait.slowness(), wanted)

    def test_a_guest_boots_the_same_on_a_slow_host(self):
        machine = mock.Mock()
        for slowness in (1, 3):
            with mock.patch.multiple(wait.HOST, chosen=0, measured=slowness):
                Guest(machine, "guest").write_config()
        first, second = (call.args[0] for call in machine.must.call_args_list)
        self.assertEqual(first, second)


class Shares(unittest.TestCase):
    """PART=n/m."""

    UNITS = {name: weight for weight, name in enumerate("abcdefghij", 1)}

    def test_all_parts_are_all(self):
        parts = [deep.share(self.UNITS, f"{number}/4") for number in range(1, 5)]
        self.assertEqual(sorted(name for part in parts for name in part), sorted(self.UNITS))
        loads = [sum(self.UNITS[name] for name in part) for part in parts]
        self.assertLessEqual(max(loads) - min(loads), 4)

    def test_without_part_it_is_all(self):
        self.assertEqual(deep.share(self.UNITS, ""), set(self.UNITS))

    def test_minutes_are_of_what_there_is(self):
        units = deep.units_of(deep.suites_of(None, [], None), scenarios.selected("deep"))
        self.assertLessEqual(set(deep.MINUTES), set(units))
        minutes = round(sum(units.values()), 6)
        self.assertLessEqual(minutes, 180, "make test-deep is to take three hours")

    def test_a_kernel_is_built_in_one_part(self):
        suites = deep.suites_of(None, [], None)
        units = deep.units_of(suites, scenarios.selected("deep"))
        self.assertIn("intree kernel", units)
        self.assertNotIn("intree", units)
        self.assertFalse([name for name in units if name.endswith(("-debug", "-race"))])

    def test_nonsense_is_refused(self):
        for part in ("0/4", "5/4", "1", "x/y", "1/0"):
            with self.assertRaises(StepError):
                deep.share(self.UNITS, part)


if __name__ == "__main__":
    unittest.main()
