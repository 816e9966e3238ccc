"""Chips of every release in made-up trees: which rails are found, which are not and why, and what they read."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from tests.profiling.sysfs_tree import break_file, hwmon_chip, iio_chip, ina238_chip, orin_nano

from devit_profiling.sensor.hwmon_rails import RailReader, find_rails

AGX_ORIN = (("VDD_GPU_SOC", 19240, 124), ("VDD_CPU_CV", 19240, 20), ("VIN_SYS_5V0", 5008, 836))


def read(root: Path) -> dict[str, int]:
    with RailReader(find_rails(root).rails) as reader:
        return dict(reader.read()[1])


def test_rails_of_l4t_34_and_newer_are_volts_times_amperes(tmp_path: Path) -> None:
    orin_nano(tmp_path)
    assert read(tmp_path) == {"VDD_IN": 4359, "VDD_CPU_GPU_CV": 448, "VDD_SOC": 1373}
    assert find_rails(tmp_path).notes == ()


def test_rails_of_l4t_32_are_milliwatts_as_they_are(tmp_path: Path) -> None:
    iio_chip(tmp_path, "6-0040", [("POM_5V_IN", 2082), ("POM_5V_GPU", 0), ("POM_5V_CPU", 491)])
    assert read(tmp_path) == {"POM_5V_IN": 2082, "POM_5V_GPU": 0, "POM_5V_CPU": 491}


def test_the_two_chips_of_agx_xavier_give_six_rails_in_the_order_of_their_addresses(tmp_path: Path) -> None:
    iio_chip(tmp_path, "1-0041", [("CV", 0), ("VDDRQ", 144), ("SYS5V", 1889)], number=1)
    iio_chip(tmp_path, "1-0040", [("GPU", 0), ("CPU", 311), ("SOC", 932)], number=2)
    assert list(read(tmp_path)) == ["GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"]


def test_unconnected_channels_and_the_sum_of_shunt_voltages_are_no_rails(tmp_path: Path) -> None:
    hwmon_chip(tmp_path, "1-0040", AGX_ORIN)
    second = hwmon_chip(tmp_path, "1-0041", (("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 1800, 335), ("NC", 5000, 1)), number=4)
    assert list(read(tmp_path)) == ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"]
    # On some releases the sum stands at another number.
    (second / "in3_label").write_text("Sum of shunt voltages\n")
    assert list(read(tmp_path)) == ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"]
    assert find_rails(tmp_path).notes == ()


def test_a_thor_reads_its_board_input_from_the_other_chip_and_powers_below_zero(tmp_path: Path) -> None:
    hwmon_chip(
        tmp_path, "2-0040", (("VDD_GPU", 11920, -33), ("VDD_CPU_SOC_MSS", 11920, 464), ("VIN_SYS_5V0", 5040, 1000))
    )
    ina238_chip(tmp_path, "2-0044", 16_802_417)
    assert read(tmp_path) == {"VDD_GPU": -393, "VDD_CPU_SOC_MSS": 5531, "VIN_SYS_5V0": 5040, "VIN": 16802}


def test_a_second_rail_of_a_name_is_left_out_with_a_note(tmp_path: Path) -> None:
    ina238_chip(tmp_path, "2-0044", 16_000_000)
    ina238_chip(tmp_path, "2-0045", 1_000_000, number=8)
    ina238_chip(tmp_path, "2-0046", 2_000_000, number=9, label="FAN 12V")
    assert read(tmp_path) == {"VIN": 16000, "FAN_12V": 2000}
    assert find_rails(tmp_path).notes == ("VIN (2-0045) is left out: 2-0044 has that name too",)


@pytest.mark.parametrize("number", [0, 3, 17])
def test_rails_are_found_whatever_number_the_boot_gave_their_folder(tmp_path: Path, number: int) -> None:
    hwmon_chip(tmp_path, "1-0040", AGX_ORIN, number=number)
    assert list(read(tmp_path)) == ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"]


def test_a_channel_that_is_switched_off_is_left_out_with_the_kernels_words(tmp_path: Path) -> None:
    folder = orin_nano(tmp_path)
    break_file(folder / "curr3_input")
    found = find_rails(tmp_path)
    assert [rail.name for rail in found.rails] == ["VDD_IN", "VDD_CPU_GPU_CV"]
    assert found.notes == ("VDD_SOC (1-0040 channel 3) is left out: reading it fails (Input/output error)",)


def test_channels_without_label_file_or_number_are_left_out_with_the_reason(tmp_path: Path) -> None:
    folder = orin_nano(tmp_path)
    (folder / "in1_label").unlink()
    (folder / "curr2_input").unlink()
    (folder / "in3_input").write_text("n/a\n")
    found = find_rails(tmp_path)
    assert found.rails == ()
    assert found.notes == (
        "1-0040 channel 1 is left out: it has no label",
        "VDD_CPU_GPU_CV (1-0040 channel 2) is left out: reading it fails (No such file or directory)",
        "VDD_SOC (1-0040 channel 3) is left out: reading it fails (it gives no number)",
    )


def test_a_machine_without_chips_has_no_rails(tmp_path: Path) -> None:
    assert find_rails(tmp_path).rails == ()


def test_new_values_are_read_through_files_that_stay_open(tmp_path: Path) -> None:
    folder = orin_nano(tmp_path)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counting
    with RailReader(find_rails(tmp_path).rails) as reader:
        start_ns = time.monotonic_ns()
        first_ns, _ = reader.read()
        (folder / "curr1_input").write_text("1000\n")
        second_ns, rails_mw = reader.read()
        assert start_ns < first_ns < second_ns < time.monotonic_ns()
        assert len(os.listdir("/proc/self/fd")) == before + 6  # noqa: PTH208 - counting
    assert dict(rails_mw)["VDD_IN"] == 4976
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - counting


def test_a_rail_that_fails_once_is_missing_from_that_reading_alone(tmp_path: Path) -> None:
    folder = orin_nano(tmp_path)
    with RailReader(find_rails(tmp_path).rails) as reader:
        (folder / "curr2_input").write_text("")
        assert [rail for rail, _ in reader.read()[1]] == ["VDD_IN", "VDD_SOC"]
        assert reader.problems == {"VDD_CPU_GPU_CV": "reading it fails (it gives no number)"}
        (folder / "curr2_input").write_text("90\n")
        assert len(reader.read()[1]) == 3
        assert reader.problems == {}


def test_files_that_are_gone_leave_none_open(tmp_path: Path) -> None:
    folder = orin_nano(tmp_path)
    rails = find_rails(tmp_path).rails
    (folder / "curr3_input").unlink()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counting
    with pytest.raises(FileNotFoundError):
        RailReader(rails).__enter__()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - counting
