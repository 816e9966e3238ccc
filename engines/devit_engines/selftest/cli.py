"""``devit selftest``: build the shipped bundle on this device and print a report for an issue."""

from __future__ import annotations

import shutil
from pathlib import Path

import typer

from devit_contract.service.application_cli import Application
from devit_contract.service.terminal import print_json, progress_bar
from devit_engines.building.backends import RunSettings
from devit_engines.building.store import default_folder
from devit_engines.cli import BackendOption, CudaOption, HostMemoryOption, JsonOption, PrecisionOption
from devit_engines.doctor.examine import examine
from devit_engines.doctor.interpreter import Interpreter
from devit_engines.selftest.report import as_markdown, run_selftest

app = Application()


@app.command()
def selftest(
    backend: BackendOption = "auto",
    precision: PrecisionOption = None,
    cuda: CudaOption = "auto",
    host_memory: HostMemoryOption = "pinned",
    as_json: JsonOption = False,
) -> None:
    """Build and check a small ViT on this device, and print a report to paste into an issue.

    Takes a minute or two with TensorRT, seconds with ONNX Runtime. Nothing is kept.
    """
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
