"""What an agent tells of how its board slows itself down. The boards are constructed: SIMULATED."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.edge_agent.hand_made_node import HandMadeNode

from devit_contract.machine import Throttling
from devit_contract.wire.messages import Control
from devit_contract.wire.words import Question
from devit_edge_agent.sensors import throttling
from devit_edge_agent.sensors.throttling import ThrottlingWatch

BOARD = Path(__file__).parents[2] / "data/boards/orin-nano-jp6.2"
GPU = "sys/class/devfreq/17000000.gpu/max_freq"
STATUS = "var/lib/nvpmodel/status"


class Clock:
    """A monotonic clock that is moved by hand."""

    def __init__(self) -> None:
        self.now_ns = 5

    def monotonic_ns(self) -> int:
        return self.now_ns

    def pass_s(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(throttling, "time", made)
    return made


@pytest.fixture
def board(tmp_path: Path) -> Path:
    folder = tmp_path / "board"
    shutil.copytree(BOARD, folder, symlinks=True)
    return folder


def cap(board: Path, share: float) -> None:
    """Lower the highest clock that the kernel allows the GPU, as heat does, and as ``nvpmodel`` does."""
    highest_hz = int((BOARD / GPU).read_text())
    (board / GPU).write_text(f"{round(highest_hz * share)}\n")


def test_files_are_read_every_five_seconds_whatever_is_asked(board: Path, clock: Clock) -> None:
    watch = ThrottlingWatch(board)
    cap(board, 0.6)
    clock.pass_s(4.9)
    assert watch.now() == Throttling(is_simulated=True)
    clock.pass_s(0.1)
    found = watch.now()
    assert found is not None
    assert found.clock_share == pytest.approx(0.6, abs=0.01)


def test_a_lower_power_mode_is_no_throttling_and_a_cap_in_it_is(board: Path, clock: Clock) -> None:
    watch = ThrottlingWatch(board)
    (board / STATUS).write_text("pmode:0001 fmode:quiet\n")
    shares = []
    for share in (0.5, 0.25, 0.5):
        cap(board, share)
        clock.pass_s(5)
        found = watch.now()
        assert found is not None
        shares.append(round(found.clock_share, 1))
    assert shares == [1.0, 0.5, 1.0]


def test_a_machine_whose_files_say_nothing_tells_nothing(tmp_path: Path) -> None:
    assert ThrottlingWatch(tmp_path).now() is None


def test_a_ping_tells_it(node: HandMadeNode, tmp_path: Path) -> None:
    shutil.copytree(BOARD, tmp_path / "board", symlinks=True)
    (tmp_path / "board/sys/class/thermal/cooling_device5/cur_state").write_text("1\n")
    node.start("--engine", "null", config='tegrastats = []\nroot = "board"')
    node.welcome()
    assert node.ask(Control(Question.PING)).throttling == Throttling(1, 1.0, is_simulated=True)
    assert node.ask(Control(Question.MARK)).throttling is None
