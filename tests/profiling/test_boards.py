"""Which board it is, and which of its rails add up."""

from __future__ import annotations

from pathlib import Path

import pytest

from devit_profiling.boards import (
    AGX_ORIN,
    BOARDS,
    NANO,
    ORIN_NANO,
    THOR,
    XAVIER_NX,
    Board,
    board_of_model,
    guess_board,
    total_mw,
)
from devit_profiling.tegrastats import Sample, parse_line

DATA = Path(__file__).parents[1] / "data" / "tegrastats"


def first_sample(name: str) -> Sample:
    sample = parse_line((DATA / name).read_text(encoding="utf-8").splitlines()[0])
    assert sample is not None
    return sample


@pytest.mark.parametrize(
    ("model", "board"),
    [
        ("NVIDIA Jetson Orin Nano Developer Kit\0", ORIN_NANO),
        ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0", ORIN_NANO),
        ("NVIDIA Jetson AGX Orin Developer Kit\0", AGX_ORIN),
        ("NVIDIA Jetson AGX Orin Developer Kit\n", AGX_ORIN),
        ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit\0", None),
        ("NVIDIA Jetson AGX Thor Developer Kit\0", THOR),
        ("NVIDIA Jetson Xavier NX Developer Kit\0", XAVIER_NX),
        ("NVIDIA Jetson Nano Developer Kit\0", NANO),
        ("Raspberry Pi 5 Model B Rev 1.0\0", None),
        ("", None),
    ],
)
def test_board_is_known_by_its_device_tree_model(model: str, board: Board | None) -> None:
    assert board_of_model(model) is board


@pytest.mark.parametrize("path", sorted(DATA.glob("*.txt")), ids=lambda path: str(path.stem))
def test_guess_finds_the_known_boards_and_no_other(path: Path) -> None:
    """Xavier NX and Orin NX have the rails of Orin Nano, Thor has one of AGX Orin, and some carriers no VIN."""
    expected = next((board for board in BOARDS.values() if path.name.startswith(board.key.replace("-", "_"))), None)
    expected = THOR if path.stem == "thor_l4t39_01" else expected
    assert guess_board(first_sample(path.name)) is expected


def test_total_of_agx_orin_leaves_out_the_rail_inside_another() -> None:
    rails_mw = first_sample("agx_orin_l4t35_01.txt").rails_mw
    assert rails_mw["VDDQ_VDD2_1V8AO"] == 301
    assert total_mw(AGX_ORIN, rails_mw) == 2399 + 400 + 4032


def test_total_of_orin_nano_is_its_input_alone() -> None:
    assert total_mw(ORIN_NANO, first_sample("orin_nano_l4t36_05.txt").rails_mw) == 4824


@pytest.mark.parametrize("board", BOARDS.values(), ids=lambda board: str(board.key))
def test_total_without_one_of_its_rails_is_absent(board: Board) -> None:
    """A partial sum looks like a frugal board."""
    for missing in board.total_rails:
        assert total_mw(board, {rail: 1000 for rail in board.load_mw if rail != missing}) is None


@pytest.mark.parametrize("board", BOARDS.values(), ids=lambda board: str(board.key))
def test_every_rail_of_a_board_has_a_step_and_both_figures(board: Board) -> None:
    assert list(board.idle_mw) == list(board.load_mw) == list(board.code_step_mw)
    assert set(board.total_rails) <= set(board.idle_mw)
    assert all(board.idle_mw[rail] < board.load_mw[rail] for rail in board.idle_mw)
    assert board.total_step_mw == tuple(board.code_step_mw[rail] for rail in board.total_rails)
