# SPDX-License-Identifier: GPL-2.0
"""Rewrites the `use` statements of a Rust file: takes them apart into paths, maps these, and writes
them again as the kernel's style has them, one statement for each root."""

import re

STATEMENTS = re.compile(r"^use [^;]+;\n(?:use [^;]+;\n)*", re.MULTILINE)
TOKEN = re.compile(r"//[^\n]*|[A-Za-z_][\w]*(?:::[A-Za-z_*][\w]*)*|::|[{},*]")

# These roots come before crates.
FIRST = ("self", "super", "crate")


def flatten(statement):
    """The paths of the text between `use` and `;`, each as a tuple of its parts."""
    tokens = [token for token in TOKEN.findall(statement) if not token.startswith("//")]
    found = []

    def group(prefix):
        path = prefix
        while tokens:
            token = tokens.pop(0)
            if token == "{":
                group(path)
                path = None
            elif token in (",", "}"):
                if path is not None and path != prefix:
                    found.append(path)
                path = prefix
                if token == "}":
                    return
            elif token == "as":
                path = path[:-1] + (f"{path[-1]} as {tokens.pop(0)}",)
            elif token != "::":
                path = (path or ()) + tuple(token.split("::"))
        if path:
            found.append(path)

    group(())
    return found


def order(name):
    """rustfmt's order: `self`, modules and functions, types, constants."""
    kind = (
        0
        if name == "self"
        else 3 if name.isupper() and len(name) > 1 else 2 if name[:1].isupper() else 1
    )
    return kind, name


def lines(tree, indent):
    """What is below a path, as one item or as a list with an item on each line."""
    items = []
    for name in sorted(tree, key=order):
        below = dict(tree[name])
        itself = below.pop(None, False)
        if itself and below:
            below["self"] = {None: True}
        inside = indent if len(tree) == 1 else indent + "    "
        items.append(name + ("::" + lines(below, inside) if below else ""))
    if len(items) == 1 and items[0] != "self":
        return items[0]
    end = "," if items[-1].endswith("}") else ", //"
    return "{\n" + ",\n".join(f"{indent}    {item}" for item in items) + f"{end}\n{indent}}}"


def statements(paths):
    """The statements for these paths."""
    tree = {}
    for path in paths:
        node = tree
        for part in path if path[-1] != "self" else path[:-1]:
            node = node.setdefault(part, {})
        node[None] = True
    text = ""
    for root in sorted(
        tree, key=lambda name: (name not in FIRST, FIRST.index(name) if name in FIRST else name)
    ):
        text += "use " + lines({root: tree[root]}, "") + ";\n"
    return text


def rewrite(text, change):
    """Maps every path at the file's first block of `use` statements; None takes it out."""
    found = STATEMENTS.search(text)
    if not found:
        return text
    paths = [
        path
        for statement in re.findall(r"^use ([^;]+);", found[0], re.MULTILINE)
        for path in flatten(statement)
    ]
    changed = [new for new in map(change, paths) if new]
    return text[:found.start()] + statements(changed) + text[found.end():]
