"""Logs as JSON lines and CSV."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import msgspec

from devit_profiling.log.export import csv_table, json_lines
from devit_profiling.log.reader import LogReader
from devit_profiling.sensor.sample import Sample
from devit_profiling.sensor.tegrastats import parse_line

DATA = Path(__file__).parents[2] / "data" / "tegrastats"


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
