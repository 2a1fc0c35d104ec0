# SPDX-License-Identifier: GPL-2.0
"""The instruments that count leaks, by what a guest and dom0 are made to print."""

import unittest
from unittest import mock

from testbed import backend_resources, guest_resources, wait
from testbed.report import Failure

GUEST = {
    "TPMs": "tpm0",
    "devices": "vtpm-0",
    "interrupts": "1",
    "grants": " ".join(map(str, range(9, 41))),
    "users of the module": "1",
    "slab KiB": "9000",
    "free KiB": "300000",
}
DOM0 = {"ring-ref": "8", "event channels": "5", "mapped grants": "1"}
LOOK = {
    "fd /dev/xen/gntdev": "",
    "grants": "1",
    "xen-vtpmd": "2",
    "swtpm": "1",
    "swtpm_setup": "0",
    "zombies": "0",
    "dying": "0",
    "ports": "1",
}


class FakeMachine:
    """Dom0 prints this."""

    def __init__(self, **changes):
        self.changes = changes

    def must(self, _):
        """What a script prints."""
        return "".join(f"{name}: {value}\n" for name, value in {**DOM0, **self.changes}.items())


class FakeGuest:
    """A guest prints this."""

    name = "guest"

    def __init__(self, dom0=None, **changes):
        self.machine, self.changes = FakeMachine(**(dom0 or {})), changes

    def must(self, _):
        """What a script prints."""
        return "".join(f"{name}: {value}\n" for name, value in {**GUEST, **self.changes}.items())


class Daemon:
    """Dom0 prints this of the daemon."""

    def __init__(self, **changes):
        self.changes = changes

    def must(self, _):
        """What a script prints."""
        return "".join(
            f"{name} {value}".rstrip() + "\n" for name, value in {**LOOK, **self.changes}.items()
        )


class OfTheGuest(unittest.TestCase):
    """What a guest holds."""

    def test_a_connected_vtpm_is_seen(self):
        self.assertEqual(guest_resources.take(FakeGuest())["grants"], "8-40")

    def test_an_instrument_that_shows_nothing_fails(self):
        for name in (
            "interrupts",
            "users of the module",
            "TPMs",
            "devices",
            "slab KiB",
            "free KiB",
        ):
            for nothing in ("0", "") if name not in ("TPMs", "devices") else ("",):
                with self.subTest(name), self.assertRaisesRegex(Failure, "do not measure"):
                    guest_resources.take(FakeGuest(**{name: nothing}))
        for name in ("event channels", "mapped grants"):
            with self.subTest(name), self.assertRaisesRegex(Failure, "do not measure"):
                guest_resources.take(FakeGuest(dom0={name: "0"}))

    def test_a_lost_grant_is_a_leak(self):
        before = guest_resources.take(FakeGuest())
        with mock.patch.object(guest_resources, "PATIENCE", 0), mock.patch.object(
            wait.time, "sleep"
        ), self.assertRaisesRegex(Failure, "grants 8-40 before, 9-41 now"):
            guest_resources.same(
                before, FakeGuest(dom0={"ring-ref": "9"}, grants=" ".join(map(str, range(10, 42))))
            )

    def test_nothing_lost(self):
        self.assertIn(
            "grants 8-40 before, 8-40 now",
            guest_resources.same(guest_resources.take(FakeGuest()), FakeGuest()),
        )


class OfTheBackend(unittest.TestCase):
    """What the daemon holds."""

    def test_a_connected_vtpm_is_seen(self):
        self.assertEqual(backend_resources.holdings(Daemon(), 1)["grants"], 1)

    def test_an_instrument_that_shows_nothing_fails(self):
        for name in ("grants", "ports", "swtpm", "xen-vtpmd"):
            with self.subTest(name), self.assertRaisesRegex(Failure, "do not measure"):
                backend_resources.holdings(Daemon(**{name: "0"}), 1)

    def test_idle_it_holds_nothing(self):
        self.assertEqual(
            backend_resources.holdings(Daemon(grants="0", ports="0", swtpm="0"))["swtpm"], 0
        )

    def test_a_descriptor_more_is_a_leak(self):
        before = backend_resources.holdings(Daemon())
        with mock.patch.object(wait.time, "sleep"), self.assertRaisesRegex(
            Failure, "fd /a: 0 before, 1 now"
        ):
            backend_resources.same(before, Daemon(**{"fd /a": ""}), 0)


if __name__ == "__main__":
    unittest.main()
