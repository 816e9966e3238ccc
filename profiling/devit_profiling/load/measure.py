"""A measurement from the first question to the written report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from devit_contract.artefacts.fleet import Fleet
from devit_contract.errors import InputError, LinkError
from devit_contract.service.progress import Progress
from devit_contract.wire.client import Client, Picture
from devit_profiling.figures.analysis import Report
from devit_profiling.load.cell_run import run_profile
from devit_profiling.record.record import Plan
from devit_profiling.report.report import write_report


def measure_cell(
    client: Client,
    fleet: Fleet,
    device_names: Sequence[str],
    pictures: Iterable[Picture],
    plan: Plan,
    out: Path,
    progress: Progress,
    calibrations: Path | None = None,
) -> tuple[Path, Report]:
    """Measure devices of a running cell, and write the report.

    Args:
        client: Connected to the fleet's node.
        fleet: Whose devices the names are.
        device_names: Devices to measure, each once.
        pictures: What to send: a list that is repeated, or an endless iterator.
        plan: ``QUICK`` or ``Plan()`` of :mod:`devit_profiling.load.cell_run`, with any changes.
        out: Folder for the run's own folder.
        progress: Told the scenario, the seconds done and planned, and the phase.
        calibrations: Folder with calibrations of devices; none by default.

    Returns:
        The run's folder, which holds ``report.html``, and the report; that of a run which was cut short tells so.

    Raises:
        ManifestError: A calibration breaks its format, or is of another board.
        InputError: A name is not in the fleet or is there twice, or a picture is refused.
        LinkError: The node or a device does not answer.
    """
    for name in device_names:
        if list(device_names).count(name) > 1:
            raise InputError(f"device {name!r}: expected each name once, found it twice: name it once")
    devices = [fleet.find_device(name) for name in device_names]
    folder = run_profile(client, devices, pictures, plan, out, progress, calibrations=calibrations, extras=fleet.extra)
    return folder, write_report(folder)


def raise_if_cut_short(report: Report) -> None:
    """Raise again what ended a run before its plan did.

    Raises:
        KeyboardInterrupt: It was Ctrl-C or SIGTERM.
        LinkError: The link to the node or to a device was lost.
    """
    if report.cut_short is not None:
        raise KeyboardInterrupt if report.cut_short.is_interrupt else LinkError(report.cut_short.cause)
