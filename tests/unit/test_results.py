# SPDX-License-Identifier: GPL-2.0
"""Reports that become results."""

import json
import tempfile
import unittest

from docutils import core

import results
from tools.steps import StepError

CHECKS = [{"suite": "testbed/boots", "name": "guest: *odd* `name", "status": "pass", "seconds": 1.0,
           "detail": ""},
          {"suite": "testbed/boots", "name": "guest: reads", "status": "fail", "seconds": 2.0,
           "detail": "first\nlast |line_" + " long" * 30}]


def report(name, **more):
    """A made-up report."""
    return {"report": name, "selection": "all", "commit": "0123456", "host": "2 processors",
            "began": "2026-01-02 03:04 UTC", "state": "complete", "totals": "1 passed, 1 failed",
            "checks": CHECKS, **more}


class Results(unittest.TestCase):
    """What is made of them."""

    def test_a_page_is_a_document_with_commit_host_and_failures(self):
        text = results.page("tests", [report("tests")])
        core.publish_doctree(text, settings_overrides={"halt_level": 2})
        for wanted in ("0123456", "2 processors", "2026-01-02", "testbed/boots, 1, 1, 0, 0, 3",
                       "guest: reads", "line"):
            self.assertIn(wanted, text)
        self.assertNotIn("in no commit", text)
        self.assertLess(max(map(len, text.splitlines())), 100)
        dirty = results.page("tests", [report("tests", commit="0123456-dirty")])
        self.assertIn("in no commit", dirty)

    def test_parts_of_one_commit_are_one_page_that_says_what_is_missing(self):
        parts = [report("deep-part-1-of-3"), report("deep-part-3-of-3", state="interrupted")]
        text = results.page("deep", parts)
        self.assertIn("part 2 of 3 was **not run**", text)
        self.assertIn("deep-part-3-of-3 was **interrupted**", text)
        self.assertIn("testbed/boots, 2, 2, 0, 0, 6", text)

    def test_parts_of_two_runs_are_no_result(self):
        for other in (report("deep-part-2-of-2", commit="7654321"), report("deep-part-2-of-3"),
                      report("deep")):
            with self.assertRaises(StepError):
                results.page("deep", [report("deep-part-1-of-2"), other])

    def test_what_somebody_selected_is_no_result(self):
        with tempfile.TemporaryDirectory() as folder:
            for one in (report("tests", selection="SCENARIOS=boots"), report("demo"),
                        report("deep-part-1-of-2", selection="PART=1/2"), report("compare")):
                with open(f"{folder}/{one['report']}.json", "w", encoding="utf-8") as file:
                    json.dump(one, file)
            found = results.reports(folder)
            self.assertEqual({kind: len(parts) for kind, parts in found.items()},
                             {"deep": 1, "compare": 1})
