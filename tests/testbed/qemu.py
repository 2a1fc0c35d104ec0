# SPDX-License-Identifier: GPL-2.0
"""What QEMU is called with to boot Xen and dom0, or a Linux without Xen, on each architecture."""

from tools.arch import TARGET

# Emulated time is a count of instructions, 4 ns for each, whatever the host does meanwhile; it
# jumps to the next timer when all processors are idle.
ICOUNT = ["-accel", "tcg,thread=single", "-icount", "shift=2,sleep=off",
          "-rtc", "base=2026-01-01T00:00:00,clock=vm"]
REALTIME = ["-accel", "tcg,thread=multi"]

if TARGET.name == "amd64":
    XEN_OPTIONS = "console=com1 com1=115200,8n1 spec-ctrl=eager-fpu"
    MACHINE = ["-M", "q35"]
    BARE_MACHINE, BARE_CONSOLE = MACHINE, "ttyS0"
    # Without eager FPU switching and with rdtscp, emulation corrupts registers.
    CPU = "max,-rdtscp"
    # Without TSC deadlines and x2APIC Xen takes timers that go by the counted time. Without fast
    # string instructions the kernel clears and copies by loops: of those instructions each byte
    # would be counted as one.
    COUNTED_CPU = f"{CPU},-x2apic,-tsc-deadline,-erms,-fsrm,-fzrm,-fsrs,-fsrc"
    GUESTS_SHARE = ""
else:
    XEN_OPTIONS = "console=dtuart"
    MACHINE = ["-M", "virt,virtualization=on,gic-version=3,its=off"]
    BARE_MACHINE, BARE_CONSOLE = ["-M", "virt,gic-version=3"], "ttyAMA0"
    # A quick signature of pointers, which is not the architecture's own: nothing here looks at it.
    COUNTED_CPU = CPU = "max,pauth-impdef=on"
    # Debian's Xen for arm64 starts in SILO mode, where guests share memory with dom0 alone.
    GUESTS_SHARE = "xsm=dummy"
# Where dom0's kernel and initramfs are put: behind Xen and the device tree, which come first.
KERNEL_ADDRESS, INITRD_ADDRESS = 0x50000000, 0x58000000


def modules(kernel, line, initrd):
    """Xen's boot modules: dom0's kernel with its command line, and its initramfs."""
    if TARGET.name == "amd64":
        return ["-initrd", f"{kernel} {line},{initrd}"]
    # A comma would end the option.
    line = line.replace(",", ",,")
    return [
        "-device", f"guest-loader,addr={KERNEL_ADDRESS:#x},kernel={kernel},bootargs={line}",
        "-device", f"guest-loader,addr={INITRD_ADDRESS:#x},initrd={initrd}",
    ]


def command(xen, xen_options, kernel, line, initrd, cpus, memory, icount):
    """Boots Xen and dom0, without devices. With `icount` time is counted by instructions; the
    number is a seed."""
    return [
        TARGET.emulator,
        *(REALTIME if icount is None else [*ICOUNT, "-seed", str(icount)]),
        "-cpu", CPU if icount is None else COUNTED_CPU,
        *MACHINE,
        "-smp", str(cpus),
        "-m", str(memory),
        "-nodefaults",
        "-no-user-config",
        "-display", "none",
        "-no-reboot",
        "-kernel", xen,
        "-append", f"{XEN_OPTIONS} loglvl=info guest_loglvl=info noreboot=true {xen_options}",
        *modules(kernel, line, initrd),
    ]
