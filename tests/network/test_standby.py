"""Two nodes and four devices as processes, under 50 requests a second: what becomes of requests when a node goes.

Run with ``-rP`` for the figures.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.nodes import FIRST, SECOND, Load, Nodes

pytestmark = pytest.mark.system
LIMIT_S = 30.0
"""Until there has to be an answer again, on a machine of whatever load; the second that is wanted is a benchmark's."""


@pytest.fixture
def cell(tmp_path: Path) -> Iterator[Nodes]:
    with Nodes(tmp_path / "cell", deadline_ms=300.0) as made:
        yield made


@pytest.fixture
def load(cell: Nodes) -> Iterator[Load]:
    made = Load(cell, timeout_s=2 * LIMIT_S)
    made.settle()
    yield made
    made.client.close()


def checked(load: Load, what: str, *, may_fail: bool = False) -> None:
    """Print the figures; hold that every request ended once, and had an answer, or was counted as failed."""
    load.finish(LIMIT_S)
    print(f"{what}: {load.summary()}")
    assert load.twice == 0
    assert [why for why in load.lost if not (may_fail and "State.FAILED" in why)] == []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
def test_the_other_node_answers_when_the_active_one_goes(cell: Nodes, load: Load, how: signal.Signals) -> None:
    for _ in range(3):
        active = load.active()
        load.interrupt(lambda name=active: cell.signal(name, how), LIMIT_S)
        assert load.active() != active
        if how is signal.SIGSTOP:
            cell.signal(active, signal.SIGCONT)
        else:
            cell.kill(active)
            cell.start(active)
        load.run(1.0)
    checked(load, how.name, may_fail=how is signal.SIGSTOP)


def test_each_of_five_boards_goes_in_turn(cell: Nodes, load: Load) -> None:
    """The first node has a board of its own, the other one shares that of jetson1."""
    for board in ((SECOND, "jetson1"), ("jetson2",), ("jetson3",), ("jetson4",), (FIRST,)):
        load.interrupt(lambda names=board: [cell.signal(name, signal.SIGKILL) for name in names], LIMIT_S)
        for name in board:
            cell.kill(name)
            cell.start(name)
        load.run(1.0)
    checked(load, "five boards")


def test_a_partition_in_which_both_see_devices_has_one_active_node(tmp_path: Path) -> None:
    """The first node keeps jetson3 and 4, and the other one jetson1 and 2: the first device decides for that one."""
    with Nodes(tmp_path / "cell", deadline_ms=300.0, is_split=True) as cell:
        load = Load(cell, timeout_s=2 * LIMIT_S)
        try:
            load.settle()
            if load.active() != FIRST:
                cell.kill(SECOND)
                load.settle()
                cell.start(SECOND)
            for _ in range(2):
                load.run(1.0)
                load.interrupt(lambda: cell.cut(is_cut=True), LIMIT_S)
                load.run(2.0)
                assert load.active() == SECOND
                cell.cut(is_cut=False)
                load.run(2.0)
                assert load.active() == SECOND
                cell.kill(SECOND)
                load.settle()
                cell.start(SECOND)
            checked(load, "partition", may_fail=True)
        finally:
            load.client.close()


def test_both_nodes_restart(cell: Nodes, load: Load) -> None:
    for name in (FIRST, SECOND):
        cell.signal(name, signal.SIGKILL)
    start_s = time.monotonic()
    for name in (FIRST, SECOND):
        cell.kill(name)
        cell.start(name)
    load.run(LIMIT_S, lambda: load.answered_since(start_s) > 0)
    load.run(1.0)
    checked(load, "both restarted", may_fail=True)
    assert load.answered_since(start_s) > 0
