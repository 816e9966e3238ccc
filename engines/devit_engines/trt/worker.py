"""The process that one TensorRT build lives in: ``python -m devit_engines.trt.worker FOLDER WORKSPACE_BYTES``.

A build takes more than a gigabyte, which only the end of its process gives back, and the kernel may kill it. The
process reads ``request.json``, prints the current phase on standard output, stops when its standard input is closed,
and leaves ``result.msgpack``.
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
from devit_engines.trt.builder import build_plan, can_be_cancelled, merged_cache
from devit_engines.trt.request import BuildRequest, Built
from devit_engines.trt.timing_cache import merge_into, read_cache

REQUEST, RESULT = "request.json", "result.msgpack"
CANCELLED = 130
_GRACE_S = 10.0


class BuildFailed(msgspec.Struct, frozen=True, tag=True):
    """Why no engine was built."""

    error: str
    is_about_graph: bool = False
    """Whether another variant may do."""


def main(folder: Path, workspace_bytes: int) -> int:
    """Build one plan; returns the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the caller too, who closes our standard input
    events = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # native libraries print where they like
    cancelled = threading.Event()
    request = msgspec.json.decode((folder / REQUEST).read_bytes(), type=BuildRequest)
    try:
        trt = importlib.import_module(request.module)
    except ImportError as err:
        return _leave(folder, BuildFailed(f"{request.name}: cannot import TensorRT ({err}): run devit doctor"))
    threading.Thread(target=_watch_stdin, args=(cancelled, can_be_cancelled(trt)), daemon=True).start()

    def watch(phase: str) -> bool:
        os.write(events, phase.encode("utf-8", "replace") + b"\n")
        return not cancelled.is_set()

    cache = Path(request.timing_cache)
    try:
        built = build_plan(trt, request, workspace_bytes, read_cache(cache), watch)
    except DevitError as err:
        is_about_graph = isinstance(err, CannotCompileError)
        return CANCELLED if cancelled.is_set() else _leave(folder, BuildFailed(str(err), is_about_graph))
    warnings = built.warnings
    try:
        merge_into(cache, built.timing_cache, lambda old, new: merged_cache(trt, old, new))
    except DevitError as err:  # costs the next build time, and this one nothing
        warnings = (*warnings, str(err))
    return _leave(folder, msgspec.structs.replace(built, warnings=warnings, timing_cache=b""))


def _leave(folder: Path, result: Built | BuildFailed) -> int:
    try:
        write_bytes(folder / RESULT, msgspec.msgpack.encode(result))
    except DevitError as err:
        sys.stderr.write(f"{err}\n")  # the caller quotes the last line
        return 1
    return 0 if isinstance(result, Built) else 1


def _watch_stdin(cancelled: threading.Event, has_monitor: bool) -> None:
    """Wait until the caller closes standard input, by cancelling or by dying."""
    while os.read(0, 4096):
        pass
    cancelled.set()
    if has_monitor:  # which TensorRT asks now and then, and may not for minutes
        time.sleep(_GRACE_S)
    os._exit(CANCELLED)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
