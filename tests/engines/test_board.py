"""Boards as their own files describe them."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from devit_engines.board import detect_board

# First line of /etc/nv_tegra_release of JetPack 6.2 on an Orin, and of JetPack 7.0 on a Thor.
R36 = (
    "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, "
    "DATE: Wed Jan  8 01:49:37 UTC 2025\n# KERNEL_VARIANT: oot\n"
)
R38 = (
    "# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic, EABI: aarch64, "
    "DATE: Fri Aug 22 00:55:42 UTC 2025\n# KERNEL_VARIANT: oot\n"
)


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("model", "release", "capability", "l4t"),
    [
        ("NVIDIA Jetson Orin Nano Developer Kit", R36, "sm_87", "36.4.3"),
        ("NVIDIA Jetson AGX Thor Developer Kit", R38, "sm_110", "38.2.0"),
    ],
)
def test_a_jetson_is_known_by_its_device_tree(
    tmp_path: Path, model: str, release: str, capability: str, l4t: str
) -> None:
    write(tmp_path, "proc/device-tree/model", model + "\0")
    write(tmp_path, "etc/nv_tegra_release", release)
    board = detect_board(tmp_path)
    assert (board.name, board.compute_capability, board.l4t) == (model, capability, l4t)


def test_another_board_with_a_device_tree_has_a_name_and_no_gpu(tmp_path: Path) -> None:
    write(tmp_path, "sys/firmware/devicetree/base/model", "Raspberry Pi 5 Model B Rev 1.0\0")
    board = detect_board(tmp_path)
    assert (board.name, board.compute_capability, board.l4t) == ("Raspberry Pi 5 Model B Rev 1.0", "cpu", None)


def test_a_computer_is_named_by_machine_and_cpu(tmp_path: Path) -> None:
    write(tmp_path, "proc/cpuinfo", "processor\t: 0\nmodel name\t: AMD EPYC 7B13  \nmodel name\t: AMD EPYC 7B13\n")
    assert detect_board(tmp_path).name == f"{platform.machine()} AMD EPYC 7B13"


def test_without_any_file_the_machine_is_all_that_is_known(tmp_path: Path) -> None:
    board = detect_board(tmp_path)
    assert (board.name, board.compute_capability, board.l4t) == (platform.machine(), "cpu", None)


def test_this_very_computer_has_a_name() -> None:
    assert detect_board().name
