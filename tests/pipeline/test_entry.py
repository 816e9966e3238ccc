"""Console scripts: what Ctrl-C does before a command has begun."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

SLOW = """
import importlib.abc, sys, time

class Slow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "typer":
            print("importing", flush=True)
            time.sleep(60)

from devit_pipeline import entry
sys.meta_path.insert(0, Slow())
"""


def test_ctrl_c_while_a_command_is_imported_ends_it_without_a_word() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", f"{SLOW}entry.devit()"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "importing\n"
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=30)
    assert (child.returncode, said) == (-signal.SIGINT, "")


@pytest.mark.parametrize("script", ["devit", "edge_agent", "fusion_node", "profile"])
def test_every_script_explains_itself(script: str) -> None:
    code = f"import sys; sys.argv[1:] = ['--help']; from devit_pipeline import entry; entry.{script}()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Usage: {script.replace('_', '-')}" in done.stdout
