"""A TensorRT build in a process of its own: watched, cancelled by Ctrl-C, and repeated if the kernel killed it."""

from __future__ import annotations

import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import msgspec

from devit_contract.artefacts.files import write_bytes
from devit_contract.errors import EngineError, InputError
from devit_contract.machine import available_bytes, more_memory
from devit_engines.engine import CannotCompileError
from devit_engines.trt.request import BuildRequest, Built, Report
from devit_engines.trt.worker import REQUEST, RESULT, BuildFailed

_KILLED = -9
_TICK_S = 0.5
_CANCEL_S = 20.0
_SHARE_OF_MEMORY = 4
_SMALLEST_WORKSPACE = 64 << 20
_LARGEST_WORKSPACE = 4 << 30
_RETRY_SHARE = 4


def build_in_child(request: BuildRequest, report: Report, first_bytes: int | None = None) -> Built:
    """Build a plan in another process.

    If the kernel kills that process, as it does when memory is short, a second one tries with a quarter of the
    workspace.

    ``report`` is called twice a second. ``first_bytes`` is the workspace of the first try, by default
    :func:`workspace_bytes`.

    Raises:
        CannotCompileError: TensorRT refuses the graph, in its own words.
        EngineError: There is no TensorRT or GPU, a graph is not as the manifest says, or the process was killed twice.
        InputError: The folder cannot be written.
        KeyboardInterrupt: Ctrl-C; the other process has ended.
    """
    first = workspace_bytes() if first_bytes is None else first_bytes
    second = max(first // _RETRY_SHARE, _SMALLEST_WORKSPACE)
    notes: tuple[str, ...] = ()
    with _shared_folder(Path(request.temp_prefix)) as folder:
        write_bytes(folder / REQUEST, msgspec.json.encode(request))
        for workspace in (first, second):
            with tempfile.TemporaryFile(dir=folder) as errors:
                with _worker(folder, workspace, errors) as process:
                    _follow(process, report)
                    code = process.wait()
                if code != _KILLED:
                    built = _outcome(folder, request.name, code, errors)
                    return msgspec.structs.replace(built, warnings=(*notes, *built.warnings))
            if not notes:
                notes = (
                    f"the kernel killed the first build (workspace {first >> 20} MiB), "
                    f"repeated with {second >> 20} MiB",
                )
                report(0.0, notes[0])
    raise EngineError(
        f"{request.name}: the kernel killed the build twice, with {first >> 20} and {second >> 20} MiB of workspace: "
        f"{more_memory()}, and try again"
    )


def workspace_bytes(root: Path = Path("/")) -> int:
    """A quarter of the memory that is free now, within 64 MiB and 4 GiB: CPU and GPU of a Jetson share it.

    Raises:
        InputError: ``proc/meminfo`` under ``root`` does not say how much there is.
    """
    available = available_bytes(root)
    return min(max(available // _SHARE_OF_MEMORY, _SMALLEST_WORKSPACE), _LARGEST_WORKSPACE)


@contextmanager
def _shared_folder(prefix: Path) -> Iterator[Path]:
    """Make a folder in the store, where the leftovers of a killed build are found and swept away."""
    try:
        prefix.parent.mkdir(parents=True, exist_ok=True)
        place = tempfile.TemporaryDirectory(prefix=prefix.name, dir=prefix.parent)
    except OSError as err:
        raise InputError(f"{prefix.parent}: cannot be written ({err.strerror}): choose another with --store") from err
    with place as name:
        yield Path(name)


@contextmanager
def _worker(folder: Path, workspace: int, errors: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Start the build process; it does not outlive the block."""
    command = [sys.executable, "-m", "devit_engines.trt.worker", str(folder), str(workspace)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors) as process:
        try:
            yield process
        except KeyboardInterrupt:
            assert process.stdin is not None
            process.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_CANCEL_S)
            raise
        finally:
            process.kill()


def _follow(process: subprocess.Popen[bytes], report: Report) -> None:
    """Report the process's phases until it closes its standard output."""
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


def _outcome(folder: Path, name: str, code: int, errors: IO[bytes]) -> Built:
    """Read what the process left; without a result, its last line on standard error is the reason."""
    if not (folder / RESULT).exists():
        errors.seek(0)
        lines = [line.strip() for line in errors.read().decode("utf-8", "replace").split("\n") if line.strip()]
        reason = f" ({lines[-1]})" if lines else ""
        raise EngineError(f"{name}: the build process ended with code {code}{reason}")
    result = msgspec.msgpack.decode((folder / RESULT).read_bytes(), type=Built | BuildFailed)
    if isinstance(result, BuildFailed):
        raise CannotCompileError(result.error) if result.is_about_graph else EngineError(result.error)
    return result
