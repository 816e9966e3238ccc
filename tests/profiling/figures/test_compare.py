"""Two runs side by side: the verdicts, the refusals, and what a table says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from devit_contract.errors import InputError, ManifestError
from devit_profiling.figures.compare import Comparison, Difference, compare
from devit_profiling.report.comparison import comparison_notes, comparison_rows
from devit_profiling.report.report import write_report

if TYPE_CHECKING:
    from conftest import FakeDevice, FakeRun
else:
    FakeRun = FakeDevice = object

FOUR = (6000, 6100, 5900, 6000)


def report(run: FakeRun, folder: Path) -> Path:
    run.write(folder)
    write_report(folder)
    return folder


def one(comparison: Comparison, figure: str, device: str = "jetson1") -> Difference:
    (found,) = [item for item in comparison.differences if (item.figure, item.device) == (figure, device)]
    return found


def test_device_that_needs_more_is_told_with_its_change(fake_run: FakeRun, tmp_path: Path) -> None:
    first = report(fake_run.changed(windows_mw=FOUR), tmp_path / "a")
    second = report(fake_run.changed(windows_mw=(7000, 7100, 6900, 7000)), tmp_path / "b")
    total = one(compare(first, second), "J/inf., total")
    assert (total.verdict, total.first, total.second) == ("higher", pytest.approx(0.6), pytest.approx(0.7))
    assert total.change == pytest.approx(0.1)
    assert total.low_95 is not None
    assert total.high_95 is not None
    assert 0 < total.low_95 < 0.1 < total.high_95
    assert one(compare(second, first), "J/inf., total").verdict == "lower"
    assert one(compare(first, second), "J/inf., above idle").verdict == "higher"


def test_difference_below_the_sensors_step_is_none(fake_run: FakeRun, tmp_path: Path) -> None:
    """Windows without any spread: by the step of 40 mW alone, 10 mW are no difference, and 100 mW are one."""
    first = report(fake_run.changed(windows_mw=(6000,) * 4), tmp_path / "a")
    second = report(fake_run.changed(windows_mw=(6010,) * 4), tmp_path / "b")
    third = report(fake_run.changed(windows_mw=(6100,) * 4), tmp_path / "c")
    near = one(compare(first, second), "J/inf., total")
    assert near.verdict == "not significant"
    # Two independent steps of 40 mW over sqrt(12), 0.1 s an inference: the half interval is 1.96 times that.
    assert near.high_95 == pytest.approx(0.001 + 1.96 * 0.04 / 12**0.5 * 2**0.5 * 0.1, rel=0.01)
    assert one(compare(first, third), "J/inf., total").verdict == "higher"


def test_run_against_itself_has_no_difference(two_devices: FakeRun, tmp_path: Path) -> None:
    folder = report(two_devices, tmp_path / "a")
    comparison = compare(folder, folder)
    assert {item.verdict for item in comparison.differences} == {"not significant"}
    assert {item.change for item in comparison.differences} == {0.0}
    assert (comparison.refused, comparison.notes) == ((), ())
    devices = {item.device for item in comparison.differences}
    assert devices == {"", "jetson1", "jetson2"}


def test_joules_of_different_scopes_are_refused_in_one_sentence(fake_run: FakeRun, tmp_path: Path) -> None:
    """Times are compared all the same."""
    line = (
        "RAM 6879/62841MB (lfb 3x4MB) CPU [0%@729] tj@41.5C "
        "VDD_GPU_SOC {mw}mW/1mW VDD_CPU_CV 400mW/1mW VIN_SYS_5V0 4536mW/1mW"
    )
    first = report(fake_run, tmp_path / "a")
    second = report(fake_run.changed(model="NVIDIA Jetson AGX Orin Developer Kit", line=line), tmp_path / "b")
    comparison = compare(first, second)
    refused = [item for item in comparison.differences if item.verdict == "refused"]
    assert {item.figure for item in refused} == {"J/answer, total", "J/inf., total", "J/inf., above idle"}
    assert all((item.first, item.second, item.change) == (None, None, None) for item in refused)
    assert (
        "jetson1, together: joules of the first run are of module input (VDD_IN), of the second sum of 3 module rails: "
        "they are not compared" in comparison.refused
    )
    assert one(comparison, "p50 ms").change == 0.0
    assert "boards of jetson1 differ" in comparison.notes[0]


def test_another_part_of_a_divided_gpu_is_another_device(fake_run: FakeRun, tmp_path: Path) -> None:
    whole = report(fake_run, tmp_path / "a")
    part = report(fake_run.changed(gpu_instance="MIG 2g.0gb"), tmp_path / "b")
    assert "GPUs of jetson1 differ: all of it, then MIG 2g.0gb" in compare(whole, part).notes
    assert not any("GPUs" in note for note in compare(part, part).notes)


def test_simulated_joules_are_never_held_against_measured_ones(fake_run: FakeRun, tmp_path: Path) -> None:
    first = report(fake_run, tmp_path / "a")
    second = report(fake_run.changed(simulated_board="orin-nano"), tmp_path / "b")
    comparison = compare(first, second)
    assert one(comparison, "J/inf., total").verdict == "refused"
    assert any("the first run are measured, of the second SIMULATED" in why for why in comparison.refused)


def test_two_simulated_runs_are_compared_and_marked(fake_run: FakeRun, tmp_path: Path) -> None:
    folder = report(fake_run.changed(simulated_board="orin-nano"), tmp_path / "a")
    comparison = compare(folder, folder)
    assert comparison.is_simulated
    figures = [row[1] for row in comparison_rows(comparison)]
    assert [figure for figure in figures if "J/" in figure] == [
        "J/answer, total SIMULATED",
        "J/inf., total SIMULATED",
        "J/inf., above idle SIMULATED",
    ]


def test_single_window_tells_nothing_and_says_why(fake_run: FakeRun, tmp_path: Path) -> None:
    first = report(fake_run.changed(windows_mw=FOUR), tmp_path / "a")
    second = report(replace(fake_run.changed(windows_mw=(9000,)), is_quick=True), tmp_path / "b")
    comparison = compare(first, second)
    assert {item.verdict for item in comparison.differences} == {"unknown"}
    assert one(comparison, "J/inf., total").change == pytest.approx(0.3)
    assert "a run with one window has no interval: measure without --quick" in comparison_notes(comparison)


def test_sensor_that_one_run_lacks_is_told(fake_run: FakeRun, tmp_path: Path) -> None:
    first = report(fake_run, tmp_path / "a")
    second = report(fake_run.changed(idle_mw=None, sensor_problem="no sensor is set"), tmp_path / "b")
    found = one(compare(first, second), "J/inf., total")
    assert (found.verdict, found.second) == ("unknown", None)
    assert found.why.endswith("not in one of the runs: no sensor is set")
    neither = compare(second, second)
    assert not [item for item in neither.differences if "J/" in item.figure]


def test_runs_with_nothing_in_common_are_an_error(fake_run: FakeRun, tmp_path: Path) -> None:
    first = report(fake_run, tmp_path / "a")
    second = report(replace(fake_run, alone=True), tmp_path / "b")
    with pytest.raises(InputError, match="expected runs with a scenario in common, found together and jetson1 alone"):
        compare(first, second)


def test_missing_and_broken_reports_are_named(fake_run: FakeRun, tmp_path: Path) -> None:
    good = report(fake_run, tmp_path / "a")
    with pytest.raises(InputError, match=r"nowhere/report\.json: cannot be read"):
        compare(good, tmp_path / "nowhere")
    (tmp_path / "broken.json").write_text('{"schema": 1}')
    with pytest.raises(ManifestError, match=r"broken\.json: field .*--from"):
        compare(good / "report.json", tmp_path / "broken.json")


def test_report_of_an_older_version_has_no_windows_of_answers(fake_run: FakeRun, tmp_path: Path) -> None:
    """It is read, and what it lacks is left out rather than guessed."""
    folder = report(fake_run, tmp_path / "a")
    old = json.loads((folder / "report.json").read_bytes())
    for scenario in old["scenarios"]:
        del scenario["answers"]["windows"]
        for device in scenario["answers"]["devices"]:
            del device["windows"]
    (tmp_path / "old.json").write_text(json.dumps(old))
    found = compare(folder, tmp_path / "old.json")
    assert one(found, "J/inf., total").verdict == "not significant"
    assert one(found, "p50 ms").verdict == "unknown"


def test_table_shows_the_change_in_percent(
    fake_run: FakeRun, make_device: Callable[..., FakeDevice], tmp_path: Path
) -> None:
    first = report(fake_run.changed(windows_mw=FOUR), tmp_path / "a")
    second = report(fake_run.changed(windows_mw=(7000, 7100, 6900, 7000)), tmp_path / "b")
    comparison = compare(first, second)
    (row,) = [row for row in comparison_rows(comparison) if row[1] == "J/inf., total"]
    assert row == ["jetson1 together", "J/inf., total", "0.600", "0.700", "+16.7", "+14.3 to +19.0", "higher"]
    assert msgspec.json.decode(msgspec.json.encode(comparison), type=Comparison) == comparison
