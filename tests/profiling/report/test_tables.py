"""The tables, read back by the csv module and held against the report and the raw lines."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from devit_profiling.figures.analysis import analyse
from devit_profiling.figures.evidence import Evidence
from devit_profiling.record.record import Recording
from devit_profiling.record.run_folder import read_recording
from devit_profiling.report.tables import POWER_HEADER, WINDOWS_HEADER, power_csv, windows_csv

if TYPE_CHECKING:
    from conftest import FakeDevice, FakeRun
else:
    FakeRun = FakeDevice = object

Rows = list[dict[str, str]]
DOCS = Path(__file__).parents[3] / "docs" / "profile.md"


def rows(content: bytes) -> Rows:
    return list(csv.DictReader(io.StringIO(content.decode(), newline="")))


def power(recording: Recording) -> Rows:
    return rows(b"".join(power_csv(Evidence.of(recording))))


def windows(recording: Recording) -> Rows:
    return rows(b"".join(windows_csv(analyse(evidence := Evidence.of(recording)), evidence)))


def test_power_has_a_row_per_device_reading_and_rail(two_devices: FakeRun) -> None:
    """481 lines of three rails, and the total, of each device."""
    found = power(two_devices.recording())
    assert len(found) == 2 * 481 * 4
    assert [row["rail"] for row in found[:4]] == ["VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC", "total"]
    assert found[3] == {"device": "jetson1", "t_s": "0.000000", "rail": "total", "power_mw": "4000", "source": "sensor"}


def test_devices_are_on_one_clock(two_devices: FakeRun) -> None:
    """Their own clocks are a million seconds apart; both begin to work 12.5 s after the first sample."""
    found = power(two_devices.recording())
    for device, idle_mw in (("jetson1", "4000"), ("jetson2", "5000")):
        busy = next(
            row for row in found if (row["device"], row["rail"]) == (device, "total") and row["power_mw"] > idle_mw
        )
        assert float(busy["t_s"]) == pytest.approx(12.5, abs=0.1)


def test_windows_have_a_row_per_device_scenario_and_window(two_devices: FakeRun) -> None:
    found = windows(two_devices.recording())
    assert [(row["device"], row["scenario"], row["window"]) for row in found] == [
        ("jetson1", "together", "1"),
        ("jetson1", "together", "2"),
        ("jetson2", "together", "1"),
        ("jetson2", "together", "2"),
    ]
    first = found[0]
    assert (first["scope"], first["inferences"], first["answers"], first["t_s"]) == (
        "module input (VDD_IN)",
        "100",
        "100",
        "14.000000",
    )
    figures = {name: float(first[name]) for name in WINDOWS_HEADER[8:16]}
    assert figures == pytest.approx(
        {
            "total_j": 60.0,
            "above_idle_j": 20.0,
            "total_j_per_inference": 0.6,
            "above_idle_j_per_inference": 0.2,
            "mean_w": 6.0,
            "peak_w": 6.0,
            "idle_w": 4.0,
            "samples": 100,
        },
        rel=0.02,
    )


def test_mean_of_the_windows_is_the_reports_figure_even_with_a_gap(fake_run: FakeRun) -> None:
    """Two seconds of the first window have no sample; its inferences cost all the same."""
    recording = fake_run.changed(silent=(16.0, 18.0), windows_mw=(6000, 8000)).recording()
    found = windows(recording)
    assert float(found[0]["coverage"]) < 0.85
    energy = analyse(Evidence.of(recording)).scenarios[0].energies[0]
    for name, figure in (
        ("total_j_per_inference", energy.total_j_per_inference),
        ("above_idle_j_per_inference", energy.dynamic_j_per_inference),
    ):
        assert figure is not None
        assert sum(float(row[name]) for row in found) / 2 == pytest.approx(figure.mean, rel=1e-6)


def test_what_was_not_measured_is_an_empty_cell_and_no_zero(fake_run: FakeRun) -> None:
    found = windows(fake_run.changed(idle_mw=None, sensor_problem="no sensor is set").recording())
    assert [row["inferences"] for row in found] == ["100", "100"]
    assert all(row[name] == "" for row in found for name in WINDOWS_HEADER[7:])
    found = windows(fake_run.changed(inferences=0).recording())
    assert {row["total_j_per_inference"] for row in found} == {""}
    assert float(found[0]["total_j"]) == pytest.approx(60, rel=0.01)


def test_simulated_stands_in_every_row(fake_run: FakeRun, make_device: Callable[..., FakeDevice]) -> None:
    run = replace(fake_run, devices=(make_device(), make_device(name="jetson2", simulated_board="orin-nano")))
    for found in (power(run.recording()), windows(run.recording())):
        sources = {(row["device"], row["source"]) for row in found}
        assert sources == {("jetson1", "sensor"), ("jetson2", "SIMULATED")}


def test_every_column_of_every_table_is_explained(recorded_run: Path) -> None:
    """Columns of a device are explained once, under the name DEVICE."""
    sections = dict(part.split("\n", 1) for part in DOCS.read_text().split("\n## ")[1:])
    headers = {"power.csv": POWER_HEADER, "windows.csv": WINDOWS_HEADER}
    for name in ("latency.csv", "jetson1.stamps.csv"):
        line = (recorded_run / name).read_text().partition("\n")[0]
        headers[name.replace("jetson1", "DEVICE")] = tuple(re.sub(r"jetson\d", "DEVICE", line).split(","))
    for name, header in headers.items():
        table = "\n".join(line.split("|")[1] for line in sections[f"`{name}`"].splitlines() if line.startswith("|"))
        assert set(re.findall(r"`([\w.]+)`", table)) == set(header), name


def test_requests_are_recorded_with_their_time(recorded_run: Path) -> None:
    """One after the other, each behind the end of the one before, all inside the run."""
    recording = read_recording(recorded_run)
    sent_ns = [row.sent_ns for row in recording.answers if row.sent_ns is not None]
    assert len(sent_ns) == len(recording.answers)
    ends_ns = [sent + row.latency_ms * 1e6 for sent, row in zip(sent_ns, recording.answers, strict=True)]
    assert all(end <= after for end, after in zip(ends_ns, sent_ns[1:], strict=False))
    phases = recording.run.phases
    assert phases[0].start.host_ns < sent_ns[0] < sent_ns[-1] < phases[-1].end.host_ns
    for phase in phases:
        for boundary in (phase.start, phase.end):
            for before_ns, behind_ns in boundary.asked_ns.values():
                assert before_ns < behind_ns <= boundary.host_ns


def test_a_window_says_how_many_over_current_events_its_board_counted(two_devices: FakeRun) -> None:
    """The second device counts none: its cells are empty, not zero."""
    found = windows(two_devices.changed(window_events=(0, 37)).recording())
    counted = [(row["device"], row["window"], row["over_current_events"]) for row in found]
    assert counted == [("jetson1", "1", "0"), ("jetson1", "2", "37"), ("jetson2", "1", ""), ("jetson2", "2", "")]
