"""What an agent tells of its board's over-current events, against a node that the test speaks by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.edge_agent.hand_made_node import HandMadeNode

from devit_contract.machine import OverCurrentEvents
from devit_contract.wire.messages import Control
from devit_contract.wire.words import Question
from devit_edge_agent.sensors import over_current
from devit_edge_agent.sensors.over_current import OverCurrentWatch


def count(root: Path, *counts: int) -> None:
    """Write the counters of a SIMULATED board."""
    folder = root / "sys/class/hwmon/hwmon3"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text("soctherm_oc\n")
    for number, events in enumerate(counts, 1):
        (folder / f"oc{number}_event_cnt").write_text(f"{events}\n")


class Clock:
    """A monotonic clock that stands still."""

    def __init__(self) -> None:
        self.now_ns = 5

    def monotonic_ns(self) -> int:
        return self.now_ns

    def pass_s(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(over_current, "time", made)
    return made


def test_a_mark_has_the_events_since_the_boot_and_a_ping_those_since_the_start(
    node: HandMadeNode, tmp_path: Path
) -> None:
    count(tmp_path / "board", 1, 15, 27390)
    node.start("--engine", "null", config='tegrastats = []\nroot = "board"')
    node.welcome()
    mark = node.ask(Control(Question.MARK)).mark
    assert mark is not None
    assert mark.over_current == OverCurrentEvents(1, 15, 27390)
    assert node.ask(Control(Question.PING)).over_current == OverCurrentEvents()
    count(tmp_path / "board", 1, 16, 27400)
    mark = node.ask(Control(Question.MARK)).mark
    assert mark is not None
    assert mark.over_current == OverCurrentEvents(1, 16, 27400)


def test_counters_are_read_every_five_seconds_whatever_is_asked(tmp_path: Path, clock: Clock) -> None:
    count(tmp_path, 0, 0, 100)
    watch = OverCurrentWatch(tmp_path)
    count(tmp_path, 0, 0, 137)
    clock.pass_s(4.9)
    assert watch.since_start() == OverCurrentEvents()
    clock.pass_s(0.1)
    assert watch.since_start() == OverCurrentEvents(0, 0, 37)


def test_counters_that_appear_after_the_agent_count_from_then_on(tmp_path: Path, clock: Clock) -> None:
    """Drivers are loaded while services start already, as jetson_stats bfa68481 found on JetPack 7."""
    watch = OverCurrentWatch(tmp_path)
    assert watch.since_start() is None
    count(tmp_path, 0, 0, 100)
    clock.pass_s(5)
    assert watch.since_start() == OverCurrentEvents()
    count(tmp_path, 2, 0, 101)
    clock.pass_s(5)
    assert watch.since_start() == OverCurrentEvents(2, 0, 1)


def test_counters_that_cannot_be_read_for_a_while_are_unknown_and_not_zero(tmp_path: Path, clock: Clock) -> None:
    count(tmp_path, 0, 0, 100)
    watch = OverCurrentWatch(tmp_path)
    (tmp_path / "sys/class/hwmon/hwmon3/oc1_event_cnt").write_text("")
    clock.pass_s(5)
    assert watch.since_start() is None
    count(tmp_path, 0, 0, 103)
    clock.pass_s(5)
    assert watch.since_start() == OverCurrentEvents(0, 0, 3)
