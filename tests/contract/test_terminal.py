"""How a command ends: one line on stderr, and an exit code that tells a service manager what may help."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import typer
from devit_contract import errors, terminal

app = typer.Typer()

@app.command()
def fail(kind: str) -> None:
    if kind != "none":
        raise getattr(errors, kind)("expected this,\\n  found that: do something")

terminal.run(app, "fail")
"""


@pytest.mark.parametrize(
    ("kind", "code"), [("none", 0), ("DevitError", 1), ("EngineError", 1), ("DeviceLostError", 70)]
)
def test_an_exit_code_tells_a_failure_from_a_lost_gpu(kind: str, code: int) -> None:
    """A lost context dies with its process, so a service manager may start the same command again."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, kind], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code
    assert done.stderr == ("" if code == 0 else "error: expected this, found that: do something\n")


def test_a_lost_gpu_is_an_engine_error_that_callers_can_tell_apart() -> None:
    from devit_contract.errors import DeviceLostError, EngineError

    assert issubclass(DeviceLostError, EngineError)
