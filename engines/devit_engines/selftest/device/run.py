"""Checks every way to CUDA in processes of its own, so that nothing that a driver does ends the one that reports."""

from __future__ import annotations

import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import msgspec

from devit_contract.choices import CudaChoice
from devit_contract.errors import EngineError
from devit_contract.machine import read_text
from devit_contract.service.progress import Progress
from devit_engines.board import detect_board
from devit_engines.selftest.device.checks import CHECKS
from devit_engines.selftest.device.result import DeviceTest, Gpu, Refused, Row

DEADLINE_S = 60.0
"""For all checks of one way."""
_LOST_EXIT = 70
_WAYS: tuple[CudaChoice, ...] = ("ctypes", "cuda-bindings", "pycuda")
_STICKY, _AFTER = "a kernel traps", "a new process"


def run_device_test(way: CudaChoice, progress: Progress, deadline_s: float = DEADLINE_S) -> DeviceTest:
    """Check one way, or with ``auto`` all three.

    Raises:
        EngineError: There is no GPU, no driver, or it refuses; one line that says what to run next.
    """
    gpu = _gpu("describe", "ctypes", deadline_s)
    ways = _WAYS if way == "auto" else (way,)
    rows: list[Row] = []
    for number, each in enumerate(ways):
        progress("checks", number, len(ways), each)
        rows += _rows_of(each, deadline_s)
    progress("checks", len(ways), len(ways))
    board = detect_board()
    versions = {"devit": version("devit"), "Python": platform.python_version(), "Linux": platform.release()}
    if driver := re.search(r"\d+\.\d+(\.\d+)?", read_text(Path("/proc/driver/nvidia/version"))):
        versions["driver"] = driver[0]
    if board.l4t is not None:
        versions["L4T"] = board.l4t
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return DeviceTest(created, versions, board.name, gpu, tuple(rows))


def _gpu(work: str, way: CudaChoice, deadline_s: float) -> Gpu:
    lines, end = _child(work, way, deadline_s)
    found = lines[-1] if lines else Refused(f"the driver cannot be asked: {end}: run devit doctor")
    if isinstance(found, Gpu):
        return found
    raise EngineError(found.why if isinstance(found, Refused) else f"no GPU described, found {found}: report this")


def _rows_of(way: CudaChoice, deadline_s: float) -> Iterator[Row]:
    """All rows of one way; what a process that ended early did not reach is told too."""
    lines, end = _child("check", way, deadline_s)
    rows = [line for line in lines if isinstance(line, Row)]
    yield from rows
    if refused := [line.why for line in lines if isinstance(line, Refused)]:
        yield Row(way, "opens", "fail", None, refused[0])
        return
    if [row.note for row in rows] == ["not installed"]:
        return
    missing = [name for name in CHECKS if name not in {row.check for row in rows}]
    for number, name in enumerate(missing):
        told = ("skipped", "the process ended early") if number else ("fail", end)
        yield Row(way, name, told[0], None, told[1])  # type: ignore[arg-type]
    yield _sticky(way, deadline_s)
    yield _after(way, deadline_s)


def _sticky(way: CudaChoice, deadline_s: float) -> Row:
    """A kernel that traps ends its process by one line and exit code 70, as an agent's does."""
    start_s = time.perf_counter()
    try:
        done = subprocess.run(_command("lose", way), capture_output=True, text=True, timeout=deadline_s)
    except subprocess.TimeoutExpired:
        return Row(way, _STICKY, "fail", deadline_s * 1e3, f"did not end within {deadline_s:g} s")
    taken_ms, lines = _since_ms(start_s), done.stderr.strip().splitlines()
    if done.returncode == _LOST_EXIT and len(lines) == 1 and "start it again" in lines[0]:
        code = re.search(r"CUDA_ERROR_\w+ \(\d+\)", lines[0])
        return Row(way, _STICKY, "pass", taken_ms, code[0] if code else None)
    said = lines[-1] if lines else "nothing"
    how = f"exit code {done.returncode}" if done.returncode >= 0 else _signal_name(-done.returncode)
    wanted = f"one line and exit code {_LOST_EXIT}"
    return Row(way, _STICKY, "fail", taken_ms, f"expected {wanted}, found {how}, {len(lines)} lines, the last: {said}")


def _after(way: CudaChoice, deadline_s: float) -> Row:
    start_s = time.perf_counter()
    try:
        _gpu("again", way, deadline_s)
    except EngineError as err:
        return Row(way, _AFTER, "fail", _since_ms(start_s), str(err))
    return Row(way, _AFTER, "pass", _since_ms(start_s))


def _child(work: str, way: CudaChoice, deadline_s: float) -> tuple[list[Gpu | Row | Refused], str]:
    """Run one process to its end.

    Returns:
        What it printed, and how it ended.
    """
    with subprocess.Popen(_command(work, way), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            output, errors = process.communicate(timeout=deadline_s)
            end = f"exit code {process.returncode}"
        except subprocess.TimeoutExpired:
            process.kill()
            output, errors = process.communicate()
            end = f"did not end within {deadline_s:g} s"
        else:
            if process.returncode < 0:
                end = f"ended by {_signal_name(-process.returncode)}"
    said = errors.decode(errors="replace").strip().splitlines()
    whole = output[: output.rfind(b"\n") + 1].splitlines()
    decode = msgspec.json.Decoder(Gpu | Row | Refused).decode
    return [decode(line) for line in whole], f"{end}: {said[-1]}" if said else end


def _command(work: str, way: CudaChoice) -> list[str]:
    return [sys.executable, "-m", "devit_engines.selftest.device.child", work, way]


def _signal_name(number: int) -> str:
    return signal.Signals(number).name


def _since_ms(start_s: float) -> float:
    return round((time.perf_counter() - start_s) * 1e3, 3)
