"""Energy from power samples, by hand."""

from __future__ import annotations

import pytest

from devit_contract.wire.messages import Description, PowerLine, Telemetry
from devit_gateway.joules import EnergyMeter

BOARD = "NVIDIA Jetson Orin Nano Developer Kit"
MS = 1_000_000


def line(time_ms: int, power_mw: int, mark: str = "") -> PowerLine:
    return PowerLine(time_ms * MS, f"{mark}RAM 1697/7620MB (lfb 42x4MB) tj@41C VDD_IN {power_mw}mW/4287mW")


def energy_j(*lines: PowerLine, interval_ms: int = 1000, board: str = BOARD) -> float | None:
    meter = EnergyMeter("jetson1", interval_ms)
    meter.name_board(Description(board, "", "", "", 1))
    for one in lines:
        meter.take(Telemetry("jetson1", (one,)))
    reading = meter.reading()
    return None if reading is None else reading.energy_j


def test_energy_is_the_area_of_the_trapezoids() -> None:
    # 4 W to 6 W in 1 s is 5 J, 6 W for 0.5 s is 3 J.
    assert energy_j(line(0, 4000), line(1000, 6000), line(1500, 6000)) == pytest.approx(8.0)


def test_one_sample_is_no_energy_yet() -> None:
    assert energy_j(line(0, 4000)) == 0.0


def test_without_samples_there_is_no_figure() -> None:
    assert energy_j() is None
    assert energy_j(PowerLine(0, "Tue Jan 26 18:22:31 UTC 2021")) is None


def test_a_gap_of_more_than_five_intervals_is_not_bridged() -> None:
    assert energy_j(line(0, 4000), line(5000, 4000)) == pytest.approx(20.0)
    assert energy_j(line(0, 4000), line(5001, 4000), line(6001, 4000)) == pytest.approx(4.0)


def test_fast_sampling_has_the_gap_that_the_sensor_can_keep() -> None:
    """Asked for 10 ms, tegrastats gives a line every 110 ms."""
    assert energy_j(line(0, 4000), line(110, 4000), line(220, 4000), interval_ms=10) == pytest.approx(0.88)


def test_of_lines_that_came_together_the_first_counts() -> None:
    assert energy_j(line(0, 4000), line(1000, 4000), line(1000, 9000), line(2000, 4000)) == pytest.approx(8.0)


def test_a_device_that_started_anew_adds_to_what_it_had() -> None:
    assert energy_j(line(90_000, 4000), line(91_000, 4000), line(500, 4000), line(1500, 4000)) == pytest.approx(8.0)


def test_a_reading_below_zero_takes_nothing_back() -> None:
    assert energy_j(line(0, -40), line(1000, -40)) == 0.0


def test_a_sum_of_rails_needs_all_of_them() -> None:
    rails = "VDD_GPU_SOC 2800mW/1mW VDD_CPU_CV 400mW/1mW VIN_SYS_5V0 4800mW/1mW VDDQ_VDD2_1V8AO 600mW/1mW"
    whole = [PowerLine(time * MS, f"RAM 1/62841MB (lfb 3x4MB) {rails}") for time in (0, 1000)]
    cut = PowerLine(500 * MS, "RAM 1/62841MB (lfb 3x4MB) VDD_GPU_SOC 2800mW/1mW")
    assert energy_j(whole[0], cut, whole[1], board="NVIDIA Jetson AGX Orin Developer Kit") == pytest.approx(8.0)


@pytest.mark.parametrize(
    ("board", "mark", "scope", "is_simulated"),
    [
        (BOARD, "", "module input (VDD_IN)", False),
        (BOARD + " (SIMULATED)", "", "module input (VDD_IN)", True),
        (BOARD, "SIMULATED ", "module input (VDD_IN)", True),
        ("Some board", "", "module input (VDD_IN)", False),
    ],
)
def test_a_figure_tells_its_scope_and_whether_it_is_simulated(
    board: str, mark: str, scope: str, is_simulated: bool
) -> None:
    meter = EnergyMeter("jetson1", 1000)
    meter.name_board(Description(board, "", "", "", 1))
    rails = "VDD_IN 4000mW/1mW VDD_CPU_GPU_CV 444mW/1mW VDD_SOC 1375mW/1mW"
    meter.take(Telemetry("jetson1", (PowerLine(0, f"{mark}RAM 1697/7620MB (lfb 42x4MB) tj@41C {rails}"),)))
    reading = meter.reading()
    assert reading is not None
    is_guessed = board == "Some board"
    assert reading.scope == scope + (", board guessed" if is_guessed else "")
    assert reading.is_simulated is is_simulated


def test_lines_of_the_power_chips_count_as_those_of_tegrastats_do() -> None:
    lines = [PowerLine(time * MS, f"INA3221 {time}ns VDD_IN 4000mW VDD_SOC 1000mW") for time in (0, 1000, 2000)]
    assert energy_j(*lines) == pytest.approx(8.0)
    assert energy_j(*lines, board="aarch64") is None  # these rails alone fit none
    assert energy_j(PowerLine(0, "INA3221 note: VDD_IN 4000mW")) is None
