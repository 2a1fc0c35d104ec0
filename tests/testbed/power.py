# SPDX-License-Identifier: GPL-2.0
"""A disk for dom0's vTPM state, and what a TPM on a copy of it says."""

import os
import shutil
import subprocess
import tempfile

from testbed import wait
from testbed.report import Failure
from testbed.testbed import tpm_state
from tools.steps import must

SIZE = "64M"
LIMIT = 60


def make_disk(path, vtpms):
    """A file system with the state of these vTPMs, in a file."""
    with tempfile.TemporaryDirectory() as tree:
        for vtpm in vtpms:
            shutil.copytree(tpm_state(vtpm), f"{tree}/{vtpm.uuid}")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if os.path.exists(path):
            os.unlink(path)
        must(["mke2fs", "-q", "-t", "ext4", "-d", tree, path, SIZE], "mke2fs.log",
             "no file system for dom0's state")
    return path


def nv_read(state, index):
    """What is in an index, as swtpm says that starts on this state."""
    with tempfile.TemporaryDirectory() as folder:
        server = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}", "--flags",
                  "startup-clear", "--server", f"type=unixio,path={folder}/tpm",
                  "--ctrl", f"type=unixio,path={folder}/tpm.ctrl"]
        environment = {**os.environ, "TPM2TOOLS_TCTI": f"swtpm:path={folder}/tpm"}
        with subprocess.Popen(server, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as tpm:
            try:
                said = f"swtpm does not start on {state}"
                wait.until(lambda: os.path.exists(f"{folder}/tpm") or tpm.poll() is not None,
                           LIMIT, said, pause=0.02)
                if tpm.poll() is not None:
                    raise Failure(said)
                done = subprocess.run(
                    ["tpm2_nvread", "-C", "o", index], capture_output=True, text=True, check=False,
                    env=environment, timeout=wait.stretch(LIMIT)
                )
            finally:
                tpm.kill()
    if done.returncode:
        raise Failure(f"index {index} of {state}: {done.stderr}")
    return done.stdout
