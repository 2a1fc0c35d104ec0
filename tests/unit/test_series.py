# SPDX-License-Identifier: GPL-2.0
"""What the series cuts out of the driver's source, on made-up source."""

import unittest

from suites import series
from tools.series import source
from tools.steps import StepError

TEXT = """\
struct Vtpm {
    registered: bool,
    #[cfg(CONFIG_X)]
    #[pin]
    enable: DelayedWork<Vtpm, ENABLE>,
}

/// Is not there without it.
#[cfg(CONFIG_X)]
fn enable(this: &Vtpm) -> Result<bool> {
    other(&[1, 2]); // Not the end: }
    Ok(true)
}

fn run(this: &Vtpm) {
    first();
    #[cfg(CONFIG_X)]
    flush::<_, { ENABLE }>(this);
    #[cfg(CONFIG_Y)]
    second();
}
"""
LEFT = """\
struct Vtpm {
    registered: bool,
}

fn run(this: &Vtpm) {
    first();
    #[cfg(CONFIG_Y)]
    second();
}
"""


CLIPPY = """\
warning: unsafe block missing a safety comment
   --> /cache/source/rust/kernel/cpufreq.rs:700:26
    |
warning: this is too complex
  --> /cache/source/rust/kernel/tpm.rs:7:5
    |
warning: 2 warnings emitted
"""


class Findings(unittest.TestCase):
    """Clippy's findings in the series, and in the kernel."""

    def test_those_of_the_series(self):
        found = series.in_files(CLIPPY, ["rust/kernel/tpm.rs", "drivers/char/tpm/Kconfig"])
        wanted = "warning: this is too complex in /cache/source/rust/kernel/tpm.rs"
        self.assertEqual(found, [wanted])
        self.assertEqual(series.in_files(CLIPPY, ["rust/kernel/xen.rs", "el/tpm.rs"]), [])


class WithoutCfg(unittest.TestCase):
    """Fields, items and statements go with their attributes and comments."""

    def test_what_is_left(self):
        self.assertEqual(source.without_cfg(TEXT, "CONFIG_X"), LEFT)

    def test_nothing_to_cut(self):
        self.assertEqual(source.without_cfg(TEXT, "CONFIG_Z"), TEXT)

    def test_no_end(self):
        with self.assertRaises(StepError):
            source.without_cfg("#[cfg(CONFIG_X)]\nfn endless() {\n", "CONFIG_X")


class Cut(unittest.TestCase):
    """A text that has changed is an error."""

    def test_item(self):
        table = {"a.rs": ("fn two(",)}
        text = "fn one() {}\n\n/// Goes.\n#[inline]\nfn two() {\n    a(1);\n}\n\nfn three() {}\n"
        self.assertEqual(source.cut("a.rs", text, table), "fn one() {}\n\nfn three() {}\n")
        for other in ("fn one() {}\n", text + text):
            with self.assertRaises(StepError):
                source.cut("a.rs", other, table)

    def test_once(self):
        table = {"a.rs": (("two\n", ""),)}
        self.assertEqual(source.cut("a.rs", "one\ntwo\n", table), "one\n")
        self.assertEqual(source.cut("b.rs", "one\ntwo\n", table), "one\ntwo\n")
        for text in ("one\n", "two\ntwo\n"):
            with self.assertRaises(StepError):
                source.cut("a.rs", text, table)


class Wrapped(unittest.TestCase):
    """Prototypes keep C's line length, aligned with their parenthesis."""

    def test_long(self):
        name = (
            "void a_function_with_a_name(struct device *dev, u32 ordinal, u8 locality, u32 request)"
        )
        lines = source.wrapped(f"{name};\nbool short(void);\n").splitlines()
        self.assertEqual(lines[1], "\t\t\t    u32 request);")
        self.assertEqual(lines[2], "bool short(void);")
        self.assertTrue(all(len(line.expandtabs()) <= 80 for line in lines))


if __name__ == "__main__":
    unittest.main()
