# SPDX-License-Identifier: GPL-2.0
"""Checks of the driver in a kernel tree: it builds there, built in and as a module, and never
beside the C driver."""

from tools.kernels import configs, intree
from testbed.report import Failure
from tools.steps import output, step
from suites.module import warnings

# TCG_XEN and TCG_XEN_RUST as they are asked for, and as they come out.
CHOICES = (
    (("n", "y"), ("n", "y")),
    (("n", "m"), ("n", "m")),
    (("y", "y"), ("y", "n")),
    (("m", "m"), ("m", "n")),
)


def without_warnings(log, but=None):
    """Fails where the log of a build has one, `but` those where that is found."""
    found = [line for line in warnings(log) if not (but and but.search(line))]
    if found:
        raise Failure("\n".join(found))


def built_in(stock):
    """The whole kernel; where the cache has its objects only what is new is built, the driver among
    it."""
    kernel = intree.build_kernel(stock)
    without_warnings("intree.log")
    if " tpmfront" in output("nm", kernel.vmlinux):
        raise Failure("the C driver is in it, too")
    if "xen_tpmfront" not in output("nm", kernel.vmlinux):
        raise Failure("the driver is not in it")
    return kernel.release


def as_module(stock):
    """A module that says that it is of the tree."""
    path = intree.build_module(stock)
    without_warnings("intree-module.log")
    if output("modinfo", "-F", "intree", path).strip() != "Y":
        raise Failure("modinfo does not say that it is of the tree")


def excludes(stock):
    """Kconfig lets only one of the two drivers be chosen."""
    for asked, wanted in CHOICES:
        lines = [f"CONFIG_{name}={value}" for name, value in zip(("TCG_XEN", intree.OPTION), asked)]
        found = intree.configured(stock, *lines)
        if found != wanted:
            raise Failure(
                f"TCG_XEN, {intree.OPTION}: asked for {asked}, and got {found}, not {wanted}"
            )
    return f"{len(CHOICES)} choices"


def objects(stock, corner):
    """What Rust has, the TPM's core and the driver, built in, under another configuration."""
    with step(f"building the driver for {stock.series} under the configuration '{corner}'"), \
            configs.tree(stock, corner) as kernel:
        configs.configure(kernel)
        has_driver(kernel, "built-in.a")


def has_driver(kernel, wanted):
    """Builds the objects of a corner; the driver has to be in that one."""
    log = f"corner-{kernel.corner}-{wanted}.log"
    folder = configs.objects(kernel, log)
    without_warnings(log)
    if "xen_tpmfront" not in output("nm", f"{folder}/{wanted}"):
        raise Failure(f"the driver is not in {wanted}")


def run_corners(report, stock):
    """Configurations that no kernel of the testbed has."""
    for name in ("small", "rt"):
        report.check(
            "intree",
            f"builds under the configuration '{name}' without a warning",
            objects,
            stock,
            name,
        )


def run(report, stock):
    """Runs the suite."""
    if report.check("intree", "builds into the kernel without a warning", built_in, stock):
        report.check("intree", "Kconfig has one driver for the device, never both", excludes, stock)
        report.check("intree", "builds as a module of the tree without a warning", as_module, stock)
