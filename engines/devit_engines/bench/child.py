"""Runs this machine's engine in a process of its own, and takes from it what each inference took.

The process (:mod:`devit_engines.bench.worker`) prints a :class:`Ready` line. For every line with a number of seconds on
its standard input, it runs the engine back to back for that long and prints a :class:`TimedRun` line. After a failure
it prints a :class:`Failed` line and ends. It also ends when its input is closed, as it is when its parent dies.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from devit_contract.errors import EngineError
from devit_engines.engine import ModelRef

_STEP_S = 0.05
_LATE_S = 60.0
_END_DEADLINE_S = 5.0


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The engine is loaded and warm."""

    engine: str
    board_model: str
    l4t: str
    bundle: str
    image_shape: tuple[int, int, int]
    inference_threads: int
    gpu_instance: str = ""


class TimedRun(msgspec.Struct, frozen=True, tag=True):
    """One image after the other, for as long as was requested."""

    start_ns: int
    """Monotonic clock, which all processes of a machine share."""
    end_ns: int
    taken_us: list[int]
    """Of each inference."""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """Why there is no engine, or no more."""

    why: str
    """One line, written for the user."""


Line = Ready | TimedRun | Failed
_Line = TypeVar("_Line", Ready, TimedRun)


def engine_command(bundle: Path, model: ModelRef, store: Path | None, threads: int, engine: str) -> list[str]:
    """Give the command that runs a model's engine, named as for :func:`devit_engines.choice.open_engine`.

    Without a store, the user's own; ``threads`` are CPU threads of ONNX Runtime.
    """
    command = [sys.executable, "-m", "devit_engines.bench.worker", "--bundle", str(bundle), "--submodel", str(model)]
    command += ["--threads", str(threads), "--engine", engine]
    return [*command, "--store", str(store)] if store is not None else command


class EngineChild:
    """An engine in a process of its own: a context manager.

    The process is not in the terminal's group. It ends when its input is closed, after its current run.
    """

    def __init__(self, command: Sequence[str]) -> None:
        """Start the process; :meth:`ready` waits until its engine is loaded.

        Raises:
            EngineError: It cannot be started.
        """
        try:
            self._child = subprocess.Popen(
                command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
            )
        except OSError as err:
            raise EngineError(
                f"{command[0]}: cannot be started to run the engine ({err.strerror}): install the package again"
            ) from err
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._stdin, self._stdout = self._child.stdin, self._child.stdout
        self._text = b""

    def __enter__(self) -> EngineChild:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        """End the process, without waiting for its current run after an error."""
        self._stdin.close()
        self._stdout.close()
        if kind is not None:
            self._child.terminate()
        try:
            self._child.wait(_END_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def ready(self, meanwhile: Callable[[float], None], deadline_s: float = 300.0) -> Ready:
        """Wait until the engine is loaded.

        Raises:
            EngineError: It does not load, or not in time.
        """
        return self._line(Ready, meanwhile, deadline_s)

    def run(self, duration_s: float, meanwhile: Callable[[float], None]) -> TimedRun:
        """Run it back to back; ``meanwhile`` is called with a number of seconds, and uses at most that many.

        Raises:
            EngineError: The engine fails, or does not answer.
        """
        try:
            self._stdin.write(f"{duration_s}\n".encode())
        except OSError as err:
            raise EngineError(f"the engine's process ended early ({err.strerror}): run it again") from err
        return self._line(TimedRun, meanwhile, duration_s + _LATE_S)

    def _line(self, kind: type[_Line], meanwhile: Callable[[float], None], limit_s: float) -> _Line:
        """Wait for a line of the process."""
        end_s = time.monotonic() + limit_s
        while b"\n" not in self._text:
            if time.monotonic() > end_s:
                raise EngineError(f"the engine did not answer within {limit_s:.0f} s: run its command by hand")
            meanwhile(_STEP_S)
            if not select.select([self._stdout], [], [], 0)[0]:
                continue
            chunk = os.read(self._stdout.fileno(), 1 << 20)
            if not chunk:
                raise EngineError("the engine's process ended early: see its message")
            self._text += chunk
        text, self._text = self._text.split(b"\n", 1)
        line: Line = msgspec.json.decode(text, type=Line)
        if isinstance(line, Failed):
            raise EngineError(line.why)
        if not isinstance(line, kind):
            raise EngineError(f"expected {kind.__name__} from the engine's process, found {line}: reinstall devit")
        return line
