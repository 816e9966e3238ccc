"""Clients' shares of the devices, held against the definition of weighted fairness and not against tags.

Of two clients that both wait all the time between two moments, what each gets for its weight in between may differ by
the longest frame of each for its weight at most (Goyal, Vin and Cheng, SIGCOMM 1996, theorem 1). The devices' time is
one server's here, which takes ``slots`` frames at a time: then what is under way comes on top.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import combinations, count

from hypothesis import given
from hypothesis import strategies as st
from tests.support.properties import examples

from devit_contract.artefacts.fleet import ClientEntry
from devit_contract.wire.codec import Dtype, Kind, Message, State
from devit_fusion.frames.turns import Turns
from devit_fusion.ports.clients import Request

MS = 1_000_000
NAMES = ("a", "b", "c", "d")


@dataclass(frozen=True)
class Served:
    """One decision: who waited, and who was served at what cost."""

    backlogged: frozenset[str]
    name: str
    cost_ms: int


@dataclass
class Cell:
    """Devices that work on ``slots`` frames at a time, and end them in order."""

    weights: dict[str, int]
    slots: int
    waiting: Counter[str] = field(default_factory=Counter)
    """As the test counts them."""
    log: list[Served] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.turns = Turns([ClientEntry(name, weight=weight) for name, weight in self.weights.items()])
        self._numbers = count()
        self._under_way: deque[tuple[Request, int]] = deque()

    def ask(self, name: str) -> None:
        number = next(self._numbers)
        picture = Message(Kind.REQUEST, Dtype.UINT8, (1, 1, 1), b"0", frame_id=number)
        self.turns.add(Request(name.encode(), name, picture, arrival_ns=number))
        self.waiting[name] += 1

    def serve(self, cost_ms: int) -> None:
        """Let devices take a frame, if one waits; they have ended the oldest one if they had no room."""
        if len(self._under_way) == self.slots or not self.turns.waiting:
            self.end_oldest()
        heads = self.turns.heads()
        assert bool(heads) is bool(self.waiting.total())  # work-conserving
        if heads:
            self.log.append(Served(frozenset(+self.waiting), heads[0].name, cost_ms))
            self.turns.take(heads[0])
            self.waiting[heads[0].name] -= 1
            self._under_way.append((heads[0], cost_ms))

    def end_oldest(self) -> None:
        if self._under_way:
            request, cost_ms = self._under_way.popleft()
            self.turns.ended(request, cost_ms * MS, State.FULL)

    def longest_ms(self, name: str) -> int:
        return max((each.cost_ms for each in self.log if each.name == name), default=0)


def furthest_apart(log: list[Served], first: str, second: str, weights: dict[str, int]) -> float:
    """Tell by how much two clients' service for their weights ever differed while both waited, in ms."""
    furthest = most = least = 0.0  # most and least: of what ends now, in favour of the first or the second
    for each in log:
        if not {first, second} <= each.backlogged:
            most = least = 0.0
            continue
        gain = {first: 1, second: -1}.get(each.name, 0) * each.cost_ms / weights[each.name]
        most, least = max(0.0, most + gain), min(0.0, least + gain)
        furthest = max(furthest, most, -least)
    return furthest


LOADS = st.lists(st.tuples(st.lists(st.sampled_from(NAMES), max_size=6), st.integers(1, 60)), min_size=20, max_size=80)
"""Step by step: who asks, and what the frame costs that devices take then."""
WEIGHTS = st.fixed_dictionaries(dict.fromkeys(NAMES, st.integers(1, 100)))


@examples(3)
@given(weights=WEIGHTS, slots=st.sampled_from((1, 1, 2, 4)), load=LOADS)
def test_service_for_its_weight_is_the_same_for_all_that_wait(
    weights: dict[str, int], slots: int, load: list[tuple[list[str], int]]
) -> None:
    cell = Cell(weights, slots)
    for asking, cost_ms in load:
        for name in asking:
            cell.ask(name)
        cell.serve(cost_ms)
    while cell.turns.waiting:
        cell.serve(30)
    for first, second in combinations(NAMES, 2):
        longest_ms = sum(cell.longest_ms(name) / weights[name] for name in (first, second))
        allowed_ms = longest_ms * (1 if slots == 1 else 2 * slots + 1)  # costs under way are estimates
        assert furthest_apart(cell.log, first, second, weights) <= allowed_ms + 1e-6
    assert Counter(each.name for each in cell.log) == Counter(name for asking, _ in load for name in asking)


@examples(0.5)
@given(weights=WEIGHTS, costs=st.fixed_dictionaries(dict.fromkeys(NAMES, st.integers(1, 60))))
def test_in_the_long_run_time_is_shared_by_weight_whatever_frames_cost(
    weights: dict[str, int], costs: dict[str, int]
) -> None:
    cell = Cell(weights, 1)
    had_ms: Counter[str] = Counter()
    for name in NAMES:
        for _ in range(40):
            cell.ask(name)
    for _ in range(1000):
        cell.end_oldest()
        name = cell.turns.heads()[0].name
        cell.serve(costs[name])
        cell.ask(name)
        had_ms[name] += costs[name]
    for name in NAMES:
        share_ms = had_ms.total() * weights[name] / sum(weights.values())
        slack_ms = sum(costs.values()) * (1 + weights[name])
        assert abs(had_ms[name] - share_ms) <= slack_ms


def test_nobody_waits_longer_than_weights_say() -> None:
    """A frame of weight 1 beside a flood of weight 100: it is next after 100 times its own time."""
    cell = Cell({"a": 1, "b": 100}, 1)
    for _ in range(1000):
        cell.ask("b")
    for _ in range(50):
        cell.serve(2)
    cell.ask("a")
    cell.ask("a")
    for _ in range(250):
        cell.serve(2)
    assert [each.name for each in cell.log].count("a") == 2
    first, second = (index for index, each in enumerate(cell.log) if each.name == "a")
    assert (first - 50 <= 1, second - first <= 101) == (True, True)
