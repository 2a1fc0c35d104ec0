# SPDX-License-Identifier: GPL-2.0
"""The Debian package of the backend: how it is built, and that it, its documentation and its
licences are in order."""

import glob
import os
import re
import subprocess
import tempfile
import tomllib

from testbed.report import Failure
from tools.build import cargo_environment
from tools.package.deb import FOLDER, build_deb, deb, source, version
from tools.steps import TOP, output

MAN = "backend/man"
FILES = (
    "etc/apparmor.d/xen-vtpmd",
    "etc/xen-vtpmd.toml",
    "etc/xen-vtpmd/hooks.d/",
    "usr/sbin/xen-vtpmd",
    "usr/lib/systemd/system/xen-vtpmd.service",
    "usr/lib/systemd/system/xen-vtpmd-metrics.service",
    "usr/lib/systemd/system/xen-vtpmd-metrics.timer",
    "usr/share/man/man8/xen-vtpmd.8.gz",
    "usr/share/man/man8/xen-vtpmd-migrate.8.gz",
    "usr/share/man/man5/xen-vtpmd.toml.5.gz",
    "usr/share/bash-completion/completions/xen-vtpmd",
    "usr/share/zsh/vendor-completions/_xen-vtpmd",
    "usr/share/fish/vendor_completions.d/xen-vtpmd.fish",
    "usr/share/doc/xen-vtpmd/copyright",
)

# The licences that code under GPL-2.0-only can be one program with. Apache-2.0 is none of them, nor
# is GPL-3.0.
LICENCES = {
    "GPL-2.0-only",
    "GPL-2.0-or-later",
    "LGPL-2.1-or-later",
    "MIT",
    "ISC",
    "Zlib",
    "0BSD",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "CC0-1.0",
    "Unlicense",
    "BSL-1.0",
    "Unicode-3.0",
    "Unicode-DFS-2016",
    "Apache-2.0 WITH LLVM-exception",
}


def built():
    """It is built, has the daemon's version, and holds what it should."""
    build_deb()
    with open(f"{TOP}/Cargo.toml", "rb") as file:
        wanted = tomllib.load(file)["workspace"]["package"]["version"]
    if version() != wanted:
        raise Failure(
            f"the package is {version()}, and the daemon {wanted}: see backend/debian/changelog"
        )
    listing = output("dpkg-deb", "-c", deb())
    missing = [name for name in FILES if f" ./{name}\n" not in listing]
    if missing:
        raise Failure(f"not in the package: {', '.join(missing)}")
    return f"{os.path.getsize(deb()) >> 10} kB, {len(listing.splitlines())} files"


def lintian(name="xen-vtpmd"):
    """Debian's own check finds no error and no warning in a source package's packages, and nothing
    was hidden from it."""
    done = subprocess.run(
        [
            "lintian",
            "--allow-root",
            "--show-overrides",
            "--display-level",
            ">=pedantic",
            *glob.glob(f"{FOLDER}/{name}_*.changes"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    found = [
        line
        for line in (done.stdout + done.stderr).splitlines()
        if not re.match(r"[IPX]: |running with root", line)
    ]
    if done.returncode or found:
        raise Failure("\n".join(found) or f"lintian ended with {done.returncode}")
    return f"{done.stdout.count('I: ')} remarks"


def man_lint():
    """mandoc finds nothing to warn of in the pages."""
    pages = sorted(glob.glob(f"{TOP}/{MAN}/*"))
    done = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", *pages],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode or done.stdout or len(pages) != 3:
        raise Failure(f"{len(pages)} pages: {done.stdout}{done.stderr}")


def daemon(*arguments):
    """What the packaged daemon says."""
    return subprocess.run(
        [f"{source()}/debian/built/xen-vtpmd", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def page(name):
    """A page's source."""
    with open(f"{TOP}/{MAN}/{name}", encoding="utf-8") as file:
        return file.read()


def differ(what, real, told):
    """Fails when the page tells of other things than there are."""
    if not real or real != told:
        raise Failure(
            f"{what}: not in the page: {sorted(real - told)}; only in the page:"
            f" {sorted(told - real)}"
        )


def listed(macro, text):
    """What a page's lists have items for, by the macro of their names."""
    lines = re.findall(rf"^\.It {macro} (.*)$", text, re.MULTILINE)
    if macro == "Fl":
        return {f"-{option}" for line in lines for option in re.findall(r"(?<!\S)(-[\w-]+)", line)}
    return {line.split()[0] for line in lines}


def man_commands():
    """xen-vtpmd(8) and xen-vtpmd-migrate(8) have the commands and options of --help, each under
    its command, and no others."""
    commands = set(
        re.findall(
            r"^  ([a-z-]+) ",
            daemon("--help").stdout.partition("Commands:")[2].partition("Options:")[0],
            re.MULTILINE,
        )
    )
    text, migrate = page("xen-vtpmd.8"), page("xen-vtpmd-migrate.8")
    head, _, body = text.partition(".Sh COMMANDS")
    body = body.partition(".Sh FILES")[0]
    body += migrate.partition(".Sh DESCRIPTION")[2].partition(".Sh EXIT STATUS")[0]
    text += migrate
    # Not in --help, but there for those who want them.
    differ("commands", commands | {"completions"}, listed("Cm", body))
    differ("options", options(daemon("--help").stdout), listed("Fl", head))
    count = 0
    for part in re.split(r"^\.It Cm ", body, flags=re.MULTILINE)[1:]:
        name = part.split()[0]
        own = (
            options(daemon(name, "--help").stdout) - {"--help", "--config"}
            if name != "help"
            else set()
        )
        if own != listed("Fl", part):
            differ(f"options of {name}", own or {"none"}, listed("Fl", part))
        synopsis = re.search(rf"^\.Cm {name}$(.*?)^\.(Nm|Sh)", text, re.MULTILINE | re.DOTALL)[1]
        if {f"-{option}" for option in re.findall(r"Fl (-[\w-]+)", synopsis)} != own:
            raise Failure(f"the synopsis of {name} has not its options, {sorted(own)}: {synopsis}")
        count += len(own)
    return f"{len(commands)} commands, {count} options of theirs"


def options(text):
    """The long options that a --help lists."""
    return set(re.findall(r"^ +(?:-\w, )?(--[\w-]+)", text, re.MULTILINE))


def expected_keys(text):
    """The keys that the daemon knows where this text has one that it does not."""
    path = f"{FOLDER}/unknown.toml"
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
    return set(
        re.findall(
            r"`([\w-]+)`", daemon("check-config", path).stderr.partition("expected one of")[2]
        )
    )


def man_keys():
    """xen-vtpmd.toml(5) has the keys that the daemon knows, and no others; the installed file is
    fine with all of them."""
    tables = ("", "[limits]\n", "[tpm]\n")
    keys = set().union(*(expected_keys(f"{table}x = 1\n") for table in tables)) - {
        "limits",
        "tpm",
        "vtpm",
    }
    differ("keys", keys, listed("Ic", page("xen-vtpmd.toml.5")))
    with open(f"{TOP}/backend/xen-vtpmd.toml", encoding="utf-8") as file:
        text = file.read()
    shown = re.sub(r"^#(?=\[|[a-z-]+ = )", "", text, flags=re.MULTILINE)
    differ(
        "keys of the installed file", keys, set(re.findall(r"^([a-z-]+) = ", shown, re.MULTILINE))
    )
    for content in (text, shown):
        path = f"{FOLDER}/shown.toml"
        with open(path, "w", encoding="ascii") as file:
            file.write(content)
        done = daemon("check-config", path)
        if done.returncode:
            raise Failure(done.stderr)
    return f"{len(keys)} keys"


def completions():
    """bash completes a command by the installed file."""
    script = f"""source {source()}/debian/built/bash/xen-vtpmd
        complete -p xen-vtpmd >/dev/null || exit 1
        COMP_WORDS=(xen-vtpmd st) COMP_CWORD=1 &&
            _xen-vtpmd xen-vtpmd st xen-vtpmd && echo "${{COMPREPLY[@]}}\""""
    found = output("bash", "-c", script).split()
    if found != ["status", "stop"]:
        raise Failure(f"'xen-vtpmd st' is completed to {found}")


def allowed(expression):
    """Whether a licence in SPDX's notation lets us use what is under it. ``/`` is an old way to
    write OR."""
    expression = re.sub(r"\s*/\s*", " OR ", expression)
    words = re.findall(r"[()]|AND|OR|[\w.+-]+(?: WITH [\w.-]+)?", expression)
    python = [
        {"AND": "and", "OR": "or", "(": "(", ")": ")"}.get(word) or str(word in LICENCES)
        for word in words
    ]
    return bool(python) and eval(" ".join(python))  # pylint: disable=eval-used


def licences():
    """Every crate in the daemon has a licence that goes with ours."""
    done = subprocess.run(
        [
            "cargo",
            "tree",
            "-p",
            "xen-vtpmd",
            "-e",
            "normal,build",
            "--prefix",
            "none",
            "-f",
            "{p}|{l}",
        ],
        cwd=TOP,
        env={**os.environ, **cargo_environment()},
        capture_output=True,
        text=True,
        check=False,
    )
    crates = {line.removesuffix(" (*)") for line in done.stdout.splitlines() if line}
    if done.returncode or len(crates) < 20:
        raise Failure(done.stderr or f"only {len(crates)} crates")
    bad = sorted(line for line in crates if not allowed(line.partition("|")[2]))
    if bad:
        raise Failure("not known to go with GPL-2.0-only: " + "; ".join(bad))
    return f"{len(crates)} crates"


def apparmor():
    """apparmor_parser takes the profiles, and there is one for each kind of process."""
    path = f"{TOP}/backend/debian/apparmor/xen-vtpmd"
    done = subprocess.run(
        ["apparmor_parser", "--skip-kernel-load", "--skip-cache", path],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Failure(done.stdout + done.stderr)
    with open(path, encoding="utf-8") as file:
        profiles = re.findall(r"^profile (\S+) ", file.read(), re.MULTILINE)
    if profiles != ["xen-vtpmd", "xen-vtpmd-worker", "xen-vtpmd-swtpm"]:
        raise Failure(f"profiles: {profiles}")
    return f"{len(profiles)} profiles"


def units():
    """systemd finds nothing to warn of in the units, but that the daemon is not installed here."""
    with tempfile.TemporaryDirectory() as folder:
        found = glob.glob(f"{TOP}/backend/debian/*.service")
        found += glob.glob(f"{TOP}/backend/debian/*.timer")
        paths = []
        for path in found:
            # As debhelper names them.
            name = os.path.basename(path).removeprefix("xen-vtpmd.")
            name = "xen-vtpmd.service" if name == "service" else name
            with open(path, encoding="utf-8") as file:
                text = file.read().replace("/usr/sbin/xen-vtpmd", "/usr/bin/true")
            paths.append(f"{folder}/{name}")
            with open(paths[-1], "w", encoding="utf-8") as file:
                file.write(text)
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", *paths],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode or done.stderr or len(paths) != 3:
        raise Failure(f"{len(paths)} units: {done.stderr}")
    return f"{len(paths)} units"


def run_built(report, suite="package"):
    """Builds it, for any architecture; returns whether there is one."""
    there = report.check(suite, "the Debian package builds", built)
    if there:
        report.check(suite, "lintian finds no error and no warning", lintian)
    return there


def run(report):
    """Runs the suite."""
    suite = "package"
    report.check(suite, "every crate's licence goes with GPL-2.0-only", licences)
    report.check(suite, "mandoc finds nothing in the man pages", man_lint)
    report.check(suite, "apparmor_parser takes the AppArmor profiles", apparmor)
    report.check(suite, "systemd finds nothing in the units", units)
    if not run_built(report):
        return
    report.check(suite, "bash completes the commands", completions)
    report.check(suite, "xen-vtpmd(8) has the commands and options that there are", man_commands)
    report.check(
        suite, "xen-vtpmd.toml(5) and the installed file have the keys that there are", man_keys
    )
