"""A TensorRT build in a process of its own: watched, cancelled by Ctrl-C, and tried again when the kernel killed it."""

from __future__ import annotations

import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from devit_contract.artefacts.files import write_bytes
from devit_contract.errors import EngineError, InputError
from devit_contract.machine import available_bytes
from devit_engines.engine import CannotCompileError
from devit_engines.trt.worker import GRAPH, PLAIN_GRAPH, PLAN, REQUEST, RESULT, WorkerRequest, WorkerResult

_KILLED = -9
_TICK_S = 0.5
_CANCEL_S = 20.0
_SHARE_OF_MEMORY = 4
_SMALLEST_WORKSPACE = 64 << 20
_LARGEST_WORKSPACE = 4 << 30
_RETRY_SHARE = 4

Report = Callable[[float, str], None]
"""Told the seconds since the start and what is on, twice a second."""


@dataclass(frozen=True)
class BuiltPlan:
    """What a build process left."""

    content: bytes
    route: str
    warnings: tuple[str, ...]
    """TensorRT's about FP16, and ours about a build that had to be repeated."""


def build_in_child(request: WorkerRequest, graph: bytes, plain_graph: bytes, drafts: Path, report: Report) -> BuiltPlan:
    """Build a plan in another process.

    A process that the kernel killed, as it does when memory is short, is followed by one with a quarter of the
    workspace.

    Args:
        request: What is built, with the workspace of the first try.
        graph: The rung's ONNX graph.
        plain_graph: The FP32 graph.
        drafts: Begin of the name of the folder that both processes share, e.g. ``store/.key.``.
        report: See :data:`Report`.

    Raises:
        CannotCompileError: TensorRT refuses the graph, in its own words.
        EngineError: There is no TensorRT or GPU, or the process was killed twice.
        InputError: The folder cannot be written.
        KeyboardInterrupt: Ctrl-C; the other process has ended.
    """
    smaller = msgspec.structs.replace(
        request, workspace_bytes=max(request.workspace_bytes // _RETRY_SHARE, _SMALLEST_WORKSPACE)
    )
    with _shared_folder(drafts) as folder:
        write_bytes(folder / GRAPH, graph)
        write_bytes(folder / PLAIN_GRAPH, plain_graph)
        code, said = _run(folder, request, report)
        if code != _KILLED:
            return _outcome(folder, request.name, code, said)
        note = (
            f"the kernel killed the first build (workspace {request.workspace_bytes >> 20} MiB), "
            f"repeated with {smaller.workspace_bytes >> 20} MiB"
        )
        report(0.0, note)
        code, said = _run(folder, smaller, report)
        if code == _KILLED:
            raise EngineError(
                f"{request.name}: the kernel killed the build twice, with {request.workspace_bytes >> 20} and "
                f"{smaller.workspace_bytes >> 20} MiB of workspace: close other programs or add swap, and try again"
            )
        plan = _outcome(folder, request.name, code, said)
        return BuiltPlan(plan.content, plan.route, (note, *plan.warnings))


def workspace_bytes(root: Path = Path("/")) -> int:
    """A quarter of the memory that is free now, within 64 MiB and 4 GiB: CPU and GPU of a Jetson share it.

    Raises:
        InputError: ``proc/meminfo`` under ``root`` does not say how much there is.
    """
    available = available_bytes(root)
    return min(max(available // _SHARE_OF_MEMORY, _SMALLEST_WORKSPACE), _LARGEST_WORKSPACE)


@contextmanager
def _shared_folder(drafts: Path) -> Iterator[Path]:
    """A folder in the store, where what a killed build leaves is found and swept away."""
    try:
        drafts.parent.mkdir(parents=True, exist_ok=True)
        place = tempfile.TemporaryDirectory(prefix=drafts.name, dir=drafts.parent)
    except OSError as err:
        raise InputError(f"{drafts.parent}: cannot be written ({err.strerror}): choose another with --store") from err
    with place as name:
        yield Path(name)


def _run(folder: Path, request: WorkerRequest, report: Report) -> tuple[int, str]:
    """One process to its end; its exit code and the last line that it left on standard error."""
    write_bytes(folder / REQUEST, msgspec.json.encode(request))
    command = [sys.executable, "-m", "devit_engines.trt.worker", str(folder)]
    with tempfile.TemporaryFile(dir=folder) as said:
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=said) as process:
            try:
                _follow(process, report)
                code = process.wait()
            except KeyboardInterrupt:
                _cancel(process)
                raise
            finally:
                process.kill()
        said.seek(0)
        lines = said.read().decode("utf-8", "replace").split("\n")
    return code, next((line.strip() for line in reversed(lines) if line.strip()), "")


def _follow(process: subprocess.Popen[bytes], report: Report) -> None:
    """Hand on what the process says until it closes its standard output."""
    assert process.stdout is not None
    start_s, phase, rest = time.monotonic(), "starting TensorRT", b""
    while True:
        report(time.monotonic() - start_s, phase)
        if not select.select([process.stdout], [], [], _TICK_S)[0]:
            continue
        piece = process.stdout.read1()  # type: ignore[attr-defined]
        if not piece:
            return
        *lines, rest = (rest + piece).split(b"\n")
        if lines:
            phase = lines[-1].decode("utf-8", "replace")


def _cancel(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(_CANCEL_S)
    except subprocess.TimeoutExpired:
        process.kill()


def _outcome(folder: Path, name: str, code: int, said: str) -> BuiltPlan:
    result = WorkerResult(error=f"{name}: the build process ended with code {code}{said and f' ({said})'}")
    if (folder / RESULT).exists():
        result = msgspec.json.decode((folder / RESULT).read_bytes(), type=WorkerResult)
    if result.error:
        raise CannotCompileError(result.error) if result.is_about_graph else EngineError(result.error)
    return BuiltPlan((folder / PLAN).read_bytes(), result.route, result.warnings)
