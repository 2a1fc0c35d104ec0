# SPDX-License-Identifier: GPL-2.0
"""Builds an initramfs: chosen programs with their libraries, written as a newc cpio archive. They
come from the root, or from the packages of another architecture (tools/sysroot.py)."""

import glob
import os
import re
import stat
import subprocess

from tools import sysroot
from tools.arch import TARGET

# What is in front of each path there.
ROOT = sysroot.path()

# Debian's merged /usr: what a program calls /lib is /usr/lib in the image too.
MERGED = ("bin", "sbin", "lib", "lib64")


def canonical(path):
    """Names `path` as it is called in the image, with /usr in front of /lib and the like."""
    top = path.lstrip("/").split("/", 1)[0]
    return "/usr" + path if top in MERGED else path


class Image:
    """The files of one initramfs, by their path in it."""

    def __init__(self):
        self._entries = {}
        self._seen = set()
        for name in MERGED:
            self.directory("/usr/" + name)
            self.link("/" + name, "usr/" + name)
        for name in ("dev", "proc", "sys", "run", "tmp", "root", "etc", "var/log", "var/lib"):
            self.directory("/" + name)
        self.node("/dev/console", stat.S_IFCHR | 0o600, 5, 1)
        self.node("/dev/null", stat.S_IFCHR | 0o666, 1, 3)

    def directory(self, path, mode=0o755):
        """Adds a directory and its parents."""
        path = canonical(path)
        if path == "/" or path in self._entries:
            return
        self.directory(os.path.dirname(path))
        self._entries[path] = (stat.S_IFDIR | mode, b"", None, (0, 0))

    def link(self, path, target):
        """Adds a symbolic link."""
        path = path if path.count("/") == 1 else canonical(path)
        self.directory(os.path.dirname(path))
        self._entries[path] = (stat.S_IFLNK | 0o777, target.encode(), None, (0, 0))

    def node(self, path, mode, major, minor):
        """Adds a device node."""
        self._entries[path] = (mode, b"", None, (major, minor))

    def text(self, path, data, mode=0o644):
        """Adds a file with the given content."""
        path = canonical(path)
        self.directory(os.path.dirname(path))
        data = data.encode() if isinstance(data, str) else data
        self._entries[path] = (stat.S_IFREG | mode, data, None, (0, 0))

    def file(self, path, source=None, mode=None):
        """Adds a file of the root, or `source` under the name `path`."""
        source = source or ROOT + path
        path = canonical(path)
        self.directory(os.path.dirname(path))
        mode = mode if mode is not None else os.stat(source).st_mode & 0o777
        self._entries[path] = (stat.S_IFREG | mode, None, source, (0, 0))

    def tree(self, path, source=None, skip=()):
        """Adds a whole directory, but for names in `skip`."""
        source = source or ROOT + path
        self.directory(path)
        for name in sorted(os.listdir(source)):
            if name in skip:
                continue
            inside, outside = os.path.join(path, name), os.path.join(source, name)
            if os.path.islink(outside):
                self.link(inside, os.readlink(outside))
            elif os.path.isdir(outside):
                self.tree(inside, outside, skip)
            else:
                self.file(inside, outside)

    def copy_tree(self, path, source):
        """Adds the present content of a directory that may go away before the image is written."""
        for folder, _, names in os.walk(source):
            for name in names:
                outside = os.path.join(folder, name)
                with open(outside, "rb") as file:
                    self.text(path + outside[len(source):], file.read())

    def program(self, path, source=None):
        """Adds a program or library with all that its loader will look for."""
        source = source or ROOT + path
        if path in self._seen:
            return
        self._seen.add(path)
        if os.path.islink(source):
            self.link(path, os.readlink(source))
            self.program(os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(source))))
            return
        self.file(path, source)
        with open(source, "rb") as file:
            if file.read(4) != b"\x7fELF":
                return
        for library in libraries(path, source):
            self.program(library)

    def write(self, target):
        """Writes the archive."""
        with open(target, "wb") as out:
            # Parents come before their children, as the kernel's unpacker wants it.
            for number, path in enumerate(sorted(self._entries), 1):
                mode, data, source, (major, minor) = self._entries[path]
                if source is not None:
                    with open(source, "rb") as file:
                        data = file.read()
                _entry(out, number, path.lstrip("/"), mode, data, major, minor)
            _entry(out, 0, "TRAILER!!!", 0, b"", 0, 0)


def _entry(out, number, name, mode, data, major, minor):
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields)
    head += name.encode() + b"\0"
    out.write(head + b"\0" * (-len(head) % 4))
    out.write(data + b"\0" * (-len(data) % 4))


def libraries(path, source):
    """Names the loader and the shared libraries that the program at `path` uses. Not by ldd, which
    runs it."""
    done = subprocess.run(["readelf", "-ldW", source], capture_output=True, text=True, check=True)
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", done.stdout)
    own = [re.sub(r"\$ORIGIN|\$\{ORIGIN\}", os.path.dirname(path), folder)
           for found in re.findall(r"\(R(?:UN)?PATH\).*\[(.*)\]", done.stdout)
           for folder in found.split(":")]
    found = re.findall(r"program interpreter: (.*)\]", done.stdout)
    for name in needed:
        places = [f"{folder}/{name}" for folder in [*own, f"/usr/lib/{TARGET.triplet}", "/usr/lib"]]
        there = [os.path.normpath(place) for place in places if os.path.lexists(ROOT + place)]
        if not there:
            raise RuntimeError(f"{source} lacks a library: {name} is in none of {places}")
        found.append(there[0])
    return found


def which(name):
    """Finds a program of the root by its name."""
    xen = [path.removeprefix(ROOT) for path in glob.glob(f"{ROOT}/usr/lib/xen-4.*/bin")]
    for folder in [*xen, "/usr/bin", "/usr/sbin"]:
        if os.path.lexists(f"{ROOT}{folder}/{name}"):
            return f"{folder}/{name}"
    raise FileNotFoundError(
        f"{ROOT or 'the root'} has no program {name}: is its package in tools/env/packages"
        f"{'.sysroot' if ROOT else ''}?"
    )
