# SPDX-License-Identifier: GPL-2.0
"""How the project's source becomes the kernel tree's: paths, names, what only an out-of-tree module
needs. What is cut out is named here by its text; a text that is not there any more is an error, and
never a patch that looks right."""

import os
import re

from tools.series import rust_use
from tools.sources import read
from tools.steps import StepError

# What of the protocol is any TPM's: the chip's abstraction needs it, and has it there.
OF_ANY_TPM = ("be", "epoch")

# Out of tree these stand in for what the tree has, or will have.
PLAIN = (
    (r"xen_sys::(?:rust_helper_)?", "bindings::"),
    (r"\bpub\(crate\) use module_xenbus_driver;\n", ""),
    (r"\bmacro_rules! module_xenbus_driver", "#[macro_export]\nmacro_rules! module_xenbus_driver"),
    (r"(?<![:\w$])kernel::", "crate::"),
    (r"pub\(crate\) ", "pub "),
)

# What the driver does about faults of the TPM core, which the series mends there: by file, how the
# items, fields and statements begin that are cut out, or a text and what comes in its place.
MENDED = {
    "src/tpm/chip.rs": (
        "let quirk = ",
        "if let (Some(quirk), Some(response)) = ",
        "if attribute.replaces ",
        (
            (
                " What\n        // is removed by name is the core's attribute that this one"
                " replaces, and the link to it;\n        // where there is none nothing happens.\n"
            ),
            "\n",
        ),
        (
            (
                "//! C headers: [`include/linux/tpm.h`](srctree/include/linux/tpm.h),\n"
                "//! [`drivers/char/tpm/tpm.h`](srctree/drivers/char/tpm/tpm.h)\n"
            ),
            "//! C header: [`include/linux/tpm.h`](srctree/include/linux/tpm.h)\n",
        ),
    ),
    "src/tpm/attribute.rs": (
        "const REPLACES: ",
        "pub(super) replaces: ",
        "const { assert!(!A::REPLACES ",
        "replaces: A::REPLACES,",
    ),
    "src/commands.rs": (
        "struct Cancel;",
        "impl Attribute for Cancel ",
        "RawAttribute::new::<Cancel>(),",
    ),
    "src/protocol/mod.rs": ("pub mod quirks;",),
}
# What is compiled only where the core disables chips.
DISABLED = "CONFIG_TCG_TPM2_HMAC"
UNUSED = {("crate", "protocol", "quirks", "Quirk"), ("crate", "tpm", "attribute", "Attribute")}

# The attribute `locality`, which is the last patch.
LOCALITY = {
    "src/commands.rs": ("RawAttribute::new::<Locality>(),",),
    "src/vtpm.rs": ("pub(crate) fn set_locality(",),
    "src/xen_tpmfront.rs": ("mod locality;",),
}
LOCALITY_USED = {("crate", "locality", "Locality")}

# The comments and attributes of an item.
LEADING = r"(?:[ \t]*(?:///.*|#\[.*\])\n)*"


def cut(name, text, *tables):
    """A file's text without what these tables cut out of it."""
    for table in tables:
        for entry in table.get(name, ()):
            item = isinstance(entry, str)
            old = rf"(?m)^[ \t]*{re.escape(entry)}" if item else re.escape(entry[0])
            found = list(re.finditer(old, text))
            if len(found) != 1:
                raise StepError(
                    f"{name} has not, or not once, what {__name__} cuts out of it: {entry!r}"
                )
            if item:
                text = without(text, re.search(rf"(?m)^{LEADING}(?={old[4:]})", text))
            else:
                text = text.replace(*entry)
    return text


def substituted(text, rules):
    """Applies regular expressions."""
    for pattern, new in rules:
        text = re.sub(pattern, new, text)
    return text


def end_of_item(text, at):
    """Where the item, field or statement ends that begins at `at`."""
    depth = angles = 0
    while at < len(text):
        two, one = text[at:at + 2], text[at]
        if two in ("->", "<-", "=>", "//"):
            at = text.index("\n", at) if two == "//" else at + 2
            continue
        if one == '"':
            at = text.index('"', at + 1)
        elif one in "([{":
            depth += 1
        elif one in ")]}":
            depth -= 1
            if depth == 0 and one == "}" and not angles:
                return at + 1
        elif depth == 0 and one in "<>":
            angles += 1 if one == "<" else -1
        elif depth == 0 and not angles and one in ";,":
            return at + 1
        at += 1
    raise StepError(f"an item has no end: {text[:100]!r}")


def without(text, leading):
    """Without the item behind its comments and attributes, which are a match."""
    end = end_of_item(text, leading.end())
    end += text[end : end + 1] == ";"
    end += text[end : end + 1] == "\n"
    # No blank line stays behind where one was before it.
    if text[: leading.start()].endswith("\n\n") and text[end : end + 1] == "\n":
        end += 1
    return re.sub(r"\n\n(\s*\})", r"\n\1", text[: leading.start()] + text[end:])


def without_cfg(text, option):
    """Without what is compiled only with an option."""
    marker = re.compile(rf"(?m)^{LEADING}[ \t]*#\[cfg\({option}\)\]\n{LEADING}")
    while found := marker.search(text):
        text = without(text, found)
    return text


def compat(kernel):
    """What src/xen_sys/compat.rs has for this kernel, as regular expressions."""
    with open(f"{kernel}/Makefile", encoding="utf-8") as file:
        numbers = re.findall(r"^(?:VERSION|PATCHLEVEL) = (\d+)", file.read(), re.MULTILINE)
    new = [int(number) for number in numbers] >= [7, 3]
    found = re.findall(
        r"#\[cfg\((not\()?kernel_7_3\)?\)\]\n.* const (\w+): [^=]*= (.*);",
        read("src/xen_sys/compat.rs"),
    )
    return tuple(
        (rf"(?:crate::)?xen_sys::compat::{name}\b", value)
        for older, name, value in found
        if bool(older) != new
    )


def source(name, suite, *tables):
    """A source file without what the tables cut out. Its unit tests are KUnit's, in a suite of this
    name, rather than Cargo's."""
    suite += "_" + os.path.splitext(os.path.basename(name))[0]
    text = without_cfg(cut(name, read(name), MENDED, *tables), DISABLED)
    return text.replace(
        "#[cfg(test)]\nmod tests {", f"#[::kernel::macros::kunit_tests({suite})]\nmod tests {{"
    )


def modules(room):
    """The modules of a room, src/xen or src/tpm, as its list has them."""
    return re.findall(r"(?m)^pub(?:\(crate\))? mod (\w+);$", read(f"src/{room}/mod.rs"))


def room_list(room, names, extra=()):
    """The file that lists a room's modules, with those of them that are there by now, and with
    these `extra` ones."""
    text = substituted(read(f"src/{room}/mod.rs"), PLAIN)
    lines = "".join(f"pub mod {name};\n" for name in sorted({*names, *extra}))
    return re.sub(r"(?:^pub mod \w+;\n)+", lines, text, flags=re.MULTILINE)


def abstraction(name, room, rules=()):
    """A file of a room as the kernel crate has it."""
    def path(parts):
        if parts in UNUSED:
            return None
        if parts[0] == "kernel":
            parts = ("crate", *parts[1:])
        if parts == ("crate", "xen_sys"):
            return "crate", "bindings"
        if parts[:2] == ("crate", "protocol"):
            return "super", *parts[2:]
        return parts

    return substituted(
        rust_use.rewrite(source(name, f"rust_kernel_{room}"), path), (*rules, *PLAIN)
    )


def driver(name, *tables, unused=(), rules=()):
    """A file of the driver as it is there: the abstractions are the kernel crate's."""
    def path(parts):
        if parts in UNUSED and name == "src/commands.rs" or parts in unused:
            return None
        if parts[:2] == ("crate", "protocol") and parts[2] in OF_ANY_TPM:
            return "kernel", "tpm", *parts[2:]
        if parts == ("crate", "xen_sys", "trace"):
            return "crate", "trace"
        if parts[0] == "super" and name.startswith("src/protocol/") and parts[1] in OF_ANY_TPM:
            return "kernel", "tpm", *parts[1:]
        return (
            ("kernel", *parts[1:]) if parts[:2] in (("crate", "xen"), ("crate", "tpm")) else parts
        )

    text = rust_use.rewrite(source(name, "xen_tpmfront", *tables), path)
    # Paths outside of `use` statements.
    text = substituted(
        text,
        (
            *rules,
            (rf"\bcrate::protocol::({'|'.join(OF_ANY_TPM)})::", r"kernel::tpm::\1::"),
            (r"\bcrate::(xen|tpm)::", r"kernel::\1::"),
        ),
    )
    return (
        re.sub(rf"(?m)^pub mod ({'|'.join(OF_ANY_TPM)});\n", "", text)
        if name == "src/protocol/mod.rs"
        else text
    )


def root(*tables):
    """The driver's crate root: without the rooms that are the kernel's, and with the check of the
    wire's layout against the tree's own header."""
    name = "src/xen_tpmfront.rs"
    text = substituted(
        cut(name, read(name), *tables),
        (
            (r"(?m)^mod (tpm|xen);\n", ""),
            (r"(?m)^mod xen_sys;\n", "mod trace;\n"),
            (r'#\[path = "protocol/mod.rs"\]\n', ""),
            (r"xen::bus::module_xenbus_driver!", "kernel::module_xenbus_driver!"),
            (
                r"\n//!\n//! `Documentation/.*\n",
                "\n//!\n//! `Documentation/security/tpm/xen-tpmfront.rst` describes it.\n",
            ),
        ),
    )
    checks = re.search(
        r"^// The wire's Rust side.*?^};\n", read("src/xen_sys/mod.rs"), re.MULTILINE | re.DOTALL
    )[0]
    return text + "\n" + substituted(checks, (
        (r"use crate::protocol::layout;\n", "use kernel::bindings;\n    use protocol::layout;\n"),
        (r"\btpmif_page\b", "bindings::vtpm_shared_page"),
        (r"\btpmif_state_TPMIF_(\w+)", r"bindings::vtpm_shared_page_state_VTPM_STATE_\1"),
    ))


def helpers(*wanted):
    """The C helpers of src/xen_sys/helpers.c whose names begin so, as the tree's rust/helpers has
    them."""
    found = re.findall(
        r"^([\w ]+ \*?rust_helper_(\w+)\(.*?^}\n)",
        read("src/xen_sys/helpers.c"),
        re.MULTILINE | re.DOTALL,
    )
    return "\n".join("__rust_helper " + text for text, name in found if name.startswith(wanted))


# What C calls these in prototypes.
RUST_TYPES = {"bool": "bool", "void": "()", "u8": "u8", "u32": "u32", "s32": "i32", "u64": "u64",
              "struct device *": "*mut bindings::device"}


def trace():
    """The driver's tracepoints: their header, that of the C file which defines them, that file, and
    what calls it."""
    prototypes = re.findall(
        r"^(\w+) rust_helper_(trace\w*)\(([^)]*)\);\n", read("src/xen_sys/helpers.h"), re.MULTILINE
    )
    functions = "\n".join(
        re.findall(
            r"^\w+ rust_helper_trace\w*\(.*?^}\n",
            read("src/xen_sys/helpers.c"),
            re.MULTILINE | re.DOTALL,
        )
    )
    if not prototypes or functions.count("rust_helper_") != len(prototypes):
        raise StepError("src/xen_sys/helpers.h has not the prototypes of the tracepoints' helpers")
    declared, rust = "", ""
    for result, name, arguments in prototypes:
        arguments = [
            re.fullmatch(r"\s*(.*?\W)(\w+)", argument)
            for argument in arguments.split(",")
            if argument != "void"
        ]
        taken = ", ".join(f"{found[1]}{found[2]}" for found in arguments)
        declared += f"{result} rust_helper_{name}({taken or 'void'});\n"
        end = "" if result == "void" else f" -> {RUST_TYPES[result]}"
        rust += f"    fn rust_helper_{name}(" + ", ".join(
            f"{found[2]}: {RUST_TYPES[found[1].strip()]}" for found in arguments) + f"){end};\n"
    header = (
        "/* SPDX-License-Identifier: GPL-2.0 */\n/* What Rust calls of the driver's tracepoints."
        " */\n#ifndef XEN_TPMFRONT_HELPERS_H\n#define XEN_TPMFRONT_HELPERS_H\n\n#include"
        f" <linux/types.h>\n\nstruct device;\n\n{wrapped(declared)}\n#endif\n"
    )
    c = (
        "// SPDX-License-Identifier: GPL-2.0\n/* The driver's tracepoints, and what Rust calls of"
        ' them. */\n#include "helpers.h"\n\n#define CREATE_TRACE_POINTS\n#include "trace.h"\n\n'
        + functions
    )
    text = driver("src/xen_sys/trace.rs").replace("super::rust_helper_", "rust_helper_")
    text = text.replace(
        "`declare_trace!` finds tracepoints in the kernel's own bindings\n//! only, so these are"
        " reached through C helpers.",
        "They are reached through C helpers.",
    )
    at = text.index("\nfn raw(")
    return (
        read("src/xen_sys/trace.h").replace("src/protocol/", "protocol/"),
        header,
        c,
        (
            f"{text[:at]}\n// What `trace.c` has. Pointers are only handed on; C knows what a"
            f' device is.\n#[allow(improper_ctypes)]\nunsafe extern "C" {{\n{rust}}}\n{text[at:]}'
        ),
    )


def wrapped(prototypes):
    """Prototypes whose lines are no longer than C's may be."""
    lines = []
    for line in prototypes.splitlines():
        indent = line.index("(") + 1
        tabs = "\t" * (indent // 8) + " " * (indent % 8)
        while len(line.expandtabs()) > 80:
            at = line.rindex(", ", 0, 79 - 7 * line.count("\t"))
            lines.append(line[:at + 1])
            line = tabs + line[at + 2:]
        lines.append(line)
    return "\n".join(lines) + "\n"
