# SPDX-License-Identifier: GPL-2.0
"""The picture of a terminal."""

import unittest
from xml.etree import ElementTree

from testbed.picture import COLUMNS, Picture

TEXT = "{http://www.w3.org/2000/svg}text"


class TestPicture(unittest.TestCase):
    """What is in it."""

    def test_everything_is_shown_in_its_order(self):
        """Marks of XML are text, long commands are broken, long lines of output are cut."""
        picture = Picture()
        picture.add("one", "echo '<a>' & " + "word " * 40, ["a < b", "", "\tc", "x" * 300])
        picture.add("two", "true", [])
        root = ElementTree.fromstring(picture.svg())
        lines = [element.text for element in root.iter(TEXT)]
        self.assertEqual(lines[0], "# one")
        self.assertTrue(lines[1].startswith("$ echo '<a>' & word"))
        self.assertEqual(lines[-5:], ["a < b", "        c", "x" * COLUMNS, "# two", "$ true"])
        self.assertTrue(all(len(line) <= COLUMNS for line in lines))
        bottom = max(int(element.get("y")) for element in root.iter(TEXT))
        self.assertLess(bottom, int(root.get("height")))


if __name__ == "__main__":
    unittest.main()
