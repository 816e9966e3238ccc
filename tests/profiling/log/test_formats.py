"""Logs as a summary, JSON lines and CSV."""

from __future__ import annotations

import csv
import json
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devit_profiling.log.formats import LogSummary, Spread, csv_table, json_lines, sampling_period, summarise
from devit_profiling.log.reader import LogReader
from devit_profiling.log.text import open_lines
from devit_profiling.sensor.sample import Sample
from devit_profiling.sensor.tegrastats import parse_line

DATA = Path(__file__).parents[2] / "data" / "tegrastats"
START = datetime(2026, 2, 28, 23, 59, 0)


def summary_of(name: str) -> LogSummary:
    with open_lines(str(DATA / name)) as lines:
        return summarise(LogReader(name, lines))


def test_recording_is_summed_up() -> None:
    summary = summary_of("orin_nano_l4t36_04_100ms_log.txt")
    assert (summary.samples, summary.is_simulated) == (661, False)
    assert summary.total is not None
    assert (summary.total.least, summary.total.most) == (5971, 21663)
    assert summary.total.mean == pytest.approx(12128, abs=60)
    assert [rail.name for rail in summary.rails] == ["VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"]
    assert {other.unit for other in summary.others} == {"%", "MB", "C"}


@pytest.mark.parametrize(
    ("name", "period_s"),
    [
        ("orin_nano_l4t36_04_100ms_log.txt", 0.1091),
        ("orin_nano_l4t36_03_tensorrt_log.txt", 1.0),
        ("agx_orin_l4t36_02_log.txt", 0.522),
    ],
)
def test_period_of_a_recording_is_known_better_than_its_stamps(name: str, period_s: float) -> None:
    found = summary_of(name).period
    assert found is not None
    assert found.period_s == pytest.approx(period_s, abs=found.error_s + 0.001)
    assert found.error_s < 0.05
    assert found.pauses == 0


def test_log_without_stamps_has_no_period() -> None:
    assert summary_of("nano_l4t32_01.txt").period is None
    assert summary_of("orin_nano_l4t36_05.txt").period is None


def test_stamp_of_no_calendar_is_no_stamp() -> None:
    lines = [f"13-45-2026 00:00:0{second} RAM 1/2MB\n" for second in range(3)]
    assert summarise(LogReader("log", lines)).period is None


def test_what_some_samples_do_not_show_is_averaged_over_the_others() -> None:
    lines = ["RAM 10/99MB gpu@40C GR3D_FREQ 0%\n", "RAM 20/99MB SIMULATED\n", "RAM 60/99MB gpu@43C\n"]
    summary = summarise(LogReader("log", lines))
    assert summary.is_simulated
    assert (summary.total, summary.rails) == (None, ())
    assert {spread.name: spread for spread in summary.others} == {
        "memory in use": Spread("memory in use", "MB", 3, 10, 30, 60),
        "gpu": Spread("gpu", "C", 2, 40.0, 41.5, 43.0),
        "GPU load": Spread("GPU load", "%", 1, 0, 0, 0),
    }


def test_pauses_between_two_sessions_do_not_stretch_the_period() -> None:
    first = [START + timedelta(seconds=second) for second in range(20)]
    later = [START + timedelta(hours=1, seconds=second) for second in range(20)]
    earlier = [START - timedelta(hours=1, seconds=-second) for second in range(20)]
    found = sampling_period([*first, *later, *earlier])
    assert found is not None
    assert (found.period_s, found.pauses) == (1.0, 2)


@given(st.integers(90, 20_000), st.integers(60, 400))
def test_period_is_right_within_its_error(period_ms: int, samples: int) -> None:
    stamps = [START + timedelta(seconds=number * period_ms // 1000) for number in range(samples)]
    found = sampling_period(stamps)
    assert found is not None
    assert abs(found.period_s - period_ms / 1000) <= found.error_s + 1e-9
    assert found.pauses == 0


def reader_of(*names: str) -> LogReader:
    return LogReader("log", [line for name in names for line in (DATA / name).read_text().splitlines(keepends=True)])


def test_object_of_a_sample_holds_its_fields_and_its_total() -> None:
    (line,) = json_lines(reader_of("thor_l4t39_01.txt"))
    found = json.loads(line)
    assert (found["total_mw"], found["total_rails"], found["scope"]) == (87426, ["VIN"], "whole board (VIN)")
    assert (found["board"], found["is_board_guessed"], found["line"]) == ("agx-thor", True, 1)
    assert (found["ram_used_mb"], found["gpu_percent"], found["gpu_mhz"]) == (36529, None, [])
    assert found["temperatures_c"]["tj"] == 63.281
    assert found["cpu"][0] == {"percent": 2, "mhz": 972}


def test_object_reads_back_as_the_sample() -> None:
    name = "agx_orin_l4t36_01.txt"
    for text, line in zip(
        (DATA / name).read_text().splitlines(keepends=True), json_lines(reader_of(name)), strict=True
    ):
        assert msgspec.json.decode(line, type=Sample) == parse_line(text)


def test_total_that_is_not_known_is_null_and_made_of_nothing() -> None:
    for line in json_lines(reader_of("agx_xavier_l4t32_04_nopower.txt")):
        found = json.loads(line)
        assert (found["total_mw"], found["total_rails"], found["scope"], found["board"]) == (None, [], None, None)
        assert found["gpu_percent"] in (39, 42)


def test_table_has_a_column_for_every_rail_and_zone_of_the_log() -> None:
    """Rail and zone of one name stay apart, and a zone that vanishes leaves an empty cell."""
    rows = list(csv.DictReader(csv_table(list(reader_of("agx_xavier_l4t32_01.txt", "tx1_l4t28_01.txt")))))
    assert (rows[0]["GPU_mw"], rows[0]["GPU_c"], rows[0]["total_mw"]) == ("0", "32.0", "3113")
    assert "PMIC_c" not in rows[0]
    assert [rows[1][name] for name in ("line", "stamp", "ram_used_mb", "gpu_percent", "GPU_mw", "GPU_c")] == [
        *("2", "", "3468", "3", "", ""),
    ]
    assert len(rows) == 3
