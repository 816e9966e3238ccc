"""Boards as their own files describe them."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from devit_engines.board import detect_board

BOARDS = Path(__file__).parents[1] / "data" / "boards"

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


@pytest.mark.parametrize(
    ("tree", "capability", "l4t"),
    [
        ("agx-orin-jp6.0", "sm_87", "36.3.0"),
        ("orin-nano-jp6.2", "sm_87", "36.4.3"),
        ("orin-nx-jp6.1-container", "sm_87", "36.4.0"),
        ("agx-thor-jp7.0", "sm_110", "38.2.0"),
        ("agx-orin-jp7.2", "sm_87", "39.2.0"),
        ("orin-nano-jp6.2.3", "sm_87", "36.5.2"),
        ("agx-orin-jp7.2.2", "sm_87", "39.2.2"),
        ("agx-thor-jp7.2.1-mig", "sm_110", "39.2.1"),
        ("xavier-nx-jp5.1", "sm_72", "35.4.1"),
        ("nano-jp4.6", "sm_53", "32.7.1"),
        ("raspberry-pi-5", "cpu", None),
        ("laptop", "cpu", None),
    ],
)
def test_every_board_is_known_by_its_files(tree: str, capability: str, l4t: str | None) -> None:
    board = detect_board(BOARDS / tree)
    assert (board.compute_capability, board.l4t) == (capability, l4t)
    assert board.is_jetson == (l4t is not None)


@pytest.mark.parametrize(("tree", "capability"), [("igx-orin", "sm_87"), ("igx-thor", "sm_110")])
def test_an_igx_has_the_chip_of_a_jetson(tree: str, capability: str) -> None:
    """Mainline Linux, tegra234-p3740-0002+p3701-0008.dts; NVIDIA calls IGX Thor's module a T7000, of Thor's chip."""
    assert detect_board(BOARDS / tree).compute_capability == capability


def test_a_carrier_board_with_a_model_of_its_own_is_known_by_its_chip(tmp_path: Path) -> None:
    """Makers of carrier boards write their own model string; the chip's name stays NVIDIA's."""
    write(tmp_path, "proc/device-tree/model", "Acme Box 3000\0")
    write(tmp_path, "proc/device-tree/compatible", "acme,box\0nvidia,tegra234\0")
    board = detect_board(tmp_path)
    assert (board.name, board.compute_capability) == ("Acme Box 3000", "sm_87")


@pytest.mark.parametrize(("release", "capability"), [(R36, "sm_87"), (R38, "sm_110"), (R36.replace("36", "39"), "cpu")])
def test_a_container_without_a_device_tree_knows_the_gpu_where_the_release_has_one_family(
    tmp_path: Path, release: str, capability: str
) -> None:
    """Docker masks /sys/firmware; release 39 runs on Orin and Thor, so it proves neither."""
    write(tmp_path, "etc/nv_tegra_release", release)
    board = detect_board(tmp_path)
    assert (board.name, board.compute_capability, board.is_jetson) == (platform.machine(), capability, True)
