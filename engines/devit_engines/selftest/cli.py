"""``devit selftest``: build the shipped bundle on this device, or check its ways to CUDA, for an issue."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from devit_contract.artefacts.files import write_bytes
from devit_contract.errors import EngineError
from devit_contract.service.application_cli import Application
from devit_contract.service.terminal import print_json, print_table, progress_bar
from devit_engines.building.backends import RunSettings
from devit_engines.building.store import default_folder
from devit_engines.cli import BackendOption, CudaOption, HostMemoryOption, JsonOption, PrecisionOption
from devit_engines.doctor.examine import examine
from devit_engines.doctor.interpreter import Interpreter
from devit_engines.selftest.device.result import DeviceTest, Row
from devit_engines.selftest.device.run import run_device_test
from devit_engines.selftest.report import as_markdown, run_selftest

app = Application()


@app.command()
def selftest(
    backend: BackendOption = "auto",
    precision: PrecisionOption = None,
    cuda: CudaOption = "auto",
    host_memory: HostMemoryOption = "pinned",
    device: Annotated[
        bool, typer.Option("--device", help="Check the ways to CUDA instead, on any NVIDIA GPU, without TensorRT.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="With --device: write what --json prints too.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Build and check a small ViT on this device, and print a report to paste into an issue.

    Takes a minute or two with TensorRT, seconds with ONNX Runtime. Nothing is kept. With --device, a small kernel
    stands in the place of an engine; --cuda names one way, auto checks all three.
    """
    if device:
        _check_device(cuda, out, as_json=as_json)
        return
    if out is not None:
        raise typer.BadParameter("give --out with --device")
    findings = examine(Path("/"), Interpreter.running(), default_folder(), shutil.disk_usage(Path.home()).free)
    settings = RunSettings(cuda=cuda, host_memory=host_memory)
    with progress_bar(quiet=as_json) as progress:
        found, error = run_selftest(findings, backend, precision, settings, progress)
    if as_json:
        print_json(found)
    else:
        typer.echo(as_markdown(found))
    if error is not None:
        raise error


def _check_device(cuda: CudaOption, out: Path | None, *, as_json: bool) -> None:
    with progress_bar(quiet=as_json) as progress:
        found = run_device_test(cuda, progress)
    if out is not None:
        write_bytes(out, msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    if as_json:
        print_json(found)
    else:
        _print_device(found)
    if failures := found.failures:
        raise EngineError(
            f"{len(failures)} of {len(found.rows)} checks failed on {found.gpu.name} ({failures[0].way}, "
            f"{failures[0].check}): run devit doctor, and open an issue with what --json prints"
        )


def _print_device(found: DeviceTest) -> None:
    gpu = found.gpu
    shared = ", shared with the CPU" if gpu.shares_memory else ""
    title = f"{gpu.name} ({gpu.compute_capability}, {gpu.memory_mib} MiB{shared}), driver of CUDA {gpu.driver_cuda}"
    rows = [
        [row.way, row.check, row.verdict, "" if row.ms is None else f"{row.ms:.1f}", _note_in_table(row)]
        for row in found.rows
    ]
    print_table(title, ["way", "check", "verdict", "ms", "note"], rows, numbers=(3,))
    typer.echo(f"{found.machine}; " + ", ".join(f"{name} {number}" for name, number in found.versions.items()))
    for row in found.failures:
        typer.echo(f"{row.way}, {row.check}: {row.note}")


def _note_in_table(row: Row) -> str:
    return "see below" if row.verdict == "fail" else row.note or ""
