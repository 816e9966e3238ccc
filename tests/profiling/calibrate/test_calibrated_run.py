"""A real run of a cell whose device has a calibration: it becomes part of the run, or stops it before it starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from devit_contract.artefacts.files import write_json
from devit_contract.errors import ManifestError
from devit_contract.service.progress import no_progress
from devit_profiling.figures.analysis import analyse
from devit_profiling.figures.evidence import Evidence
from devit_profiling.load.cell_run import measure_cell
from devit_profiling.load.load_generator import random_images
from devit_profiling.record.calibration import Alignment, Calibration
from devit_profiling.record.record import Plan
from devit_profiling.record.run_folder import read_recording
from devit_profiling.report.report import write_report

if TYPE_CHECKING:
    from conftest import LiveCell
else:
    LiveCell = object

PICTURES = random_images((6, 8, 1))
SHORT = Plan(
    has_alone=False,
    has_idle_after=False,
    settle_s=0.0,
    idle_s=0.3,
    warm_up_s=0.1,
    warm_up_answers=5,
    duration_s=0.4,
    windows=1,
    interval_ms=20,
    idle_samples=3,
    window_samples=3,
)


def doubling(board_model: str) -> Calibration:
    """A line that makes two watts and a half of one."""
    return Calibration(
        schema=2,
        device="jetson1",
        board_model=board_model,
        scope="module input (VDD_IN)",
        meter="a meter",
        made_utc="2026-01-02 03:04:05",
        run="r",
        is_simulated=True,
        gain=2.0,
        offset_w=0.5,
        residual_w=0.01,
        low_w=0.0,
        high_w=20.0,
        centre_w=10.0,
        level_95_w=0.01,
        gain_95=0.001,
        segments=10,
        alignment=Alignment(0.0, 60.0, 0.99),
    )


def test_calibration_of_the_device_is_kept_in_the_run_and_corrects_it(live_cell: LiveCell, tmp_path: Path) -> None:
    with live_cell.client() as client:
        found = doubling(client.describe("jetson1").board_model)
        write_json(tmp_path / "jetson1.json", found)
        folder = measure_cell(
            client, live_cell.fleet, ["jetson1"], PICTURES, SHORT, tmp_path / "runs", no_progress, tmp_path
        )
    recording = read_recording(folder)
    (device,) = recording.run.devices
    assert device.calibration == found
    (energy,) = write_report(folder).scenarios[0].energies
    plain = msgspec.structs.replace(device, calibration=None)
    run = msgspec.structs.replace(recording.run, devices=(plain,))
    (uncorrected,) = analyse(Evidence.of(replace(recording, run=run))).scenarios[0].energies
    assert energy.mean_w is not None
    assert uncorrected.mean_w is not None
    assert energy.mean_w == pytest.approx(0.5 + 2.0 * uncorrected.mean_w)


def test_calibration_of_another_board_stops_the_run_before_it_starts(live_cell: LiveCell, tmp_path: Path) -> None:
    write_json(tmp_path / "jetson1.json", doubling("NVIDIA Jetson TX2"))
    with (
        live_cell.client() as client,
        pytest.raises(ManifestError, match=r"expected a calibration of jetson1, .*, found one of jetson1, NVIDIA"),
    ):
        measure_cell(client, live_cell.fleet, ["jetson1"], PICTURES, SHORT, tmp_path / "runs", no_progress, tmp_path)
    assert list((tmp_path / "runs").iterdir()) == []
