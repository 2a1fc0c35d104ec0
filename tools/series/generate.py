# SPDX-License-Identifier: GPL-2.0
"""make series: fixes for the TPM core, and the project's source as patches to a kernel tree, in
that tree's own style. The abstractions go to rust/kernel/, the driver to drivers/char/tpm/; what
both homes have in common is never written twice."""

import functools
import glob
import os
import re
import shutil

from tools.kernels import intree
from tools.kernels.prepare import PAGE
from tools.series import source
from tools.steps import BUILD, TOP, StepError, must, output, step
from tools.sources import read, sources

OUT = f"{BUILD}/series"
TREE = f"{OUT}/tree"
DRIVER = "drivers/char/tpm/xen-tpmfront"
HERE = "tools/series"
ABI = "Documentation/ABI/testing/sysfs-driver-xen-tpmfront"

# Who sends it, as "Name <address>": the author, who signs it off and maintains the driver. Nobody
# can do that for somebody else; without, it can be read and built, and not be sent.
NOBODY = "The xen-tpmfront developers <xen-tpmfront@example.org>"
SENDER = os.environ.get("SENDER") or ""
NAME, ADDRESS = (SENDER or NOBODY).rstrip(">").split(" <")
AUTHOR = ("-c", f"user.name={NAME}", "-c", f"user.email={ADDRESS}")

# The fixes for Xen's grants and for the TPM core, each with its message, in their order; and what
# makes room for a driver in Rust.
CORE = (
    "xen-grants",
    "tpm-pcrs",
    "tpm-banks",
    "trusted-unseal",
    "tpm-null-key",
    "tpm-cancel",
    "tpm-header",
)

# What the series changes of the tree's files.
CHANGED = (
    *(
        f"drivers/char/tpm/{name}"
        for name in ("tpm-sysfs.c", "tpm2-cmd.c", "tpm2-sessions.c", "tpm.h")
    ),
    "include/linux/tpm.h",
    "security/keys/trusted-keys/trusted_tpm1.c",
    PAGE,
    "rust/bindings/bindings_helper.h",
    "rust/helpers/helpers.c",
    "rust/helpers/mm.c",
    "rust/kernel/lib.rs",
    "drivers/xen/Kconfig",
    "drivers/xen/grant-table.c",
    "drivers/char/tpm/Kconfig",
    "drivers/char/tpm/Makefile",
    "MAINTAINERS",
)


class Tree:
    """The kernel tree's files that the series is about, as a git repository."""

    def __init__(self, kernel):
        self._rules = source.compat(kernel)
        shutil.rmtree(OUT, ignore_errors=True)
        for name in CHANGED:
            if not os.path.exists(f"{kernel}/{name}"):
                raise StepError(
                    f"{kernel} has no {name}: is it a kernel tree with Rust, 7.2 or later?"
                )
            os.makedirs(os.path.dirname(f"{TREE}/{name}"), exist_ok=True)
            shutil.copyfile(f"{kernel}/{name}", f"{TREE}/{name}")
        shutil.copyfile(f"{kernel}/.rustfmt.toml", f"{TREE}/.rustfmt.toml")
        self.git("init", "-q", "-b", "base")
        self.commit("base")

    def git(self, *words):
        """Runs git there."""
        must(["git", *AUTHOR, *words], "series-git.log", "git cannot make the series", cwd=TREE)

    def commit(self, message):
        """All that has changed."""
        self.git("add", "-A")
        self.git("commit", "-q", *(["-s"] if SENDER else []), "-m", message)

    def core(self, name):
        """Applies a patch to the kernel's C code, and commits it with its message."""
        path = f"{HERE}/core/{name}.patch"
        must(
            ["patch", "-s", "-p1", "--no-backup-if-mismatch", "-i", f"{TOP}/{path}"],
            "series-core.log",
            f"{path} does not apply: this kernel is newer than it knows",
            cwd=TREE,
        )
        self.commit(read(path).partition("\n---\n")[0])

    def patch(self, name):
        """Formats what is Rust and commits it, with the message of tools/series/NAME.txt."""
        for path in glob.glob(f"{TREE}/**/*.rs", recursive=True):
            if not path.endswith("rust/kernel/lib.rs"):
                output("rustfmt", "--edition", "2021", "--config-path", f"{TREE}/.rustfmt.toml",
                       "--config", "skip_children=true", path)
        self.commit(read(f"{HERE}/{name}.txt"))

    def write(self, name, text):
        """Writes a new file."""
        os.makedirs(os.path.dirname(f"{TREE}/{name}"), exist_ok=True)
        with open(f"{TREE}/{name}", "w", encoding="utf-8") as file:
            file.write(text)

    def insert(self, name, line, before):
        """Puts a line before the first one that is `before`, which has to be there."""
        with open(f"{TREE}/{name}", encoding="utf-8") as file:
            text = file.read()
        if before not in text:
            raise StepError(f"{name} has no {before!r}: this kernel is newer than {__name__} knows")
        self.write(name, text.replace(before, line + before, 1))

    def append(self, name, text):
        """Adds to a file's end."""
        with open(f"{TREE}/{name}", "a", encoding="utf-8") as file:
            file.write(text)

    def abstraction(self, room, name):
        """A file of the kernel crate's, in one of its rooms."""
        self.write(
            f"rust/kernel/{room}/{os.path.basename(name)}",
            source.abstraction(name, room, self._rules),
        )

    def driver(self, names, *tables, unused=()):
        """Puts the driver's files there, without what the tables cut out, and its root."""
        for name in names:
            self.write(
                f"{DRIVER}/{name.removeprefix('src/')}",
                source.driver(name, *tables, unused=unused, rules=self._rules),
            )
        self.write(f"{DRIVER}/xen_tpmfront.rs", source.root(*tables))


XEN_CONFIG = """\
config RUST_XENBUS_ABSTRACTIONS
	bool
	depends on RUST && XEN
	select XEN_XENBUS_FRONTEND
	help
	  The Rust abstractions for Xen frontend drivers: the xenbus bus,
	  xenstore, granted pages and event channels.

"""

TPM_CONFIG = """\
config RUST_TPM_ABSTRACTIONS
	bool
	depends on RUST && SYSFS && TCG_TPM=y
	help
	  The Rust abstractions for drivers of TPM chips.

"""

MAINTAINERS = f"""\
XEN VTPM FRONTEND DRIVER (RUST)
{f"M:	{SENDER}" if SENDER else ""}
L:	linux-integrity@vger.kernel.org
L:	rust-for-linux@vger.kernel.org
L:	xen-devel@lists.xenproject.org (moderated for non-subscribers)
S:	{"Maintained" if SENDER else "Orphan"}
F:	drivers/char/tpm/xen-tpmfront/
F:	rust/helpers/xen.c
F:	rust/kernel/tpm.rs
F:	rust/kernel/tpm/
F:	rust/kernel/xen.rs
F:	rust/kernel/xen/

""".replace(")\n\n", ")\n")


# The bus; what else there is of Xen comes after it.
BUS = ("bus", "store")
# Its own files in the driver's directory are other ones.
ROOTS = (
    "src/xen_tpmfront.rs",
    "src/protocol/lib.rs",
    "src/protocol/backend.rs",
    "src/protocol/quirks.rs",
    *(f"src/protocol/{name}.rs" for name in source.OF_ANY_TPM),
)
BINDINGS = "rust/bindings/bindings_helper.h"


def xenbus(tree):
    """The bus, and the store."""
    tree.insert(
        BINDINGS,
        "#if IS_ENABLED(CONFIG_XEN)\n#include <xen/xen.h>\n#include <xen/xenbus.h>\n#endif\n",
        "\n/*\n * The driver-core Rust code needs to know",
    )
    tree.write(
        "rust/helpers/xen.c",
        "// SPDX-License-Identifier: GPL-2.0\n\n#include <xen/platform_pci.h>\n"
        f"#include <xen/xen.h>\n\n{source.helpers('xen')}",
    )
    tree.append("rust/helpers/helpers.c", '#if IS_ENABLED(CONFIG_XEN)\n#include "xen.c"\n#endif\n')
    tree.insert("drivers/xen/Kconfig", XEN_CONFIG, "endmenu\n")
    tree.insert(
        "rust/kernel/lib.rs",
        "#[cfg(CONFIG_RUST_XENBUS_ABSTRACTIONS)]\npub mod xen;\n",
        "\n#[doc(hidden)]\n" "pub use bindings;\n",
    )
    tree.write("rust/kernel/xen.rs", source.room_list("xen", BUS))
    for name in BUS:
        tree.abstraction("xen", f"src/xen/{name}.rs")


def grants(tree):
    """The granted page and the event channel, and what the kernel crate lacks of other things."""
    tree.insert(
        BINDINGS,
        "#include <xen/events.h>\n#include <xen/grant_table.h>\n#include <xen/page.h>\n",
        "#include <xen/xen.h>\n",
    )
    tree.insert(BINDINGS, "#include <linux/reboot.h>\n", "#include <linux/refcount.h>\n")
    tree.append("rust/helpers/mm.c", "\n" + source.helpers("memalloc", "virt_to_page"))
    names = source.modules("xen")
    tree.write("rust/kernel/xen.rs", source.room_list("xen", names))
    for name in set(names) - set(BUS):
        tree.abstraction("xen", f"src/xen/{name}.rs")


def tpm(tree):
    """The chip."""
    tree.insert(BINDINGS, "#include <linux/tpm.h>\n", "#include <linux/tracepoint.h>\n")
    tree.insert("drivers/char/tpm/Kconfig", TPM_CONFIG, "config TCG_XEN\n")
    tree.insert(
        "rust/kernel/lib.rs",
        "#[cfg(CONFIG_RUST_TPM_ABSTRACTIONS)]\npub mod tpm;\n",
        "pub mod tracepoint;\n",
    )
    names = source.modules("tpm")
    tree.write("rust/kernel/tpm.rs", source.room_list("tpm", names, source.OF_ANY_TPM))
    for name in (
        *(f"src/tpm/{name}.rs" for name in names),
        *(f"src/protocol/{name}.rs" for name in source.OF_ANY_TPM),
    ):
        tree.abstraction("tpm", name)


def frontend(tree):
    """The driver, its page, and whose it is."""
    tree.insert(BINDINGS, "#include <xen/interface/io/tpmif.h>\n", "#include <xen/page.h>\n")
    names = [name for name in sources() if re.match(r"src/([^/]+|protocol/.*)\.rs$", name)]
    tree.driver(
        set(names) - set(ROOTS) - {"src/locality.rs"}, source.LOCALITY, unused=source.LOCALITY_USED
    )
    for name, text in zip(("trace.h", "helpers.h", "trace.c", "trace.rs"), source.trace()):
        tree.write(f"{DRIVER}/{name}", text)
    tree.write(
        f"{DRIVER}/Makefile",
        "# SPDX-License-Identifier: GPL-2.0\n\n"
        "obj-$(CONFIG_TCG_XEN_RUST) += xen-tpmfront.o\nxen-tpmfront-y := xen_tpmfront.o trace.o\n\n"
        "# define_trace.h looks for trace.h.\nCFLAGS_trace.o := -I$(src)\n",
    )
    config = read("Kconfig").replace("depends on TCG_TPM &&", "depends on TCG_TPM=y &&")
    config = config.replace("	select XEN_XENBUS_FRONTEND\n",
                            "	select RUST_TPM_ABSTRACTIONS\n	select RUST_XENBUS_ABSTRACTIONS\n")
    tree.write(f"{DRIVER}/Kconfig", config)
    tree.insert("drivers/char/tpm/Kconfig", f'source "{DRIVER}/Kconfig"\n', "endif # TCG_TPM\n")
    tree.append("drivers/char/tpm/Makefile", "obj-$(CONFIG_TCG_XEN_RUST) += xen-tpmfront/\n")
    tree.append(PAGE, read(f"{HERE}/page.rst").partition("\n\n")[2])
    tree.insert("MAINTAINERS", MAINTAINERS, "XFS FILESYSTEM\n")


def locality(tree):
    """An attribute of the driver's, and its ABI."""
    tree.driver(("src/commands.rs", "src/vtpm.rs", "src/locality.rs"))
    text, _, _ = read(ABI).partition("\nWhat:		/sys/class/tpm/tpmN/cancel\n")
    tree.write(ABI, text)
    tree.insert("MAINTAINERS", f"F:	{ABI}\n", "F:	drivers/char/tpm/xen-tpmfront/\n")


def patches():
    """The patches' paths, in their order, without the cover letter."""
    return sorted(set(glob.glob(f"{OUT}/*.patch")) - set(glob.glob(f"{OUT}/0000-*")))


def commits():
    """What git has of the patches, in their order."""
    return output("git", "-C", TREE, "rev-list", "--reverse", "HEAD").split()[1:]


def files(commit):
    """What the tree's files are after this patch, for intree.tree()."""
    names = output("git", "-C", TREE, "ls-tree", "-r", "--name-only", commit).split()
    return {
        name: output("git", "-C", TREE, "show", f"{commit}:{name}")
        for name in names
        if name != ".rustfmt.toml"
    }


def suites():
    """The names of its suites of unit tests."""
    return sorted(re.findall(r"kunit_tests\((\w+)\)", "".join(files("HEAD").values())))


def tree(stock, more=None):
    """The kernel tree with all of it, and with `more` files, which the series has not."""
    return intree.tree(stock, lambda _: files("HEAD") | (more or {}), "series")


@functools.cache
def build_kernel(stock):
    """The kernel with the series, the driver built in, for guests. A run builds it once."""
    make(stock.source)
    with step("building a kernel with the series"), tree(stock) as kernel:
        intree.make(kernel, "series-build.log")
        intree.install(kernel, "series-install.log")
    return kernel


PATCHES = (xenbus, grants, tpm, frontend, locality)


def make(kernel):
    """Writes build/series/*.patch for a kernel tree; returns their names."""
    with step(f"writing the series for {kernel}"):
        tree = Tree(kernel)
        for name in CORE:
            tree.core(name)
        for patch in PATCHES:
            patch(tree)
            tree.patch(patch.__name__)
        tree.git("format-patch", "-q", "--cover-letter", "-o", OUT, f"-{len(CORE) + len(PATCHES)}")
        cover, = glob.glob(f"{OUT}/0000-*.patch")
        subject, _, body = read(f"{HERE}/cover.txt").partition("\n\n")
        with open(cover, encoding="utf-8") as file:
            text = file.read()
        with open(cover, "w", encoding="utf-8") as file:
            file.write(
                text.replace("*** SUBJECT HERE ***", subject).replace(
                    "*** BLURB HERE ***", body.strip()
                )
            )
    return sorted(os.path.basename(path) for path in glob.glob(f"{OUT}/*.patch"))
