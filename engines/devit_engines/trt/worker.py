"""The process that one TensorRT build lives in: ``python -m devit_engines.trt.worker FOLDER``.

Apart from its caller, since a build takes more than a gigabyte that only a process's end gives back, and since the
kernel may kill it. It reads ``request.json`` and the two graphs, says on standard output which phase is on, stops when
its standard input is closed, and leaves ``plan`` and ``result.json``.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import time
from pathlib import Path

import msgspec

from devit_contract.artefacts.files import write_bytes
from devit_contract.errors import DevitError
from devit_engines.engine import CannotCompileError
from devit_engines.trt.builder import Plan, PlanRequest, build_plan, can_be_cancelled, merged_cache
from devit_engines.trt.timing_cache import merge_into, read_cache

REQUEST, GRAPH, PLAIN_GRAPH, PLAN, RESULT = "request.json", "graph.onnx", "plain.onnx", "plan", "result.json"
CANCELLED = 130
_GRACE_S = 10.0


class WorkerRequest(msgspec.Struct, frozen=True):
    """``request.json``; the graphs lie beside it."""

    name: str
    rung: str
    fp32_nodes: tuple[str, ...]
    workspace_bytes: int
    timing_cache: str
    """File."""
    module: str = "tensorrt"
    targets: tuple[str, ...] = ()


class WorkerResult(msgspec.Struct, frozen=True):
    """``result.json``: a plan was built, or why none was."""

    error: str = ""
    is_about_graph: bool = False
    """Whether another rung may do."""
    route: str = ""
    warnings: tuple[str, ...] = ()


def main(folder: Path) -> int:
    """Build one plan; returns the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the caller too, who closes our standard input
    events = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # native libraries print where they like
    cancelled = threading.Event()
    request = msgspec.json.decode((folder / REQUEST).read_bytes(), type=WorkerRequest)
    try:
        trt = importlib.import_module(request.module)
    except ImportError as err:
        return _leave(folder, WorkerResult(error=f"{request.name}: cannot import TensorRT ({err}): run devit doctor"))
    threading.Thread(target=_watch_stdin, args=(cancelled, can_be_cancelled(trt)), daemon=True).start()

    def watch(phase: str) -> bool:
        os.write(events, phase.encode("utf-8", "replace") + b"\n")
        return not cancelled.is_set()

    cache = Path(request.timing_cache)
    try:
        plan: Plan = build_plan(
            trt,
            PlanRequest(
                name=request.name,
                rung=request.rung,
                graph=(folder / GRAPH).read_bytes(),
                plain_graph=(folder / PLAIN_GRAPH).read_bytes(),
                fp32_nodes=request.fp32_nodes,
                workspace_bytes=request.workspace_bytes,
                timing_cache=_known_timings(cache),
                targets=request.targets,
            ),
            watch,
        )
        write_bytes(folder / PLAN, plan.content)
    except DevitError as err:
        is_about_graph = isinstance(err, CannotCompileError)
        return CANCELLED if cancelled.is_set() else _leave(folder, WorkerResult(str(err), is_about_graph))
    warnings = plan.warnings
    try:
        merge_into(cache, plan.timing_cache, lambda old, new: merged_cache(trt, old, new))
    except DevitError as err:  # costs the next build time, and this one nothing
        warnings = (*warnings, str(err))
    return _leave(folder, WorkerResult(route=plan.route, warnings=warnings))


def _known_timings(cache: Path) -> bytes:
    try:
        return read_cache(cache)
    except DevitError:  # it is told when it is written
        return b""


def _leave(folder: Path, result: WorkerResult) -> int:
    write_bytes(folder / RESULT, msgspec.json.encode(result))
    return 1 if result.error else 0


def _watch_stdin(cancelled: threading.Event, has_monitor: bool) -> None:
    """Our caller closes it to cancel, and its death closes it too."""
    while os.read(0, 4096):
        pass
    cancelled.set()
    if has_monitor:  # which TensorRT asks now and then, and may not for minutes
        time.sleep(_GRACE_S)
    os._exit(CANCELLED)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
