"""How a command ends: one line on stderr, and an exit code that tells a service manager what may help."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from devit_contract.service.terminal import print_table

SCRIPT = """
import typer
from devit_contract.service import terminal
from devit_contract import errors

app = typer.Typer()

@app.command()
def fail(kind: str) -> None:
    if kind == "speak":
        typer.echo("x" * 100_000)
    elif kind == "foreign":
        "name = M\\udcfcller".encode()
    elif kind.startswith("/"):
        open(kind)
    elif kind != "none":
        raise getattr(errors, kind)("expected this,\\n  found that: do something")

terminal.run(app, "fail")
"""


@pytest.mark.parametrize(
    ("kind", "code"),
    [("none", 0), ("DevitError", 1), ("EngineError", 1), ("DeviceLostError", 70), ("SourceLostError", 70)],
)
def test_an_exit_code_tells_a_failure_from_a_lost_gpu_or_camera(kind: str, code: int) -> None:
    """A lost context dies with its process, so a service manager may start the same command again."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, kind], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code
    assert done.stderr == ("" if code == 0 else "error: expected this, found that: do something\n")


def test_a_name_that_nothing_can_store_is_a_named_failure() -> None:
    command = [sys.executable, "-c", SCRIPT, "foreign"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    said = r"name = M\xfcller: expected UTF-8, which files and messages hold: rename that file or folder"
    assert done.stderr == f"error: {said}\n"


def test_a_lost_gpu_is_an_engine_error_that_callers_can_tell_apart() -> None:
    from devit_contract.errors import DeviceLostError, EngineError

    assert issubclass(DeviceLostError, EngineError)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_nothing_takes_is_a_named_failure(unbuffered: str) -> None:
    """A full disk is no bug; with a buffer it shows only at the end."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, "speak"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
            env={"PYTHONUNBUFFERED": unbuffered},
        )
    assert done.returncode == 1
    assert done.stderr == (
        "error: the output cannot be written (No space left on device): free some room, or send it elsewhere\n"
    )


@pytest.mark.parametrize("kind", ["speak", "none"])
def test_closed_standard_streams_are_no_bug(kind: str) -> None:
    command = 'exec "$@" <&- >&- 2>&-'
    done = subprocess.run(["sh", "-c", command, "sh", sys.executable, "-c", SCRIPT, kind], timeout=60, check=False)
    assert done.returncode == 0


def test_a_path_that_the_machine_refuses_is_a_named_failure() -> None:
    name = "/" + "a" * 300
    done = subprocess.run([sys.executable, "-c", SCRIPT, name], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == f"error: {name}: cannot be used (File name too long): choose another path\n"


def test_a_file_that_is_missing_unforeseen_is_a_bug_and_keeps_its_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "/no/such/file"], capture_output=True, text=True, timeout=60, check=False
    )
    assert "Traceback" in done.stderr


def test_a_table_at_80_columns_breaks_between_words_alone(capsys: pytest.CaptureFixture[str]) -> None:
    board = "NVIDIA Jetson Orin Nano Developer Kit (SIMULATED)"
    rows = [[f"jetson{number}", board, "module, VDD_IN", "12.345", "0.0297", "11.94 ±0.31"] for number in (1, 2)]
    print_table("Profile", ["device", "board", "scope", "W", "J/inf.", "p50 ms"], rows, numbers=(3, 4, 5))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    words = {word for line in lines for word in line.split()}
    assert {word for row in rows for cell in row for word in cell.split()} <= words


def test_a_table_whose_words_do_not_fit_breaks_the_longest(capsys: pytest.CaptureFixture[str]) -> None:
    path = "/home/eve/" + "a" * 100
    print_table("", ["image", "state"], [[path, "full"], ["b", "not read"]])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "".join(line.split()[0] for line in lines if "aaa" in line) == path
    assert any("not read" in line for line in lines)
