"""What a machine's own files say of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from devit_contract.errors import InputError
from devit_contract.machine import available_bytes, board_compatible, board_model, clocks, memory_bytes, power_mode

BOARDS = Path(__file__).parents[1] / "data" / "boards"


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        ("agx-orin-jp6.0", "MAXN (mode 0)"),
        ("orin-nano-jp6.2", "MAXN_SUPER (mode 2)"),
        ("agx-orin-jp7.2", "MODE_30W (mode 2, by default)"),
        ("orin-nx-jp6.1-container", "None"),
        ("laptop", "None"),
    ],
)
def test_the_power_mode_has_its_boards_own_name(tree: str, text: str) -> None:
    assert str(power_mode(BOARDS / tree)) == text


def test_a_power_mode_that_the_configuration_does_not_name_keeps_its_number(tmp_path: Path) -> None:
    write(tmp_path, "var/lib/nvpmodel/status", "pmode:0007\n")
    assert str(power_mode(tmp_path)) == "mode 7"


@pytest.mark.parametrize(
    ("tree", "texts", "locked"),
    [
        ("agx-orin-jp6.0", ["GPU 1300 MHz", "CPU 2202 MHz"], True),
        ("orin-nano-jp6.2", ["GPU 306 to 1020 MHz", "CPU 730 to 1728 MHz"], False),
        ("agx-thor-jp7.0", ["GPU 1575 MHz", "CPU 2601 MHz"], True),
        ("nano-jp4.6", ["GPU 922 MHz", "CPU 1479 MHz"], True),
        ("xavier-nx-jp5.1", ["GPU 115 to 1109 MHz", "CPU 1190 to 1421 MHz"], False),
    ],
)
def test_clocks_are_locked_where_the_kernel_may_set_one_value_only(tree: str, texts: list[str], locked: bool) -> None:
    found = clocks(BOARDS / tree)
    assert [str(clock) for clock in found] == texts
    assert all(clock.is_locked for clock in found) == locked


def test_a_clock_without_a_number_is_no_clock(tmp_path: Path) -> None:
    write(tmp_path, "sys/class/devfreq/17000000.gpu/min_freq", "<unsupported>\n")
    write(tmp_path, "sys/class/devfreq/17000000.gpu/max_freq", "1020000000\n")
    write(tmp_path, "sys/class/devfreq/15340000.vic/min_freq", "1\n")
    write(tmp_path, "sys/class/devfreq/15340000.vic/max_freq", "2\n")
    assert clocks(tmp_path) == []


def test_a_board_is_called_what_its_device_tree_says(tmp_path: Path) -> None:
    assert board_model(tmp_path) == ""
    write(tmp_path, "sys/firmware/devicetree/base/model", "Raspberry Pi 5  Model B\0")
    assert board_model(tmp_path) == "Raspberry Pi 5 Model B"
    write(tmp_path, "proc/device-tree/model", "NVIDIA Jetson Orin Nano Developer Kit\0")
    assert board_model(tmp_path) == "NVIDIA Jetson Orin Nano Developer Kit"


def test_a_tree_is_compatible_with_a_board_a_module_and_a_chip(tmp_path: Path) -> None:
    assert board_compatible(tmp_path) == ()
    names = ("nvidia,p3768-0000+p3767-0005-super", "nvidia,p3767-0005", "nvidia,tegra234")
    assert board_compatible(BOARDS / "orin-nano-jp6.2") == names


def test_memory_is_in_bytes_and_unknown_memory_is_an_error(tmp_path: Path) -> None:
    assert memory_bytes(tmp_path) == {}
    with pytest.raises(InputError, match="no line MemAvailable"):
        available_bytes(tmp_path)
    write(tmp_path, "proc/meminfo", "MemTotal:        8000 kB\nMemAvailable:    20480 kB\nHugePages_Total:       0\n")
    assert memory_bytes(tmp_path) == {"MemTotal": 8000 << 10, "MemAvailable": 20 << 20}
    assert available_bytes(tmp_path) == 20 << 20
