# SPDX-License-Identifier: GPL-2.0
"""Which kernels a run takes, by an index of the archive that is made up."""

import json
import os
import tempfile
import unittest
from unittest import mock

from tools.arch import ARCHES
from tools.kernels import common, prepare
from tools.steps import StepError

INDEX = {
    "linux-headers-7.1.9+deb13-amd64": ["7.1.9-1"],
    "linux-source-7.1": ["7.1.9-1"],
    "linux-headers-7.2.3+deb13-amd64": ["7.2.3-1"],
    "linux-headers-7.2.12+deb13-amd64": ["7.2.12-1"],
    "linux-headers-7.2.13+deb13-amd64": ["7.2.13-1"],
    "linux-source-7.2": ["7.2.12-1", "7.2.3-1"],
    "linux-binary-7.2.12+deb13-amd64": ["7.2.12-1"],
    "linux-modules-7.2.12+deb13-amd64": ["7.2.12-1"],
    "linux-headers-7.10.1+deb13-amd64": ["7.10.1-1"],
    "linux-source-7.10": ["7.10.1-1"],
    "linux-binary-7.10.1+deb13-amd64": ["7.10.1-1"],
    "linux-headers-7.3.4+deb13-amd64": ["7.3.4-1"],
    "linux-source-7.3": ["7.3.4-1"],
    "linux-binary-7.3.4+deb13-amd64": ["7.3.4-1"],
    "linux-modules-7.3.4+deb13-amd64": ["7.3.4-1"],
    "linux-headers-7.2.12+deb13-cloud-amd64": ["7.2.12-1"],
    "linux-headers-7.2.12+deb13-arm64": ["7.2.12-1"],
    "linux-headers-7.2.12+deb13-arm64-16k": ["7.2.12-1"],
    "linux-headers-7.3.4+deb13-arm64": ["7.3.4-1"],
    "linux-headers-7.3.4+deb13-rt-arm64": ["7.3.4-1"],
}


def apt_cache(*command):
    """apt-cache, as resolve() calls it."""
    if command[1] == "pkgnames":
        return "\n".join(name for name in INDEX if name.startswith(command[2]))
    return "".join(f"{command[2]} | {version} | archive\n" for version in INDEX.get(command[2], []))


class Versions(unittest.TestCase):
    """resolve(), chosen() and what a versions.lock says."""

    def resolve(self):
        """The kernels of the made-up index."""
        with mock.patch.object(prepare, "output", apt_cache):
            return prepare.resolve()

    def test_newest_of_each_series_that_has_its_source(self):
        self.assertEqual([kernel.release for kernel in self.resolve()],
                         ["7.2.12+deb13-amd64", "7.3.4+deb13-amd64", "7.10.1+deb13-amd64"])

    def test_larger_pages_are_a_series_of_their_own(self):
        with mock.patch.object(prepare, "TARGET", ARCHES["arm64"]):
            kernels = self.resolve()
            self.assertEqual([kernel.series for kernel in prepare.chosen(kernels)],
                             ["7.3", "7.2", "7.2-16k"])
            self.assertEqual(kernels[1].release, "7.2.12+deb13-arm64-16k")
            self.assertEqual((kernels[1].plain_series, kernels[1].number), ("7.2", (7, 2)))

    def test_a_short_run_has_the_newest_alone(self):
        with mock.patch.dict(os.environ, XT_SHORT="1"):
            self.assertEqual([kernel.series for kernel in prepare.chosen(self.resolve())], ["7.3"])

    def test_bootable_is_what_has_binary_and_modules(self):
        self.assertEqual([kernel.bootable for kernel in self.resolve()], [True, True, False])

    def test_an_index_without_a_kernel_is_an_error(self):
        with mock.patch.object(prepare, "output", lambda *_: ""), self.assertRaisesRegex(
            StepError, "no linux-headers"
        ):
            prepare.resolve()

    def test_newest_known_first_unknown_last(self):
        self.assertEqual(
            [kernel.series for kernel in prepare.chosen(self.resolve())], ["7.3", "7.2", "7.10"]
        )

    def test_kernel_chooses_the_first(self):
        with mock.patch.dict(os.environ, {"KERNEL": "7.2"}):
            self.assertEqual(
                [kernel.series for kernel in prepare.chosen(self.resolve())], ["7.2", "7.3", "7.10"]
            )

    def test_a_kernel_that_is_not_there(self):
        with mock.patch.dict(os.environ, {"KERNEL": "7.4"}), self.assertRaisesRegex(
            StepError, "has 7.3, 7.2, 7.10"
        ):
            prepare.chosen(self.resolve())

    def test_lock_comes_back(self):
        packages = {"rustc": "1.85", "swtpm": "0.7"}
        with tempfile.TemporaryDirectory() as folder, \
                mock.patch.object(prepare, "locked_packages", lambda: dict(packages)), \
                mock.patch.object(prepare.steps, "REPORT", folder):
            prepare.write_lock(self.resolve()[:2], "4.20-1")
            found = prepare.of_lock(f"{folder}/versions.lock")
            self.assertEqual(
                [prepare.Kernel(**fields) for fields in found["kernels"]], self.resolve()[:2]
            )
            self.assertEqual(found["xen"], "4.20-1")
            packages["rustc"] = "1.90"
            with self.assertRaisesRegex(StepError, "rustc 1.85 .here 1.90"):
                prepare.of_lock(f"{folder}/versions.lock")

    def test_a_file_that_is_no_lock(self):
        with tempfile.NamedTemporaryFile("w") as file, mock.patch.object(
            prepare, "locked_packages", dict
        ):
            file.write("hello\n")
            file.flush()
            with self.assertRaisesRegex(StepError, "is no versions.lock"):
                prepare.of_lock(file.name)


class NoNetwork(unittest.TestCase):
    """An archive that does not answer."""

    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        for patch in (
            mock.patch.object(prepare, "CACHE", self.folder.name),
            mock.patch.object(prepare, "output", lambda *_: "1.85"),
            mock.patch.object(
                prepare, "update_index", mock.Mock(side_effect=StepError("no answer"))
            ),
            mock.patch.dict(os.environ, {"XT_VERSIONS": "", "COLD": ""}),
        ):
            patch.start()
            self.addCleanup(patch.stop)
        self.known = f"{self.folder.name}/resolved-1.85-{os.stat('/').st_ino}.json"

    def test_nothing_known_is_an_error(self):
        with self.assertRaisesRegex(StepError, "no answer"):
            prepare.resolved()
        prepare.update_index.assert_called_once_with(12)

    def test_what_was_known_is_used(self):
        with open(self.known, "w", encoding="ascii") as file:
            json.dump({"kernels": [], "xen": "4.20"}, file)
        os.utime(self.known, (0, 0))
        with mock.patch("builtins.print") as said:
            self.assertEqual(prepare.resolved()["xen"], "4.20")
        self.assertRegex(
            " ".join(str(call) for call in said.call_args_list),
            r"no answer: going on .* \d+ days ago",
        )


class OneFails(unittest.TestCase):
    """A kernel that cannot be prepared is left out, with its reason."""

    def test_the_others_go_on(self):
        kernels = [prepare.Kernel(f"7.{n}.1", f"7.{n}", f"7.{n}.1-1", True) for n in (2, 3)]

        def prepare_kernel(kernel):
            if kernel.series == "7.3":
                raise StepError("another rustc")

        with tempfile.TemporaryDirectory() as folder, mock.patch.multiple(
            prepare,
            CACHE=folder,
            prepare_kernel=prepare_kernel,
            xen_image=lambda _: "xen",
            forget_old=lambda _: None,
            write_lock=lambda *_: None,
            resolved=lambda: {"kernels": [vars(kernel) for kernel in kernels], "xen": "4"},
        ), mock.patch.dict(os.environ, {"COLD": ""}), mock.patch("builtins.print"):
            have = prepare.prepare()
        self.assertEqual([kernel.series for kernel in have.kernels], ["7.2"])
        self.assertEqual(have.failed, {"7.3.1": "another rustc"})


class Xen(unittest.TestCase):
    """The hypervisor among its package's files."""

    def test_one_of_them_is_the_image(self):
        name = f"xen-4.20-{prepare.TARGET.name}"
        others = [f"{name}.config", f"{name}.efi"]
        for image in (name, f"{name}.gz"):
            self.assertEqual(prepare.xen_member([*others, image]), image)
        for wrong in (others, [name, f"{name}.gz"]):
            with self.assertRaisesRegex(StepError, "not one image"):
                prepare.xen_member(wrong)


class Renamed(unittest.TestCase):
    """Options of a fragment that did not come out."""

    def lacking(self, config, fragment):
        """common.lacking() of texts."""
        with tempfile.TemporaryDirectory() as folder:
            for name, text in (("config", config), ("fragment", fragment)):
                with open(f"{folder}/{name}", "w", encoding="ascii") as file:
                    file.write(text)
            return common.lacking(f"{folder}/config", f"{folder}/fragment")

    def test_a_new_name_will_do(self):
        self.assertEqual(self.lacking("CONFIG_SYSCTL=y\n", "CONFIG_PROC_SYSCTL=y\n"), [])

    def test_neither_name(self):
        self.assertEqual(
            self.lacking("CONFIG_X=y\n", "CONFIG_PROC_SYSCTL=y\n"), ["CONFIG_PROC_SYSCTL=y"]
        )

    def test_an_option_that_is_gone(self):
        self.assertEqual(
            self.lacking("CONFIG_A=y\n", "CONFIG_A=y\nCONFIG_B=y\n# CONFIG_C is not set\n"),
            ["CONFIG_B=y"],
        )


if __name__ == "__main__":
    unittest.main()
