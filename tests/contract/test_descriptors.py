from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import os, resource
from devit_contract.descriptors import in_reserve, keep_reserve

def fill():
    try:
        while True:
            os.open("/dev/null", os.O_RDONLY)
    except OSError as err:
        return err.strerror

resource.setrlimit(resource.RLIMIT_NOFILE, (100, 256))
keep_reserve()
assert fill() == "Too many open files"
with in_reserve():
    os.close(os.open("/dev/null", os.O_RDONLY))
    print(resource.getrlimit(resource.RLIMIT_NOFILE))
print(resource.getrlimit(resource.RLIMIT_NOFILE), fill())
"""


def test_a_file_can_be_opened_when_everything_else_has_run_out_of_descriptors() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=30, check=False)
    assert (done.stdout, done.stderr) == ("(256, 256)\n(192, 256) Too many open files\n", "")
