"""tegrastats lines: every recorded board against its known values, and any text at all."""

from __future__ import annotations

import csv
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.properties import examples

from devit_contract.wire.messages import PowerLine
from devit_profiling.sensor.sample import CoreLoad, EngineLoad, Sample
from devit_profiling.sensor.sensor_lines import parse_sensor_log
from devit_profiling.sensor.tegrastats import parse_line

DATA = Path(__file__).parents[2] / "data" / "tegrastats"
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


def test_summary_behind_the_samples_is_an_unparsed_line() -> None:
    lines = [PowerLine(number, text) for number, text in enumerate(recorded_lines("orin_nano_l4t36_02_load_log.txt"))]
    log = parse_sensor_log([*lines, PowerLine(99, "")])
    assert (len(log.samples), log.unparsed_lines) == (18, 1)
    assert log.samples[3].monotonic_ns == 3


def test_whole_line_of_an_orin_nano_is_read() -> None:
    rails_mw = {"VDD_IN": 4824, "VDD_CPU_GPU_CV": 518, "VDD_SOC": 1475}
    assert sample_of(recorded_lines("orin_nano_l4t36_05.txt")[0]) == Sample(
        stamp="06-18-2025 11:25:24",
        ram_used_mb=3452,
        ram_total_mb=7620,
        ram_largest_free_blocks=25,
        ram_largest_free_block_kb=4096,
        swap_used_mb=1518,
        swap_total_mb=16384,
        swap_cached_mb=174,
        cpu=(*(CoreLoad(percent, 1420) for percent in (1, 2, 0, 2)), CoreLoad(2, 729), CoreLoad(1, 729)),
        gpu_percent=0,
        temperatures_c={"cpu": 50.031, "soc2": 49.031, "soc0": 50.0, "gpu": 49.031, "tj": 50.25, "soc1": 50.25},
        rails_mw=rails_mw,
        rails_average_mw=rails_mw,
    )


def test_whole_line_of_an_agx_orin_with_two_clusters_is_read() -> None:
    rails_mw = {"VDD_GPU_SOC": 2399, "VDD_CPU_CV": 400, "VIN_SYS_5V0": 4032, "VDDQ_VDD2_1V8AO": 301}
    assert sample_of(recorded_lines("agx_orin_l4t35_01.txt")[0]) == Sample(
        stamp="04-24-2023 00:01:24",
        ram_used_mb=1282,
        ram_total_mb=62795,
        ram_largest_free_blocks=15152,
        ram_largest_free_block_kb=4096,
        swap_used_mb=0,
        swap_total_mb=31398,
        swap_cached_mb=0,
        cpu=(CoreLoad(0, 729),) * 12,
        emc_percent=0,
        emc_mhz=2133,
        gpu_percent=0,
        gpu_mhz=(0,),
        gpu2_percent=0,
        gpu2_mhz=(0,),
        engines={"VIC": EngineLoad(is_on=True, mhz=729)},
        ape_mhz=174,
        temperatures_c={
            **{"CPU": 42.593, "Tboard": 32.0, "SOC2": 39.343, "Tdiode": 33.25},
            **{"SOC0": 39.375, "tj": 42.593, "SOC1": 40.468},
        },
        rails_mw=rails_mw,
        rails_average_mw=rails_mw,
    )


def test_whole_line_of_a_nano_is_read_to_its_line_end() -> None:
    """Its last average has no unit: without the line end it might be cut off."""
    line = recorded_lines("nano_l4t32_01.txt")[1]
    sample = sample_of(line + "\n")
    assert sample == Sample(
        ram_used_mb=1504,
        ram_total_mb=3956,
        ram_largest_free_blocks=331,
        ram_largest_free_block_kb=4096,
        iram_used_kb=0,
        iram_total_kb=252,
        iram_largest_free_block_kb=252,
        cpu=(CoreLoad(44, 1479), CoreLoad(22, 1479), CoreLoad(26, 1479), CoreLoad(14, 1479)),
        emc_percent=7,
        emc_mhz=1600,
        gpu_percent=86,
        gpu_mhz=(921,),
        engines={"NVDEC": EngineLoad(is_on=True, mhz=716), "VIC": EngineLoad(is_on=True, percent=0, mhz=140)},
        ape_mhz=25,
        temperatures_c={"PLL": 39.0, "CPU": 44.0, "GPU": 42.5, "AO": 47.5, "thermal": 42.5},
        rails_mw={"POM_5V_IN": 4531, "POM_5V_GPU": 1113, "POM_5V_CPU": 539},
        rails_average_mw={"POM_5V_IN": 3285, "POM_5V_GPU": 213, "POM_5V_CPU": 722},
    )
    assert list(sample_of(line).rails_average_mw) == ["POM_5V_IN", "POM_5V_GPU"]
    assert sample_of(line + "\r\n") == sample


def test_engines_are_on_with_load_or_clock_or_off() -> None:
    orin = sample_of(recorded_lines("agx_orin_l4t36_01.txt")[0])
    assert orin.engines["NVENC"] == EngineLoad(is_on=True, percent=79, mhz=166)
    assert [name for name, engine in orin.engines.items() if engine.is_on] == ["NVENC", "VIC"]
    assert len(orin.engines) == 9
    thor = sample_of(recorded_lines("thor_l4t38_01.txt")[0])
    assert thor.engines["NVENC1"] == EngineLoad(is_on=True, mhz=0)
    assert thor.engines["PVA0"] == EngineLoad(is_on=False)
    spaced = sample_of(recorded_lines("agx_orin_l4t36_04_spaces.txt")[0])
    assert spaced.engines == dict.fromkeys(orin.engines, EngineLoad(is_on=False))
    assert spaced.ape_mhz == 174


def test_load_and_clock_of_an_engine_on_two_tokens_are_one_engine() -> None:
    for tokens in ("NVENC_LOAD 7% NVENC_FREQ @1691", "NVENC_FREQ 1691 NVENC_LOAD 7%"):
        assert sample_of(f"{HEAD}{tokens} tj@41C").engines == {"NVENC": EngineLoad(is_on=True, percent=7, mhz=1691)}


def test_instruction_translator_of_denver_cores_is_read() -> None:
    sample = sample_of(recorded_lines("tx2_l4t28_01.txt")[0])
    assert (sample.mts_foreground_percent, sample.mts_background_percent) == (1, 8)


def test_maxima_of_l4t_39_stand_apart_from_what_is_now() -> None:
    sample = sample_of(recorded_lines("agx_orin_l4t39_01.txt")[0])
    assert (sample.temperatures_c["soc1"], sample.temperatures_max_c["soc1"]) == (47.906, 48.093)
    rails = sample.rails_mw, sample.rails_average_mw, sample.rails_max_mw
    assert [rail["VIN_SYS_5V0"] for rail in rails] == [5552, 5274, 5552]


def test_zone_without_a_thermometer_is_absent_until_it_raises_an_alarm() -> None:
    """The driver of the PMIC knows three values: 100 C for well (50 on some images), 120 and 140 C for its alarms."""
    for dummy in ("100", "50"):
        assert sample_of(f"{HEAD}PMIC@{dummy}C AO@50C").temperatures_c == {"AO": 50.0}
    assert sample_of(f"{HEAD}PMIC@120C").temperatures_c == {"PMIC": 120.0}


def test_free_blocks_may_be_counted_in_kilobytes() -> None:
    sample = sample_of("RAM 3900/3956MB (lfb 2x512kB)\n")
    assert (sample.ram_largest_free_blocks, sample.ram_largest_free_block_kb) == (2, 512)


@pytest.mark.parametrize(
    ("text", "percent", "mhz"),
    [
        ("0%", 0, ()),
        ("62%@306", 62, (306,)),
        ("@[1300,1301,1302]", None, (1300, 1301, 1302)),
        ("12%@[1300,1300]", 12, (1300, 1300)),
        ("@918", None, (918,)),
        ("12%@[1300,", 12, ()),
        ("12%@[]", 12, ()),
        ("1000%", None, ()),
    ],
)
def test_load_and_clocks_of_the_gpu_are_read_in_every_form(text: str, percent: int | None, mhz: tuple[int]) -> None:
    sample = sample_of(f"{HEAD}GR3D_FREQ {text} GR3D2_FREQ 5%@114 tj@41C")
    assert (sample.gpu_percent, sample.gpu_mhz) == (percent, mhz)
    assert (sample.gpu2_percent, sample.gpu2_mhz) == (5, (114,))


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
def test_text_without_the_memory_part_is_not_parsed(line: str) -> None:
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


def test_cut_off_line_loses_values_and_changes_none() -> None:
    """A killed tegrastats leaves half a line: 43 mW must not be read from ``VDD_IN 4361mW/4361mW``."""
    for row in sources():
        line = recorded_lines(row["file"])[int(row["expect_line"]) - 1]
        whole = sample_of(line + "\n")
        for length in range(len(line)):
            part = parse_line(line[:length])
            assert part is None or not differences(part, whole), line[:length]


def differences(part: Sample, whole: Sample) -> list[str]:
    """Name the fields of ``part`` that are neither absent nor as in ``whole``."""
    engines = zip(part.engines.values(), (whole.engines[name] for name in part.engines), strict=True)
    pairs: list[tuple[msgspec.Struct, msgspec.Struct]] = [(part, whole), *engines]
    pairs += zip(part.cpu, whole.cpu, strict=True) if part.cpu else []
    return [
        field
        for mine, full in pairs
        for field, value in msgspec.structs.asdict(mine).items()
        if field not in ("cpu", "engines")
        and not (value is None or value == () or value == getattr(full, field))
        and not (isinstance(value, dict) and value.items() <= getattr(full, field).items())
    ]


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


NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,11}", fullmatch=True)
RAIL_NAMES = NAMES.filter(lambda name: name not in ("NC", "RAM", "IRAM", "SWAP"))
ZONE_NAMES = NAMES.filter(lambda name: name != "PMIC")
PERCENTS = st.integers(0, 999)
MHZ = st.integers(0, 99_999)
COUNTS = st.integers(0, 999_999_999)
POWERS_MW = st.integers(-99_999_999, 99_999_999)
CORES = st.lists(st.builds(CoreLoad, PERCENTS, MHZ) | st.just(CoreLoad(None, None)), min_size=1, max_size=20)
ENGINES = st.dictionaries(
    st.sampled_from(["NVENC", "NVENC0", "NVDEC", "NVJPG1", "VIC", "OFA", "NVDLA0", "PVA0", "MSENC"]),
    st.just(EngineLoad(is_on=False))
    | st.builds(EngineLoad, st.just(True), PERCENTS, MHZ)
    | st.builds(EngineLoad, st.just(True), st.none(), MHZ),
)
ZONES = st.dictionaries(ZONE_NAMES, st.integers(-255_000, 999_000).map(lambda millidegrees: millidegrees / 1000))
SAMPLES = st.builds(
    Sample,
    ram_used_mb=COUNTS,
    ram_total_mb=COUNTS,
    swap_used_mb=COUNTS,
    swap_total_mb=COUNTS,
    swap_cached_mb=COUNTS,
    cpu=CORES.map(tuple),
    emc_percent=PERCENTS,
    emc_mhz=MHZ,
    gpu_percent=st.none() | PERCENTS,
    gpu_mhz=st.lists(MHZ, min_size=1, max_size=3).map(tuple),
    engines=ENGINES,
    ape_mhz=MHZ,
    temperatures_c=ZONES,
    rails_mw=st.dictionaries(RAIL_NAMES, POWERS_MW),
)


@settings(deadline=None)
@given(SAMPLES, st.sampled_from([" ", "   "]), st.booleans())
def test_what_was_printed_is_read_again(sample: Sample, blank: str, is_bare: bool) -> None:
    """In the form of L4T 32 or 39, with one blank or several."""
    unit = "" if is_bare else "mW"
    read = sample_of(line_of(sample, blank, unit))
    assert msgspec.structs.replace(read, rails_average_mw={}, rails_max_mw={}, temperatures_max_c={}) == sample
    assert read.rails_average_mw == {rail: power_mw - 1 for rail, power_mw in sample.rails_mw.items()}
    assert read.rails_max_mw == ({} if is_bare else {rail: power + 1 for rail, power in sample.rails_mw.items()})
    assert read.temperatures_max_c == ({} if is_bare else dict.fromkeys(sample.temperatures_c, 1000.5))


def line_of(sample: Sample, blank: str, unit: str) -> str:
    """Print a sample; without a ``unit``, rails and zones have no maximum."""
    cores = ",".join("off" if core.mhz is None else f"{core.percent}%@{core.mhz}" for core in sample.cpu)
    load = "" if sample.gpu_percent is None else f"{sample.gpu_percent}%"
    clocks = ",".join(map(str, sample.gpu_mhz))
    tokens = [
        f"RAM {sample.ram_used_mb}/{sample.ram_total_mb}MB",
        f"SWAP {sample.swap_used_mb}/{sample.swap_total_mb}MB (cached {sample.swap_cached_mb}MB)",
        f"CPU [{cores}] EMC_FREQ {sample.emc_percent}%@{sample.emc_mhz} GR3D_FREQ {load}@[{clocks}]",
    ]
    for name, engine in sample.engines.items():
        words = f"{'' if engine.percent is None else f'{engine.percent}%'}@{engine.mhz}" if engine.is_on else "off"
        tokens.append(f"{name} {words}")
    tokens.append(f"APE {sample.ape_mhz}")
    tokens += [f"{zone}@{celsius:g}C{'/1000.5C' if unit else ''}" for zone, celsius in sample.temperatures_c.items()]
    for rail, power_mw in sample.rails_mw.items():
        highest = f"/{power_mw + 1}{unit}" if unit else ""
        tokens.append(f"{rail} {power_mw}{unit}/{power_mw - 1}{unit}{highest}")
    return blank.join(tokens) + "\n"


@examples(0.5)
@given(SAMPLES, st.data())
def test_any_line_that_is_cut_off_loses_values_and_changes_none(sample: Sample, data: st.DataObject) -> None:
    line = line_of(sample, " ", data.draw(st.sampled_from(["", "mW"])))
    part = parse_line(line[: data.draw(st.integers(0, len(line)))])
    assert part is None or not differences(part, sample_of(line))
