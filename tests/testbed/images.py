# SPDX-License-Identifier: GPL-2.0
"""What is in the initramfs of dom0 and in that of a guest."""

import glob
import json
import lzma
import os
import shutil
import subprocess
import sys
import tempfile

from testbed.cpio import ROOT, Image, which
from tools.arch import HOST, ARCHES, TARGET

TESTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DISK_DOM0 = os.path.join(os.path.dirname(TESTS), "tools/package/dom0")

DOM0_PROGRAMS = """
xl xenstored oxenstored xenconsoled xenconsole xen-init-dom0 libxl-save-helper
xenstore-ls xenstore-read xenstore-write xenstore-rm xenstore-list xenstore-chmod xenstore-watch
xenstore-exists swtpm swtpm_setup swtpm_ioctl setpriv prlimit flock
""".split()

DOM0_MODULES = """
xenfs xen-privcmd xen-evtchn xen-gntdev xen-gntalloc 9p 9pnet_virtio
""".split()

DISK_MODULES = "virtio_pci virtio_blk ext4 crc32c_generic crc32c_intel".split()

# What gives a disk to a guest.
BLKBACK_MODULES = "virtio_pci virtio_blk xen-blkback".split()

# What connects two machines, and lets one use the other's files.
NETWORK_MODULES = "virtio_pci virtio_net nfsd nfs nfsv4".split()
NFS_PROGRAMS = "exportfs rpc.nfsd rpc.mountd mount.nfs".split()

GUEST_PROGRAMS = """
modprobe insmod rmmod lsmod modinfo depmod timeout
tcsd tpm_version tpm_takeownership tpm_getpubek tpm_sealdata tpm_unsealdata tpm_clear
tpm2 keyctl openssl evmctl sha1sum sha256sum setpriv python3 bash
""".split()

GUEST_MODULES = """
xen-tpmfront encrypted-keys trusted tpm vtpm_proxy xen-gntalloc xen-evtchn loop dm-crypt xts
""".split()

# What the selftests of the kernel and our own checks import.
GUEST_PYTHON = """
unittest hashlib hmac struct fcntl os sys io errno collections logging socket
select random time threading
binascii signal json traceback difflib argparse pprint string
runpy importlib.util locale gettext ctypes
""".split()

PYGRUB_PYTHON = """
os sys string struct tempfile re traceback stat errno copy ctypes ctypes.util logging platform
resource subprocess curses curses.textpad curses.ascii getopt
""".split()

SYSTEM_FILES = {
    "/etc/passwd": "root:x:0:0:root:/root:/bin/sh\ntss:x:107:107:TPM:/var/lib/tpm:/bin/false\n",
    "/etc/group": "root:x:0:\ntss:x:107:\n",
    "/etc/hosts": "127.0.0.1 localhost\n",
}


def base_image():
    """An image with busybox and the few files that every system has."""
    image = Image()
    image.file(which("busybox"))
    applets = subprocess.run(["busybox", "--list"], capture_output=True, text=True, check=True)
    for applet in set(applets.stdout.split()) - {"busybox"}:
        image.link(f"/usr/bin/{applet}", "busybox")
    # Not busybox's shell: that one takes its own applets before the programs that are there.
    image.program("/usr/bin/dash")
    image.link("/usr/bin/sh", "dash")
    for name, text in SYSTEM_FILES.items():
        image.text(name, text)
    return image


def add_programs(image, names):
    """Adds programs by name; they replace busybox's applets."""
    for name in names:
        path = which(name)
        image.program(path)
        if not os.path.dirname(path).startswith("/usr/bin"):
            image.link(f"/usr/bin/{name}", path)


def dlopened(image, *patterns):
    """Adds libraries that are loaded at run time, which no program names."""
    for pattern in patterns:
        for path in glob.glob(ROOT + pattern):
            image.program(path.removeprefix(ROOT))


class Modules:
    """The stock kernel's modules, put into an image uncompressed with all that they depend on."""

    def __init__(self, folder):
        self.folder = folder
        self.release = os.path.basename(folder)
        self.path, self.needs = {}, {}
        with open(f"{folder}/modules.dep", encoding="ascii") as file:
            for line in file:
                path, _, needs = line.partition(":")
                name = self.name(path)
                self.path[name] = path
                self.needs[name] = [self.name(need) for need in needs.split()]

    @staticmethod
    def name(path):
        """The name of the module in a file."""
        return os.path.basename(path).split(".ko")[0].replace("-", "_")

    def add(self, image, names, ours=()):
        """Adds the modules, and our own under updates/; what is built in, or not there, is passed
        over."""
        todo, done = [name.replace("-", "_") for name in names], set()
        with tempfile.TemporaryDirectory() as top:
            tree = f"{top}/lib/modules/{self.release}"
            while todo:
                name = todo.pop()
                if name in done or name not in self.path:
                    continue
                done.add(name)
                todo += self.needs[name]
                self._unpack(name, tree)
            os.makedirs(f"{tree}/updates", exist_ok=True)
            for path in ours:
                shutil.copy(path, f"{tree}/updates")
            for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
                shutil.copy(f"{self.folder}/{name}", tree)
            subprocess.run(["depmod", "-b", top, self.release], check=True)
            image.copy_tree(f"/lib/modules/{self.release}", tree)

    def _unpack(self, name, tree):
        source = f"{self.folder}/{self.path[name]}"
        target = f"{tree}/{self.path[name].removesuffix('.xz')}"
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with (lzma.open if source.endswith(".xz") else open)(source, "rb") as old, open(
            target, "wb"
        ) as new:
            shutil.copyfileobj(old, new)


def dom0_image(modules, backend, more=()):
    """Dom0's system: the toolstack, the backend and swtpm, and the kernel's modules with `more`."""
    image = base_image()
    add_programs(image, DOM0_PROGRAMS)
    # The last is for oxenstored.
    dlopened(image, f"/usr/lib/{TARGET.triplet}/libgcc_s.so.1",
             f"/usr/lib/{TARGET.triplet}/swtpm/*.so*",
             "/usr/lib/xen-4.*/ocaml/xsd_glue/*/*.cmxs")
    image.tree("/etc/xen", skip=("scripts",))
    modules.add(image, [*DOM0_MODULES, *more])
    image.program("/usr/sbin/xen-vtpmd", backend)
    image.file("/init", f"{TESTS}/dom0/init", 0o755)
    image.file("/agent", f"{DISK_DOM0}/agent", 0o755)
    image.file("/usr/sbin/event-channels", f"{TESTS}/dom0/event-channels", 0o755)
    return image


def add_block_script(image):
    """Adds what xl runs for a guest's disk."""
    add_programs(image, ["bash"])
    for path in ("block", "*-common.sh", "locking.sh", "logging.sh", "hotplugpath.sh"):
        for script in glob.glob(f"{ROOT}/etc/xen/scripts/{path}"):
            image.file(script.removeprefix(ROOT))


def add_network(image, keys):
    """Adds NFS, and what xl migrates by: ssh, its server, and the keys that are in a folder, by
    which root of each machine can become root of the other."""
    # The env of coreutils, which can ignore a signal.
    add_programs(image, ["env", "ssh", "sshd", *NFS_PROGRAMS])
    image.file("/etc/netconfig")
    image.text("/etc/services", "nfs 2049/tcp\nnfs 2049/udp\n")
    image.text("/etc/protocols", "tcp 6 TCP\nudp 17 UDP\n")
    for path in ("sshd-session", "sshd-auth"):
        image.program(f"/usr/lib/openssh/{path}")
    for name, mode in (("id_ed25519", 0o600), ("authorized_keys", 0o600), ("known_hosts", 0o644)):
        image.file(f"/root/.ssh/{name}", f"{keys}/{name}", mode)
    image.file("/etc/ssh/key", f"{keys}/id_ed25519", 0o600)
    # Of the ciphers, the one that is cheapest to emulate.
    image.text("/etc/ssh/ssh_config", "Ciphers aes128-gcm@openssh.com\n")
    image.text("/etc/ssh/sshd_config", "HostKey /etc/ssh/key\nUsePAM no\n")
    users = SYSTEM_FILES["/etc/passwd"] + "sshd:x:101:65534::/run/sshd:/bin/false\n"
    image.text("/etc/passwd", users)


def disk_dom0_image(modules):
    """What hands over to a dom0 that is on a disk, and brings that the kernel's modules."""
    image = base_image()
    add_programs(image, ["modprobe"])
    modules.add(image, DOM0_MODULES + DISK_MODULES)
    image.file("/init", f"{DISK_DOM0}/init", 0o755)
    return image


def add_device_model(image):
    """Adds what an HVM guest takes: QEMU, its firmware and Xen's loader of that, and what lets it
    boot a kernel that xl names."""
    image.program("/usr/libexec/xen-qemu-system-i386")
    for path in ("/usr/lib/xen-4.*/boot/hvmloader", "/usr/share/seabios/bios-256k.bin",
                 "/usr/share/qemu/linuxboot_dma.bin", "/usr/share/qemu/kvmvapic.bin",
                 "/usr/share/qemu/keymaps/en-us"):
        for found in glob.glob(ROOT + path):
            image.file(found.removeprefix(ROOT))


def add_pygrub(image):
    """Adds pygrub, Python for it, and its reader of ext2."""
    add_programs(image, ["python3"])
    for path in python_files(PYGRUB_PYTHON):
        image.program(path)
    for pattern in ("bin/pygrub", "lib/python/*.so", "lib/python/grub/*.py",
                    "lib/python/xen/__init__.py", "lib/python/xen/lowlevel/*.*",
                    "lib/*/xenfsimage/ext2fs*/*.so"):
        for path in glob.glob(f"{ROOT}/usr/lib/xen-4.*/{pattern}"):
            image.program(path.removeprefix(ROOT))


def python_files(modules):
    """The files of these Python modules, as the interpreter itself finds them."""
    script = (
        f"import json,sys,{','.join(modules)}\nimport encodings.idna, encodings.ascii,"
        " encodings.latin_1, unittest.main\nprint(json.dumps([m.__file__ for m in"
        " sys.modules.values() if getattr(m,'__file__',None)]))"
    )
    done = subprocess.run(
        ["/usr/bin/python3", "-c", script], capture_output=True, text=True, check=True
    )
    return [path for path in json.loads(done.stdout) if path.startswith("/usr/lib/python3")]


def guest_image(modules, selftests, ours, hostile):
    """A guest's system: the tools of the TPM, our modules beside the stock ones, the bad frontend,
    and the checks."""
    image = base_image()
    add_programs(image, GUEST_PROGRAMS)
    for path in glob.glob(f"{ROOT}/usr/bin/tpm2_*"):
        image.link(path.removeprefix(ROOT), os.readlink(path))
    dlopened(image, f"/usr/lib/{TARGET.triplet}/libtss2-tcti-device.so.0",
             f"/usr/lib/{TARGET.triplet}/libgcc_s.so.1")
    for path in python_files(GUEST_PYTHON):
        # Scripts are those of the root, which is what has compiled them.
        if path.endswith(".so"):
            path = path.replace(ARCHES[HOST].triplet, TARGET.triplet)
        image.program(path, path if path.endswith(".py") else None)
        compiled = f"{os.path.dirname(path)}/__pycache__/{os.path.basename(path)[:-3]}" \
            f".{sys.implementation.cache_tag}.pyc"
        if os.path.exists(compiled):
            image.file(compiled, compiled)
    image.text("/etc/tcsd.conf", "", 0o640)
    image.directory("/var/lib/tpm")
    modules.add(image, GUEST_MODULES, ours=ours)
    if selftests:
        image.tree("/selftests", selftests)
    image.tree("/bed", f"{TESTS}/guest", skip=("init",))
    image.file("/init", f"{TESTS}/guest/init", 0o755)
    image.program("/usr/sbin/xen-hostile-frontend", hostile)
    for name in ("poweroff", "reboot"):
        image.text(f"/usr/sbin/{name}", f"#!/bin/sh\nexec busybox {name} -f\n", 0o755)
    return image


def driver_domain_image(modules, backend):
    """A driver domain's system: as dom0's, but it is told what to do as a guest is."""
    image = dom0_image(modules, backend)
    for name in ("init", "run", "serve"):
        image.file("/init" if name == "init" else f"/bed/{name}", f"{TESTS}/guest/{name}", 0o755)
    image.text("/usr/sbin/poweroff", "#!/bin/sh\nexec busybox poweroff -f\n", 0o755)
    return image
