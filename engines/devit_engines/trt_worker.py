"""The process that one TensorRT build lives in: ``python -m devit_engines.trt_worker FOLDER``.

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
from pathlib import Path

import msgspec

from devit_contract.errors import DevitError
from devit_contract.files import write_bytes
from devit_engines.timing_cache import merge_into, read_cache
from devit_engines.trt import Plan, PlanRequest, build_plan, can_be_cancelled, merged_cache

REQUEST, GRAPH, PLAIN_GRAPH, PLAN, RESULT = "request.json", "graph.onnx", "plain.onnx", "plan", "result.json"
CANCELLED = 130


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
                timing_cache=read_cache(cache),
                targets=request.targets,
            ),
            watch,
        )
        write_bytes(folder / PLAN, plan.content)
        merge_into(cache, plan.timing_cache, lambda old, new: merged_cache(trt, old, new))
    except DevitError as err:
        return CANCELLED if cancelled.is_set() else _leave(folder, WorkerResult(error=str(err)))
    return _leave(folder, WorkerResult(route=plan.route, warnings=plan.warnings))


def _leave(folder: Path, result: WorkerResult) -> int:
    write_bytes(folder / RESULT, msgspec.json.encode(result))
    return 1 if result.error else 0


def _watch_stdin(cancelled: threading.Event, has_monitor: bool) -> None:
    """Our caller closes it to cancel, and its death closes it too."""
    while os.read(0, 4096):
        pass
    cancelled.set()
    if not has_monitor:
        os._exit(CANCELLED)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
