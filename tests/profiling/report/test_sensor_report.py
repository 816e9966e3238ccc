"""A run whose power came from the chips, and what sampling cost, in the report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from tests.profiling.calibrate.test_calibrated_run import doubling

from devit_contract.wire.messages import PowerLine, SamplingCost
from devit_profiling.figures.analysis import DeviceReport, analyse
from devit_profiling.figures.evidence import Evidence
from devit_profiling.record.record import Recording
from devit_profiling.record.run_folder import read_recording, write_recording
from devit_profiling.report.page import render_html
from devit_profiling.report.warning_list import warnings

if TYPE_CHECKING:
    from conftest import FakeRun
else:
    FakeRun = object

CHIPS = "INA3221 5ns VDD_IN {mw}mW VDD_CPU_GPU_CV 400mW VDD_SOC 1300mW"
NOTE = "1-0040 averages 16 conversions instead of 512, as --fast-sensor asks"


def with_cost(recording: Recording, cost: SamplingCost | None) -> Recording:
    devices = tuple(msgspec.structs.replace(device, sampling=cost) for device in recording.run.devices)
    return replace(recording, run=msgspec.structs.replace(recording.run, devices=devices))


def device_of(recording: Recording) -> DeviceReport:
    return analyse(Evidence.of(recording)).devices[0]


def test_joules_are_the_same_whichever_sensor_the_lines_are_of(fake_run: FakeRun) -> None:
    chips, tegrastats = fake_run.changed(line=CHIPS).recording(), fake_run.recording()
    (energy,), (other,) = (analyse(Evidence.of(run)).scenarios[0].energies for run in (chips, tegrastats))
    assert energy.total_j_per_inference is not None
    assert energy.total_j_per_inference == other.total_j_per_inference
    assert device_of(chips).rails == ("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC")
    assert device_of(chips).unparsed_lines == 0


def test_boards_with_the_same_rails_and_rule_are_guessed_together(fake_run: FakeRun) -> None:
    found = device_of(fake_run.changed(line=CHIPS, model="aarch64").recording())
    assert (found.not_measured, found.is_board_guessed) == ("", True)
    assert found.board == "Jetson Xavier NX or Orin NX or Orin Nano"


def test_a_thor_without_the_rail_of_its_board_has_the_joules_of_its_module_and_a_warning(fake_run: FakeRun) -> None:
    chips = "INA3221 5ns VDD_GPU 0mW VDD_CPU_SOC_MSS {mw}mW VIN_SYS_5V0 1300mW"
    report = analyse(
        Evidence.of(fake_run.changed(line=chips, model="NVIDIA Jetson AGX Thor Developer Kit").recording())
    )
    (energy,) = report.scenarios[0].energies
    assert (energy.mean_w, energy.scope) == (pytest.approx(7.3), "sum of 3 module rails")
    assert "jetson1: the samples of Jetson AGX Thor Developer Kit lack VIN, so the total is the sum of 3" in "\n".join(
        warnings(report)
    )


def test_a_calibration_of_another_scope_is_not_applied(fake_run: FakeRun) -> None:
    recording = fake_run.recording()
    calibration = msgspec.structs.replace(doubling(fake_run.devices[0].model), scope="whole board (VIN)")
    devices = tuple(msgspec.structs.replace(device, calibration=calibration) for device in recording.run.devices)
    report = analyse(Evidence.of(replace(recording, run=msgspec.structs.replace(recording.run, devices=devices))))
    (energy,) = report.scenarios[0].energies
    assert (energy.mean_w, energy.is_calibrated) == (pytest.approx(6.0), False)
    assert "jetson1: not calibrated: the calibration is of another scope, whole board (VIN)" in list(warnings(report))


def test_simulated_chips_are_called_simulated(fake_run: FakeRun) -> None:
    recording = fake_run.changed(line=CHIPS.replace("5ns", "5ns SIMULATED")).recording()
    assert analyse(Evidence.of(recording)).is_simulated


def test_the_sensors_notes_stand_in_the_report_and_survive_the_folder(fake_run: FakeRun, tmp_path: Path) -> None:
    recording = fake_run.changed(line=CHIPS).recording()
    (name, lines), *_ = recording.lines.items()
    noted = replace(recording, lines={name: (PowerLine(1, f"INA3221 note: {NOTE}"), *lines)})
    write_recording(tmp_path / "run", noted)
    again = read_recording(tmp_path / "run")
    assert again == noted
    assert device_of(again).sensor_notes == (NOTE,)
    assert device_of(again).unparsed_lines == 0
    evidence = Evidence.of(again)
    assert NOTE in render_html(analyse(evidence), evidence)


@pytest.mark.parametrize(
    ("cost", "shown"),
    [
        (SamplingCost(250.0, 1.0, 0.25), "sampler 0.40 %, agent 0.10 %"),
        (SamplingCost(250.0, None, 0.25), "sampler not measured, agent 0.10 %"),
        (None, "not measured"),
    ],
)
def test_what_sampling_has_cost_is_told_as_a_share_of_a_core(
    fake_run: FakeRun, tmp_path: Path, cost: SamplingCost | None, shown: str
) -> None:
    recording = with_cost(fake_run.recording(), cost)
    write_recording(tmp_path / "run", recording)
    again = read_recording(tmp_path / "run")
    assert again.run.devices[0].sampling == cost
    evidence = Evidence.of(again)
    row = render_html(analyse(evidence), evidence).partition("Cost of sampling, of a core")[2]
    assert row.partition("<td>")[2].partition("</td>")[0] == shown
