"""tegrastats lines: every recorded board against its known values, and any text at all."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devit_profiling.tegrastats import CoreLoad, Sample, StampedLine, parse_line, parse_log

DATA = Path(__file__).parents[1] / "data" / "tegrastats"
NONE = "none"
HEAD = "05-13-2026 14:22:48 RAM 1697/7620MB (lfb 42x4MB) "


def recorded_lines(name: str) -> list[str]:
    return (DATA / name).read_text(encoding="utf-8").splitlines()


def sources() -> list[dict[str, str]]:
    with (DATA / "SOURCES.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def sample_of(line: str) -> Sample:
    sample = parse_line(line)
    assert sample is not None, line
    return sample


@pytest.mark.parametrize("row", sources(), ids=lambda row: str(row["file"]))
def test_first_sample_of_every_recording_has_the_values_of_its_source_list(row: dict[str, str]) -> None:
    lines = recorded_lines(row["file"])
    sample = sample_of(lines[int(row["expect_line"]) - 1])
    assert len(lines) == int(row["lines"])
    assert sample.ram_used_mb == int(row["ram_used_mb"])
    assert sample.gpu_percent == (None if row["gpu_util_pct"] == NONE else int(row["gpu_util_pct"]))
    if row["total_rail"] == NONE:
        assert sample.rails_mw == {}
    else:
        assert sum(sample.rails_mw[rail] for rail in row["total_rail"].split("+")) == int(row["total_mw"])
    if row["temp_name"] == NONE:
        assert sample.temperatures_c == {}
    else:
        assert sample.temperatures_c[row["temp_name"]] == float(row["temp_c"])
    assert sample.cpu
    assert not sample.is_simulated


def test_every_recording_is_in_the_source_list() -> None:
    """A file without a source cannot be checked by anyone, or be licensed."""
    assert {path.name for path in DATA.glob("*.txt")} == {row["file"] for row in sources()}


@pytest.mark.parametrize("row", sources(), ids=lambda row: str(row["file"]))
def test_every_line_of_a_recording_has_the_rails_of_its_first(row: dict[str, str]) -> None:
    samples = [parse_line(line) for line in recorded_lines(row["file"])]
    rails = {tuple(sample.rails_mw) for sample in samples if sample is not None}
    assert len(rails) == 1


def test_summary_behind_the_samples_is_a_foreign_line() -> None:
    lines = [StampedLine(number, text) for number, text in enumerate(recorded_lines("orin_nano_l4t36_02_load_log.txt"))]
    log = parse_log([*lines, StampedLine(99, "")])
    assert (len(log.samples), log.foreign_lines) == (18, 1)
    assert log.samples[3].monotonic_ns == 3


def test_whole_line_of_an_orin_nano_is_read() -> None:
    sample = sample_of(recorded_lines("orin_nano_l4t36_05.txt")[0])
    assert sample == Sample(
        stamp="06-18-2025 11:25:24",
        ram_used_mb=3452,
        ram_total_mb=7620,
        swap_used_mb=1518,
        swap_total_mb=16384,
        cpu=(*(CoreLoad(percent, 1420) for percent in (1, 2, 0, 2)), CoreLoad(2, 729), CoreLoad(1, 729)),
        gpu_percent=0,
        emc_percent=None,
        temperatures_c={"cpu": 50.031, "soc2": 49.031, "soc0": 50.0, "gpu": 49.031, "tj": 50.25, "soc1": 50.25},
        rails_mw={"VDD_IN": 4824, "VDD_CPU_GPU_CV": 518, "VDD_SOC": 1475},
        is_simulated=False,
    )


def test_rail_of_the_name_of_a_zone_and_of_the_cpu_list_stays_apart() -> None:
    """AGX Xavier has a rail GPU beside the zone GPU, and a rail CPU beside the list CPU."""
    sample = sample_of(recorded_lines("agx_xavier_l4t32_01.txt")[0])
    assert (sample.rails_mw["GPU"], sample.temperatures_c["GPU"]) == (0, 32.0)
    assert (sample.rails_mw["CPU"], len(sample.cpu)) == (216, 8)


def test_memory_parts_are_not_taken_for_rails() -> None:
    """``IRAM 0/252kB`` and ``SWAP 5/1982MB`` look like the bare rails of L4T 32."""
    sample = sample_of(recorded_lines("nano_l4t32_02.txt")[0])
    assert list(sample.rails_mw) == ["POM_5V_IN", "POM_5V_GPU", "POM_5V_CPU"]
    assert (sample.swap_used_mb, sample.swap_total_mb, sample.emc_percent) == (5, 1982, 0)


def test_zone_without_power_and_rail_without_connection_are_absent() -> None:
    sample = sample_of(recorded_lines("agx_orin_l4t35_01.txt")[0])
    assert "GPU" not in sample.temperatures_c
    assert "NC" not in sample.rails_mw


def test_clocks_without_a_load_are_no_gpu_load() -> None:
    """Thor prints ``GR3D_FREQ @[0,0,0]``: an absent figure, not an idle GPU."""
    assert sample_of(recorded_lines("thor_l4t38_01.txt")[0]).gpu_percent is None


def test_cores_that_are_off_have_neither_load_nor_clock() -> None:
    cpu = sample_of(recorded_lines("tx2_l4t32_02.txt")[0]).cpu
    assert cpu[:2] == (CoreLoad(1, 345), CoreLoad(None, None))


def test_clock_behind_the_list_of_an_old_line_is_that_of_every_core() -> None:
    sample = sample_of(recorded_lines("tx1_l4t28_01.txt")[0])
    assert sample.cpu == (CoreLoad(17, 408), CoreLoad(13, 408), CoreLoad(29, 408), CoreLoad(5, 408))
    assert (sample.gpu_percent, sample.emc_percent, sample.stamp) == (3, 1, None)


def test_instant_is_read_not_average_nor_maximum() -> None:
    """On the recorded line the average of VIN is half of its instant."""
    assert sample_of(recorded_lines("thor_l4t39_01.txt")[0]).rails_mw["VIN"] == 87426


@pytest.mark.parametrize("text", ["-392mW/-392mW", "-392mW/12mW/40mW", "-392/-392", "-392mW", "-392mW/-3"])
def test_negative_power_is_kept(text: str) -> None:
    """Thor reads one code below zero; dropping or clamping it would raise the idle mean."""
    assert sample_of(f"{HEAD}VDD_GPU {text}").rails_mw == {"VDD_GPU": -392}


@pytest.mark.parametrize("text", ["4.5W/4.5W", "43", "4361m", "4361kW/1", "43x/12mW", "off", "4361 mW", "/12mW"])
def test_power_in_no_known_form_is_absent(text: str) -> None:
    assert sample_of(f"{HEAD}VDD_IN {text}").rails_mw == {}


@pytest.mark.parametrize("text", ["[1%@729,2%@7", "[1%@729,,2%@7]", "[1%@729,on]", "[]"])
def test_broken_cpu_list_is_absent_as_a_whole(text: str) -> None:
    """A list with a hole would give the load of one core to another."""
    assert sample_of(f"{HEAD}CPU {text}").cpu == ()


@pytest.mark.parametrize("line", ["", "\n", "RAM", "RAM 1697/76", "RAM 1697/7620kB", "SWAP 0/3810MB", "VDD_IN 1mW/1mW"])
def test_text_without_the_memory_part_is_foreign(line: str) -> None:
    assert parse_line(line) is None


@pytest.mark.parametrize(
    "line",
    [
        "05-13-2026 14:22:48 SIMULATED RAM 1/2MB VDD_IN 40mW/40mW",
        "SIMULATED RAM 1/2MB VDD_IN 40mW/40mW",
        "RAM 1/2MB SIMULATED VDD_IN 40mW/40mW",
        "RAM 1/2MB VDD_IN 40mW/40mW SIMULATED\n",
    ],
)
def test_simulated_mark_is_seen_wherever_it_stands(line: str) -> None:
    sample = sample_of(line)
    assert sample.is_simulated
    assert sample.rails_mw == {"VDD_IN": 40}


@pytest.mark.parametrize(
    "name",
    [
        "agx_orin_l4t36_02_log.txt",
        "agx_orin_l4t36_04_spaces.txt",
        "agx_orin_l4t39_01.txt",
        "agx_xavier_l4t32_01.txt",
        "nano_l4t32_02.txt",
        "orin_nano_l4t36_01_idle_log.txt",
        "thor_l4t38_01.txt",
        "tx1_l4t28_01.txt",
    ],
)
def test_cut_off_line_loses_values_and_changes_none(name: str) -> None:
    """A killed tegrastats leaves half a line: 43 mW must not be read from ``VDD_IN 4361mW/4361mW``."""
    line = recorded_lines(name)[0]
    whole = sample_of(line)
    for length in range(len(line)):
        part = parse_line(line[:length])
        if part is None:
            continue
        assert part.rails_mw.items() <= whole.rails_mw.items(), line[:length]
        assert part.temperatures_c.items() <= whole.temperatures_c.items(), line[:length]
        assert part.cpu == whole.cpu or all(core.mhz is None for core in part.cpu), line[:length]
        for field in ("gpu_percent", "emc_percent", "swap_used_mb", "swap_total_mb"):
            assert getattr(part, field) in (None, getattr(whole, field)), line[:length]
        assert (part.stamp, part.ram_used_mb, part.ram_total_mb) == (whole.stamp, whole.ram_used_mb, whole.ram_total_mb)


@settings(deadline=None)
@given(st.text())
def test_any_text_is_read_without_an_error(text: str) -> None:
    parse_line(text)
    sample_of(HEAD + text)


PIECES = [" ", "\t", "\0", "/", "-", ",", "[", "]", "@408", "off", "mW", "MB", "4361", "9" * 12, "٣", "²"]
PIECES += ["RAM 1/2MB", "SWAP", "CPU", "0%@729", "GR3D_FREQ", "99%", "@[0,0]", "EMC_FREQ", "cpu@", "41.5C", "-256C"]
PIECES += ["VDD_IN", "NC", "SIMULATED"]


@settings(deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
def test_any_pieces_of_the_grammar_are_read_without_an_error(text: str) -> None:
    parse_line(text)
    sample_of(HEAD + text)
