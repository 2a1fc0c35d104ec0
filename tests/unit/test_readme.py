# SPDX-License-Identifier: GPL-2.0
"""README's commands are read as they are printed, and counted."""

import unittest

from testbed import readme
from testbed.report import Failure

README = """## Give your guest a TPM
```sh
# in the guest, then shut it down
apt install -y ./module.deb
# in dom0
apt install -y ./daemon.deb
{more}xl create guest.cfg
# in the guest
tpm2_getrandom 16
```
"""


class Readme(unittest.TestCase):
    """What is found in a made-up one, and in the real one."""

    def test_commands(self):
        dom0, guest = readme.commands(README.format(more="echo a\n"))
        self.assertEqual(dom0, ["apt install -y ./daemon.deb", "echo a", "xl create guest.cfg"])
        self.assertEqual(guest, ["apt install -y ./module.deb", "tpm2_getrandom 16"])
        self.assertEqual(len(sum(readme.commands(), [])), readme.MOST_COMMANDS)

    def test_one_too_many(self):
        with self.assertRaisesRegex(Failure, "6 commands, not at most 5"):
            readme.commands(README.format(more="echo a\necho b\n"))

    def test_nothing_to_try(self):
        with self.assertRaises(Failure):
            readme.commands(README.format(more="").replace("tpm2_getrandom", "ls"))
