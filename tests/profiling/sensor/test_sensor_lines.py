"""The format of the chips' lines, and that no line of one sensor passes for one of the other."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devit_contract.wire.messages import PowerLine
from devit_profiling.sensor.sensor_lines import (
    note_line,
    note_of,
    parse_hwmon_line,
    parse_sensor_line,
    parse_sensor_log,
    sample_line,
    time_ns_of,
)
from devit_profiling.sensor.tegrastats import parse_line

RECORDED = Path(__file__).parents[2] / "data" / "tegrastats"
LINE = "INA3221 86400123456789ns VDD_IN 4361mW VDD_CPU_GPU_CV 444mW VDD_GPU -392mW"
RAIL = st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,20}", fullmatch=True)
RAILS = st.lists(st.tuples(RAIL, st.integers(-400, 200_000)), min_size=1, max_size=8, unique_by=lambda rail: rail[0])


def test_a_sample_has_its_time_and_rails_and_nothing_it_does_not_tell() -> None:
    sample = parse_hwmon_line(LINE)
    assert sample is not None
    assert time_ns_of(LINE) == 86400123456789
    assert sample.rails_mw == {"VDD_IN": 4361, "VDD_CPU_GPU_CV": 444, "VDD_GPU": -392}
    assert (sample.ram_used_mb, sample.ram_total_mb, sample.gpu_percent, sample.stamp) == (None, None, None, None)
    assert (sample.cpu, sample.temperatures_c, sample.is_simulated) == ((), {}, False)


@given(time_ns=st.integers(1, 10**18 - 1), rails=RAILS, is_simulated=st.booleans())
def test_what_is_written_is_what_is_read(time_ns: int, rails: list[tuple[str, int]], is_simulated: bool) -> None:
    line = sample_line(time_ns, rails, is_simulated=is_simulated)
    sample = parse_hwmon_line(line)
    assert sample is not None
    assert (time_ns_of(line), dict(sample.rails_mw), sample.is_simulated) == (time_ns, dict(rails), is_simulated)
    assert parse_line(line) is None


@given(rails=RAILS, length=st.integers(0, 200))
def test_a_line_that_was_cut_off_loses_values_but_never_changes_one(rails: list[tuple[str, int]], length: int) -> None:
    sample = parse_hwmon_line(sample_line(123456, rails, is_simulated=False)[:length])
    assert sample is None or sample.rails_mw.items() <= dict(rails).items()


@given(text=st.text(max_size=80))
def test_any_text_is_read_or_not_but_nothing_is_raised(text: str) -> None:
    for line in (text, f"INA3221 {text}", f"INA3221 12ns {text}", f"INA3221 note: {text}"):
        parse_sensor_line(line)
        note_of(line)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "INA3221",
        "INA3221 ",
        "INA3221 12ns",
        "INA3221 12ns VDD_IN 4361",
        "INA3221 12ns VDD_IN 4361mW/4287mW",
        "INA3221 VDD_IN 4361mW",
        "INA3221X 12ns VDD_IN 4361mW",
        "x INA3221 12ns VDD_IN 4361mW",
        "INA3221 12nsVDD_IN 4361mW",
        "INA3221 note: VDD_IN 4361mW",
    ],
)
def test_what_is_no_sample_is_none(line: str) -> None:
    assert parse_hwmon_line(line) is None


def test_no_recorded_line_of_tegrastats_passes_for_one_of_the_chips() -> None:
    for path in sorted(RECORDED.glob("*.txt")):
        for line in path.read_text(encoding="utf-8").splitlines():
            assert parse_hwmon_line(line) is None
            assert parse_sensor_line(line) == parse_line(line)


@pytest.mark.parametrize(
    "prefix",
    [
        "1790400000000000000 ",
        "1790400000.123456: ",
        "2026-10-08T04:38:21.123456+00:00 ",
        "2026-10-08T04:38:21.123456789Z stdout F ",
        "Oct 08 04:38:21 ",
        "Oct 08 04:38:21 jetson1 tegrastats[1234]: ",
        "[2026-10-08 04:38:21] ",
        "[   28.042400] ",
        "INFO:root:",
        "\t| ",
        '{"log":"',
        "\ufeff",
        "\x1b[32m",
        "\x1b[1;32m[info]\x1b[0m ",
    ],
)
@pytest.mark.parametrize("line", [LINE, "10-08-2026 04:38:21 RAM 1997/7620MB tj@45C VDD_IN 4361mW/4287mW", "RAM 1/2MB"])
def test_what_a_logger_puts_before_a_line_changes_no_value(prefix: str, line: str) -> None:
    sample = parse_sensor_line(line)
    assert sample is not None
    assert parse_sensor_line(prefix + line) == sample
    simulated = line.replace("RAM", "SIMULATED RAM").replace("ns ", "ns SIMULATED ")
    found = parse_sensor_line(prefix + simulated)
    assert found is not None
    assert found.is_simulated
    assert note_of(f"{prefix}INA3221 note: left out") == "left out"


def test_colours_inside_a_line_change_no_value() -> None:
    coloured = "\x1b[01;31m\x1b[KRAM\x1b[m\x1b[K 1997/7620MB tj@\x1b[33m45C\x1b[0m VDD_IN \x1b[33m4361mW\x1b[0m/4287mW"
    assert parse_sensor_line(coloured) == parse_line("RAM 1997/7620MB tj@45C VDD_IN 4361mW/4287mW")


@pytest.mark.parametrize("line", ["IRAM 0/252kB", "xRAM 1/2MB", "RAM 1/2", "RAM free 5MB", "x INA3221 VDD_IN 4361mW"])
def test_what_only_looks_like_a_sample_is_none_behind_a_prefix_either(line: str) -> None:
    assert parse_sensor_line(f"Oct 08 04:38:21 {line}") is None


def test_a_note_stays_on_one_line_and_is_neither_sample_nor_unparsed() -> None:
    note = note_line("VDD_SOC (1-0040 channel 3)\nis left out")
    lines = [PowerLine(1, note), PowerLine(2, LINE), PowerLine(3, note), PowerLine(4, "garbage")]
    log = parse_sensor_log(lines)
    assert note == "INA3221 note: VDD_SOC (1-0040 channel 3) is left out"
    assert (len(log.samples), log.unparsed_lines) == (1, 1)
    assert log.notes == ("VDD_SOC (1-0040 channel 3) is left out",)


def test_the_log_keeps_the_stamps_that_came_with_the_lines() -> None:
    """A recording is read from its stamps file: what a line says is what the sampler stamped it with."""
    (sample,) = parse_sensor_log([PowerLine(5, LINE)]).samples
    assert sample.monotonic_ns == 5
