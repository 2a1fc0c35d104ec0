# SPDX-License-Identifier: GPL-2.0
"""The driver's objects under configurations that no kernel of the testbed has. For that the part of
linux-source will do that is unpacked for modules: it is not a kernel that comes out."""

import contextlib
import dataclasses
import os
import shutil

from tools.kernels import common, intree
from tools.steps import BUILD, JOBS, must

# Raise this when the source has to be copied anew.
RECIPE = 1

# What of the way from the top to the driver is not unpacked.
WAY = {
    "drivers/Makefile": "obj-y += char/\n",
    "drivers/char/Makefile": "obj-$(CONFIG_TCG_TPM) += tpm/\n",
}

# What each corner says otherwise than intree.config.
CORNERS = {
    # A PV guest on one processor that has of everything else as little as there can be.
    "small": """
        # CONFIG_SMP is not set
        CONFIG_NR_CPUS=1
        # CONFIG_DEBUG_FS is not set
        # CONFIG_HW_RANDOM is not set
        # CONFIG_HW_RANDOM_TPM is not set
        # CONFIG_XEN_PVHVM_GUEST is not set
        # CONFIG_XEN_PVH is not set
        # CONFIG_PCI is not set
        # CONFIG_ACPI is not set
        # CONFIG_SECURITY is not set
        # CONFIG_SECURITYFS is not set
        # CONFIG_INTEGRITY is not set
        # CONFIG_IMA is not set
        # CONFIG_IMA_APPRAISE is not set
        # CONFIG_IMA_DEFAULT_HASH_SHA256 is not set
        # CONFIG_IMA_READ_POLICY is not set
        # CONFIG_IMA_WRITE_POLICY is not set
        # CONFIG_EVM is not set
        # CONFIG_TRUSTED_KEYS is not set
        # CONFIG_TRUSTED_KEYS_TPM is not set
        # CONFIG_ENCRYPTED_KEYS is not set
        # CONFIG_KEYS is not set
        # CONFIG_KUNIT is not set
        # CONFIG_SUSPEND is not set
        # CONFIG_MODULES is not set
        # CONFIG_MODULE_UNLOAD is not set
        # CONFIG_PROC_FS is not set
        # CONFIG_PROC_SYSCTL is not set
        # CONFIG_SYSCTL is not set
        # CONFIG_PRINTK is not set
        # CONFIG_PRINTK_TIME is not set
        # CONFIG_LOG_BUF_SHIFT is not set
        # CONFIG_EARLY_PRINTK is not set
        # CONFIG_BUG is not set
        # CONFIG_KALLSYMS is not set
        # CONFIG_HIGH_RES_TIMERS is not set
        """,
    # A real-time kernel that looks for mistakes, as a PVH guest alone.
    "rt": """
        CONFIG_EXPERT=y
        CONFIG_PREEMPT_RT=y
        # CONFIG_XEN_PV is not set
        CONFIG_CPU_MITIGATIONS=y
        CONFIG_DEBUG_KERNEL=y
        CONFIG_PROVE_LOCKING=y
        CONFIG_DEBUG_ATOMIC_SLEEP=y
        CONFIG_RUST_DEBUG_ASSERTIONS=y
        CONFIG_RUST_OVERFLOW_CHECKS=y
        """,
}

# A warning is an error in each.
ALL = """
    CONFIG_WERROR=y
    CONFIG_OBJTOOL_WERROR=y
    """


@dataclasses.dataclass
class Part(intree.InTree):
    """The part of linux-source that a stock kernel's module builds have, in a copy that may be
    changed."""

    corner: str = ""

    @property
    def folder(self):
        """Where the copy is in the cache."""
        return f"{self.stock.folder}-part-{RECIPE}"

    @property
    def build(self):
        """Where the corner's objects are there."""
        return f"{self.folder}/build-{self.corner}"


@contextlib.contextmanager
def tree(stock, corner, files=intree.files_in_tree):
    """The part, for one clone at a time, with these files in it."""
    kernel = Part(stock, corner=corner)
    with common.locked(kernel):
        if not os.path.exists(kernel.source):
            shutil.rmtree(f"{kernel.source}.new", ignore_errors=True)
            shutil.copytree(stock.source, f"{kernel.source}.new", symlinks=True)
            os.rename(f"{kernel.source}.new", kernel.source)
        intree.put(kernel, WAY | files(kernel))
        os.makedirs(kernel.build, exist_ok=True)
        yield kernel


def configure(kernel):
    """intree.config, but for what the corner says."""
    fragment = f"{BUILD}/corner-{kernel.corner}.config"
    plain = intree.fragment(kernel.stock)
    intree.write(fragment, common.otherwise(plain, (ALL + CORNERS[kernel.corner]).splitlines()))
    common.configure(kernel, kernel.kbuild, fragment, f"corner-{kernel.corner}-config.log")


def objects(kernel, log, *more):
    """Builds the kernel crate, the TPM's core and the driver; returns the folder that has the
    driver's objects."""
    driver = f"{kernel.build}/{intree.PLACE}"
    shutil.rmtree(driver, ignore_errors=True)
    must(kernel.kbuild + [f"-j{JOBS}", *more, "prepare", f"{os.path.dirname(intree.PLACE)}/"], log,
         f"the driver does not build under the configuration '{kernel.corner}'")
    return driver
