"""Reports against sums done by hand, and what they say where something was not measured."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from devit_contract.errors import DevitError, InputError, ManifestError
from devit_contract.wire.codec import State
from devit_profiling.figures.analysis import Report, analyse, analyse_recording
from devit_profiling.figures.interval import estimate
from devit_profiling.figures.joules import DeviceEnergy

if TYPE_CHECKING:
    from conftest import FakeDevice, FakeRun
else:
    FakeRun = FakeDevice = object


def energy_of(run: FakeRun) -> DeviceEnergy:
    return analyse_recording(run.recording()).scenarios[0].energies[0]


def test_constant_power_gives_exact_joules(fake_run: FakeRun) -> None:
    """6 W for 10 s and 100 inferences are 60 J and 0.6 J each, 0.2 J of them above the 4 W of idle."""
    energy = energy_of(fake_run)
    assert energy.total_j_per_inference is not None
    assert energy.dynamic_j_per_inference is not None
    assert energy.total_j_per_inference.mean == pytest.approx(0.6, rel=1e-9)
    assert energy.dynamic_j_per_inference.mean == pytest.approx(0.2, rel=1e-9)
    assert energy.inferences_per_j == pytest.approx(1 / 0.6)
    assert (energy.idle_w, energy.mean_w, energy.peak_w) == pytest.approx((4.0, 6.0, 6.0))
    window = energy.windows[1]
    assert (window.number, window.inferences, window.samples) == (2, 100, 101)
    assert (window.total_j, window.dynamic_j, window.duration_s, window.coverage) == pytest.approx((60, 20, 10, 1))
    assert (energy.scope, energy.flags, energy.not_measured) == ("module input (VDD_IN)", (), "")


def test_resolution_is_the_converter_step_spread_over_the_inferences(fake_run: FakeRun) -> None:
    """VDD_IN has steps of 40 mW: 0.04 / sqrt(12) W, for 10 s, over 100 inferences."""
    assert energy_of(fake_run).resolution_j_per_inference == pytest.approx(0.04 / 12**0.5 * 10 / 100)


def test_two_windows_get_students_interval(fake_run: FakeRun) -> None:
    """The step to 8 W lies in the last period of the first window, so that window has 60.1 J."""
    total = energy_of(fake_run.changed(windows_mw=(6000, 8000))).total_j_per_inference
    assert total is not None
    assert (total.mean, total.windows) == (pytest.approx((0.601 + 0.8) / 2), 2)
    repeats = 12.706 * (0.8 - 0.601) / 2  # two values: s / sqrt(2) is half their distance
    steps = 1.96 * 0.04 / 12**0.5 / 10
    half = (repeats**2 + steps**2) ** 0.5
    assert (total.repeats_95, total.steps_95) == pytest.approx((repeats, steps), rel=1e-4)
    assert (total.low_95, total.high_95) == pytest.approx((total.mean - half, total.mean + half), rel=1e-4)


def test_one_window_has_no_interval(fake_run: FakeRun) -> None:
    total = energy_of(fake_run.changed(windows_mw=(6000,))).total_j_per_inference
    assert total is not None
    assert (total.windows, total.low_95, total.high_95) == (1, None, None)


def test_interval_of_36_values_has_35_degrees_of_freedom() -> None:
    """Student's quantile is 2.0301 there."""
    found = estimate([0.0, 1.0] * 18)
    assert found.high_95 is not None
    assert found.high_95 - found.mean == pytest.approx(2.0301 * (9 / 35) ** 0.5 / 6, rel=1e-4)


def test_drifting_idle_power_is_flagged(fake_run: FakeRun) -> None:
    energy = energy_of(fake_run.changed(idle_after_mw=4400))
    assert energy.idle_drift == pytest.approx(0.1)
    assert energy.idle_w == pytest.approx(4.2)
    assert any("idle power drifted by +10.0%" in flag for flag in energy.flags)


def test_work_below_idle_power_is_shown_as_it_is_and_flagged(fake_run: FakeRun) -> None:
    """A clamp to zero would hide that the sensor cannot tell."""
    energy = energy_of(fake_run.changed(idle_mw=6500, idle_after_mw=6500))
    assert energy.dynamic_j_per_inference is not None
    assert energy.dynamic_j_per_inference.mean == pytest.approx(-0.05)
    assert any("negative" in flag for flag in energy.flags)


def test_gap_between_samples_is_flagged_and_lowers_the_coverage(fake_run: FakeRun) -> None:
    energy = energy_of(fake_run.changed(silent=(16.0, 18.0)))
    assert energy.windows[0].coverage == pytest.approx(1 - 2.1 / 10, abs=0.02)
    assert any("gaps between the power samples" in flag for flag in energy.flags)
    assert energy.total_j_per_inference is not None
    assert energy.total_j_per_inference.mean == pytest.approx(0.6)


def test_window_with_few_samples_is_insufficient_and_says_so(fake_run: FakeRun) -> None:
    energy = energy_of(fake_run.changed(silent=(14.05, 23.5)))
    assert [window.number for window in energy.windows] == [2]
    assert any("window 1: insufficient" in flag for flag in energy.flags)


@pytest.mark.parametrize(("inferences", "flag"), [(0, "no inference"), (-50, "restarted")])
def test_window_without_inferences_has_watts_and_no_joules_each(fake_run: FakeRun, inferences: int, flag: str) -> None:
    energy = energy_of(fake_run.changed(inferences=inferences))
    assert energy.mean_w == pytest.approx(6.0)
    assert (energy.total_j_per_inference, energy.inferences_per_j) == (None, None)
    assert any(flag in text for text in energy.flags)


def test_unknown_board_has_rails_and_no_total(fake_run: FakeRun) -> None:
    """Adding whatever rails there are would invent a total."""
    run = fake_run.changed(model="Mystery Board", line="RAM 1/2000MB (lfb 1x4MB) VDD_A {mw}mW/1mW VDD_B 500mW/1mW")
    report = analyse_recording(run.recording())
    energy = report.scenarios[0].energies[0]
    assert report.devices[0].rails == ("VDD_A", "VDD_B")
    assert "'Mystery Board' is not in the table" in energy.not_measured
    assert "VDD_A, VDD_B" in energy.not_measured
    assert (energy.mean_w, energy.total_j_per_inference, energy.windows) == (None, None, ())


def test_unnamed_board_with_known_rails_is_called_guessed(fake_run: FakeRun) -> None:
    device = analyse_recording(fake_run.changed(model="aarch64").recording()).devices[0]
    assert (device.board, device.is_board_guessed) == ("Jetson Orin Nano", True)
    assert not analyse_recording(fake_run.recording()).devices[0].is_board_guessed


def test_known_board_without_its_rails_has_no_total(fake_run: FakeRun) -> None:
    energy = energy_of(fake_run.changed(line="RAM 1/7620MB (lfb 1x4MB) VDD_SOC {mw}mW/1mW"))
    assert energy.not_measured == "expected the rails VDD_IN of Jetson Orin Nano, found these: VDD_SOC"


def test_device_without_sensor_is_not_measured_but_has_latency(fake_run: FakeRun) -> None:
    report = analyse_recording(fake_run.changed(idle_mw=None, sensor_problem="expected a power sensor").recording())
    scenario = report.scenarios[0]
    assert scenario.energies[0].not_measured == "expected a power sensor"
    assert scenario.energies[0].mean_w is None
    assert scenario.answers.p50_ms == pytest.approx(5.495)
    assert scenario.cell is not None
    assert scenario.cell.not_measured
    assert (scenario.cell.mean_w, scenario.cell.total_j_per_answer) == (None, None)


def test_sampler_that_ended_early_is_told(fake_run: FakeRun) -> None:
    flags = energy_of(fake_run.changed(sensor_problem="power sampler ended (exit code 1)")).flags
    assert "sampling ended early: power sampler ended (exit code 1)" in flags


def test_cell_is_the_sum_of_its_devices_over_the_same_window(two_devices: FakeRun) -> None:
    """60 J and 90 J for 100 answers; the devices' clocks are a million seconds apart."""
    cell = analyse_recording(two_devices.recording()).scenarios[0].cell
    assert cell is not None
    assert cell.total_j_per_answer is not None
    assert cell.total_j_per_answer.mean == pytest.approx(1.5, rel=1e-6)
    assert cell.mean_w == pytest.approx(15.0, rel=1e-6)
    assert "without the fusion node" in cell.scope
    assert "jetson1 module input (VDD_IN) + jetson2 module input (VDD_IN)" in cell.scope


def test_cell_with_one_device_unmeasured_is_not_measured(two_devices: FakeRun) -> None:
    """A sum of the others would look like the cell and be too small."""
    cell = analyse_recording(two_devices.changed(idle_mw=None, sensor_problem="none").recording()).scenarios[0].cell
    assert cell is not None
    assert cell.total_j_per_answer is None
    assert "no joules of jetson1" in cell.not_measured


def test_device_that_was_not_named_is_told_as_left_out(fake_run: FakeRun) -> None:
    report = analyse_recording(replace(fake_run, others=("jetson9",)).recording())
    assert report.scenarios[0].cell is not None
    assert report.scenarios[0].cell.scope.startswith("1 of 2 devices of the cell")
    assert any("jetson9" in text for text in report.not_measured)
    assert any("fusion node: not measured" in text for text in report.not_measured)


def test_failed_frames_cost_energy_but_give_no_answer(fake_run: FakeRun) -> None:
    """The cell's joules per answer have nothing to be divided by."""
    scenario = analyse_recording(replace(fake_run, state=State.FAILED).recording()).scenarios[0]
    assert scenario.answers.states == {"failed": 200}
    assert (scenario.answers.p50_ms, scenario.answers.per_second) == (None, 0.0)
    assert scenario.answers.missing == {"jetson1": {"deadline": 200}}
    assert scenario.cell is not None
    assert scenario.cell.total_j_per_answer is None


def test_answers_are_counted_over_windows_alone(two_devices: FakeRun) -> None:
    """The warm-up's 100 answers are in the file and in no figure; latencies run from 5.00 to 5.99 ms."""
    answers = analyse_recording(two_devices.recording()).scenarios[0].answers
    assert (answers.answers, answers.states) == (200, {"full": 200})
    assert answers.per_second == pytest.approx(10.0)
    assert (answers.p50_ms, answers.p99_ms) == pytest.approx((5.495, 5.985), abs=0.006)
    first, second = answers.devices
    assert (first.device, first.inference_ms, first.slowest) == ("jetson1", 4.0, 0)
    assert (second.device, second.inference_ms, second.slowest) == ("jetson2", 6.0, 200)
    assert (second.queue_ms, second.network_ms, second.arrival_p50_ms) == pytest.approx((0.02, 0.7, 6.73))


def test_device_alone_has_no_cell(fake_run: FakeRun) -> None:
    scenario = analyse_recording(replace(fake_run, alone=True).recording()).scenarios[0]
    assert (scenario.name, scenario.asked, scenario.cell) == ("jetson1 alone", ("jetson1",), None)


def test_simulated_lines_make_the_report_simulated(fake_run: FakeRun) -> None:
    report = analyse_recording(fake_run.changed(simulated_board="orin-nano").recording())
    assert report.is_simulated
    assert report.devices[0].is_simulated
    assert report.scenarios[0].energies[0].is_simulated
    assert report.scenarios[0].cell is not None
    assert report.scenarios[0].cell.is_simulated
    mean_w = report.scenarios[0].energies[0].mean_w
    assert mean_w is not None
    assert mean_w == pytest.approx((4.287 + 15.479) / 2, rel=0.08)  # half of the GPU, of a specimen that is drawn


def test_board_that_calls_itself_simulated_makes_the_report_simulated(fake_run: FakeRun) -> None:
    assert analyse_recording(fake_run.changed(model="NVIDIA Jetson Orin Nano (Simulated)").recording()).is_simulated
    assert not analyse_recording(fake_run.recording()).is_simulated


def test_one_simulated_device_leaves_the_other_a_measurement(
    two_devices: FakeRun, make_device: Callable[..., FakeDevice]
) -> None:
    simulated = make_device(name="jetson3", simulated_board="orin-nano")
    report = analyse_recording(replace(two_devices, devices=(two_devices.devices[0], simulated)).recording())
    assert [device.is_simulated for device in report.devices] == [False, True]
    assert report.is_simulated


def test_requested_and_measured_period_stand_in_the_report(fake_run: FakeRun) -> None:
    device = analyse_recording(fake_run.recording()).devices[0]
    assert (device.interval_ms, device.period_ms) == (100, 100.0)
    assert device.lsb_mw == {"VDD_IN": 40}


def test_same_files_give_the_same_report(fake_run: FakeRun, tmp_path: Path) -> None:
    folder = fake_run.write(tmp_path / "run")
    first, second = analyse(folder), analyse(folder)
    assert first == second == analyse_recording(fake_run.recording())
    assert msgspec.json.decode(msgspec.json.encode(first), type=Report) == first


def test_missing_log_is_told_in_one_line(fake_run: FakeRun, tmp_path: Path) -> None:
    folder = fake_run.write(tmp_path / "run")
    (folder / "jetson1.tegrastats.log").unlink()
    with pytest.raises(InputError, match=r"jetson1\.tegrastats\.log: cannot be read"):
        analyse(folder)


def test_folder_without_a_run_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run\.json: cannot be read"):
        analyse(tmp_path)


@pytest.mark.parametrize(
    ("file", "old", "new", "text"),
    [
        ("run.json", '"schema": 2', '"schema": 3', "field schema: expected 2, found 3"),
        ("run.json", '"windows": 2', '"windows": "two"', "field plan.windows"),
        ("run.json", '"kind": "window"', '"kind": "door"', "kind: expected one of"),
        ("run.json", '"jetson1": {', '"jetson7": {', "expected a snapshot of jetson1"),
        ("run.json", "{", "", "not a JSON file"),
        ("latency.csv", "scenario,window", "window,scenario", "expected the columns"),
        ("latency.csv", ",full,", ",splendid,", "line 2"),
        ("latency.csv", "together,0,", "together,none,", "line 2"),
        ("jetson1.stamps.csv", "1,1000000000000", "1,soon", "line 2"),
        ("jetson1.stamps.csv", "1,1000000000000\n", "", "lines, as many as jetson1.stamps.csv has"),
    ],
)
def test_damaged_file_is_named_with_the_place(
    fake_run: FakeRun, tmp_path: Path, file: str, old: str, new: str, text: str
) -> None:
    path = fake_run.write(tmp_path / "run") / file
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new, 1))
    with pytest.raises(ManifestError) as caught:
        analyse(path.parent)
    assert file in str(caught.value) or path.stem.split(".")[0] in str(caught.value)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_device_name_that_leads_out_of_the_folder_is_refused(fake_run: FakeRun, tmp_path: Path) -> None:
    """It would name files."""
    path = fake_run.write(tmp_path / "run") / "run.json"
    path.write_text(path.read_text().replace('"jetson1"', '"../jetson1"'))
    with pytest.raises(InputError, match="name"):
        analyse(path.parent)


@pytest.mark.parametrize("file", ["run.json", "latency.csv", "jetson1.stamps.csv", "jetson1.tegrastats.log"])
def test_file_cut_off_anywhere_is_never_a_bug(fake_run: FakeRun, tmp_path: Path, file: str) -> None:
    """A cut either leaves whole rows, or is a named error."""
    whole = replace(fake_run, answers=3).write(tmp_path / "run")
    content = (whole / file).read_bytes()
    for cut in range(0, len(content), max(1, len(content) // 40)):
        folder = Path(shutil.copytree(whole, tmp_path / str(cut)))
        (folder / file).write_bytes(content[:cut])
        with suppress(DevitError):
            analyse(folder)
