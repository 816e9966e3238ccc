"""When a device counts as slow, second by second, and that it does not flap."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest

from devit_contract.machine import OverCurrentEvents, Throttling
from devit_contract.service.journal import Log
from devit_contract.wire.messages import ControlReply
from devit_contract.wire.words import Slowdown
from devit_fusion.devices.heat import Heat
from devit_fusion.devices.links import Link
from devit_fusion.events import Events

SECOND_NS = 1_000_000_000
QUIET = ControlReply()


class Board:
    """A device that replies once a second."""

    def __init__(self) -> None:
        self.link = Link(0, "jetson1", 2, 50_000_000)
        self.events = Events(Log("test"))
        self.heat = Heat(self.events)
        self._seconds = count(100)

    def reply(self, seconds: int, reply: Callable[[int], ControlReply], inference_us: int = 0) -> int | None:
        """Reply for a while, ten inferences a second; tell after how many replies what is known changed, if it did."""
        before, changed = self.link.slowdowns, None
        for index, now_s in zip(range(seconds), self._seconds, strict=False):
            for _ in range(10 if inference_us else 0):
                self.link.inference.add_us(inference_us)
            self.heat.replied(self.link, reply(index), now_s * SECOND_NS)
            if changed is None and self.link.slowdowns != before:
                changed = index
        return changed

    def texts(self) -> list[str]:
        return [event.text for event in reversed(self.events.latest())]


@pytest.fixture
def board() -> Board:
    return Board()


def told(alerts: int = 0, clock_share: float = 1.0) -> Callable[[int], ControlReply]:
    return lambda _: ControlReply(throttling=Throttling(alerts, clock_share, is_simulated=True))


@pytest.mark.parametrize(("bad", "cause"), [(told(alerts=1), Slowdown.ALERT), (told(clock_share=0.7), Slowdown.CLOCK)])
def test_a_cause_begins_after_ten_seconds_and_ends_after_thirty(
    board: Board, bad: Callable[[int], ControlReply], cause: Slowdown
) -> None:
    assert board.reply(60, told()) is None
    assert board.reply(20, bad) == 10
    assert board.link.slowdowns == (cause,)
    assert board.reply(60, told()) == 30
    begin, end = board.texts()
    assert begin.startswith("slows down: its ")
    assert "(SIMULATED)" in begin
    assert end == "does not slow down any more (SIMULATED)"


def test_what_comes_and_goes_within_seconds_changes_nothing(board: Board) -> None:
    for _ in range(30):
        assert board.reply(8, told(alerts=1)) is None
        assert board.reply(2, told()) is None
    board.reply(11, told(alerts=1))
    for _ in range(30):
        assert board.reply(20, told()) is None
        assert board.reply(2, told(alerts=1)) is None
    assert len(board.texts()) == 1


def test_who_comes_back_soon_stays_longer_each_time(board: Board) -> None:
    ends = []
    for _ in range(5):
        board.reply(11, told(alerts=1))
        ends.append(board.reply(300, told()))
    assert ends == [30, 60, 120, 240, 240]


def test_a_clock_between_both_limits_is_neither(board: Board) -> None:
    assert board.reply(100, told(clock_share=0.92)) is None
    board.reply(11, told(clock_share=0.5))
    assert board.reply(100, told(clock_share=0.92)) is None
    assert board.link.slowdowns == (Slowdown.CLOCK,)


def test_over_current_events_count_while_they_rise(board: Board) -> None:
    def rising(index: int) -> ControlReply:
        return ControlReply(over_current=OverCurrentEvents(0, 0, 7 * (index // 5)))  # read every five seconds

    def resting(_: int) -> ControlReply:
        return ControlReply(over_current=OverCurrentEvents(0, 0, 7 * 11))

    assert board.reply(60, rising) == 15
    assert board.reply(60, resting) == 33  # from the last event on
    assert board.reply(60, lambda _: ControlReply(over_current=OverCurrentEvents(0, 0, 80))) is None  # a single one


def test_inference_that_takes_longer_than_before_is_noticed_and_what_is_usual_rises_slowly(board: Board) -> None:
    assert board.reply(60, lambda _: QUIET, inference_us=10_000) is None
    assert board.reply(60, lambda _: QUIET, inference_us=13_000) is None
    assert board.reply(30, lambda _: QUIET, inference_us=18_000) == 10
    assert board.link.slowdowns == (Slowdown.LATENCY,)
    assert board.reply(100, lambda _: QUIET, inference_us=10_500) == 30
    ended = board.reply(3600, lambda _: QUIET, inference_us=18_000)
    assert ended == 10
    assert board.link.slowdowns == ()  # it is its usual pace by now


def test_fractions_of_a_millisecond_are_noise(board: Board) -> None:
    board.reply(60, lambda _: QUIET, inference_us=200)
    assert board.reply(60, lambda _: QUIET, inference_us=900) is None


def test_a_device_that_rests_is_tried_again(board: Board) -> None:
    board.reply(60, lambda _: QUIET, inference_us=10_000)
    board.reply(20, lambda _: QUIET, inference_us=30_000)
    assert board.link.slowdowns == (Slowdown.LATENCY,)
    assert board.reply(100, lambda _: QUIET) == 60


def test_another_engine_is_judged_anew(board: Board) -> None:
    board.reply(60, told(alerts=1), inference_us=10_000)
    board.heat.forget(board.link)
    assert (board.link.slowdowns, board.link.throttling) == ((), None)
    assert board.reply(60, told(), inference_us=30_000) is None


def test_older_agents_tell_nothing(board: Board) -> None:
    assert board.reply(100, lambda _: QUIET) is None
    assert board.link.slowdowns == ()


def test_a_cool_spare_of_the_same_submodel_hides_nothing(board: Board) -> None:
    spare = Link(0, "jetson9", 2, 50_000_000)
    for second in range(60):
        cool = ControlReply(throttling=Throttling(0, 1.0), over_current=OverCurrentEvents(5, 0, 0))
        board.reply(1, lambda _: ControlReply(throttling=Throttling(1, 1.0), over_current=OverCurrentEvents(0, 0, 0)))
        board.heat.replied(spare, cool, (100 + second) * SECOND_NS)
    assert (board.link.slowdowns, spare.slowdowns) == ((Slowdown.ALERT,), ())
