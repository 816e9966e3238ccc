"""Whose turn it is, by clients that ask and devices that take time."""

from __future__ import annotations

from collections import Counter
from itertools import count

from devit_contract.artefacts.fleet import ClientEntry
from devit_contract.wire.codec import Dtype, Kind, Message, State
from devit_contract.wire.words import ShedReason
from devit_fusion.frames.turns import Turns
from devit_fusion.ports.clients import Request

MS = 1_000_000


class Cell:
    """One device that works on one frame at a time, for ``took_ms`` each by connection."""

    def __init__(self, took_ms: dict[bytes, int]) -> None:
        self.turns = Turns([ClientEntry("camera"), ClientEntry("bulk")])
        self._took_ms = took_ms
        self._numbers = count()

    def ask(self, name: str, route: bytes, requests: int = 1, size_bytes: int = 0, deadline_ns: int = 0) -> int:
        """Ask for so many; tell how many were taken."""
        taken = 0
        for _, number in zip(range(requests), self._numbers, strict=False):
            picture = Message(Kind.REQUEST, Dtype.ENCODED, payload=bytes(size_bytes), frame_id=number)
            request = Request(route, name, picture, arrival_ns=number, deadline_ns=deadline_ns)
            if not self.turns.is_at_limit(request):
                self.turns.add(request)
                taken += 1
        return taken

    def work(self) -> Request:
        """Send the next request to the device, and end it."""
        request = self.turns.heads()[0]
        self.turns.take(request)
        self.turns.ended(request, self._took_ms[request.came_by] * MS, State.FULL)
        return request


def test_requests_of_one_connection_keep_their_order() -> None:
    cell = Cell({b"a": 5})
    cell.ask("camera", b"a", requests=5)
    assert [cell.work().arrival_ns for _ in range(5)] == [0, 1, 2, 3, 4]


def test_what_waits_counts_by_its_own_bytes() -> None:
    """Hundreds of small images wait while a whole cell is switched to other submodels."""
    cell = Cell({b"camera": 5})
    cell.ask("camera", b"camera", requests=500, size_bytes=784)
    assert (cell.turns.waiting, cell.turns.waiting_bytes) == (500, 500 * 784)
    cell.work()
    cell.turns.take_heaviest()
    assert cell.turns.waiting_bytes == 498 * 784


def test_who_asks_now_and_then_goes_before_who_asks_all_the_time() -> None:
    cell = Cell({b"camera": 5, b"bulk": 5})
    cell.ask("bulk", b"bulk", requests=64)
    for _ in range(6):
        for _ in range(3):
            assert cell.work().name == "bulk"
        cell.ask("camera", b"camera")
        assert cell.work().name == "camera"


def test_clients_share_time_and_not_frames() -> None:
    """Pictures that take ten times as long to decode have a tenth of the turns."""
    cell = Cell({b"camera": 2, b"bulk": 20})
    cell.ask("camera", b"camera", requests=1000)
    cell.ask("bulk", b"bulk", requests=1000)
    turns = Counter(cell.work().name for _ in range(440))
    assert 36 <= turns["bulk"] <= 44


def test_many_connections_of_one_key_have_one_share_and_share_it() -> None:
    routes = [bytes([number]) for number in range(10)]
    cell = Cell(dict.fromkeys([b"camera", *routes], 5))
    cell.ask("camera", b"camera", requests=100)
    for route in routes:
        cell.ask("bulk", route, requests=100)
    turns = Counter(cell.work().came_by for _ in range(120))
    assert 58 <= turns[b"camera"] <= 62
    assert {5, 6, 7} >= {turns[route] for route in routes}


def test_time_cannot_be_saved_up() -> None:
    cell = Cell({b"camera": 5, b"bulk": 5})
    cell.ask("bulk", b"bulk", requests=200)
    for _ in range(100):
        cell.work()
    cell.ask("camera", b"camera", requests=100)
    turns = Counter(cell.work().name for _ in range(40))
    assert 18 <= turns["camera"] <= 22


def test_a_full_queue_costs_whoever_fills_it() -> None:
    cell = Cell({})
    cell.ask("bulk", b"bulk", requests=10)
    cell.ask("camera", b"camera", size_bytes=150_000)
    assert [cell.turns.take_heaviest().arrival_ns for _ in range(7)] == [9, 8, 7, 6, 5, 4, 3]
    cell.ask("bulk", b"other", size_bytes=4 << 20)
    assert cell.turns.take_heaviest().came_by == b"other"
    assert cell.turns.waiting == 4


def test_the_figures_of_every_client_of_the_fleet_are_known() -> None:
    cell = Cell({b"bulk": 5})
    cell.ask("bulk", b"bulk", requests=3)
    cell.work()
    shed = cell.turns.take_heaviest()
    cell.turns.shed(shed, ShedReason.QUEUE)
    camera, bulk = cell.turns.status()
    assert (camera.name, camera.frames, camera.device_s) == ("camera", {}, 0.0)
    assert (bulk.waiting, bulk.in_flight, bulk.device_s) == (1, 0, 0.005)
    assert bulk.frames == {"full": 1, "failed": 1, "shed": 1}


def test_connections_that_have_gone_are_forgotten() -> None:
    routes = [number.to_bytes(2, "big") for number in range(1000)]
    cell = Cell(dict.fromkeys(routes, 1))
    for route in routes:
        cell.ask("bulk", route)
        cell.work()
    assert len(cell.turns._lines) <= 256


def test_of_one_connections_requests_the_one_whose_deadline_is_first_goes_first() -> None:
    cell = Cell({b"a": 5})
    for deadline_ns in (50, 20, 50, 10, 20):
        cell.ask("camera", b"a", deadline_ns=deadline_ns)
    assert [cell.work().arrival_ns for _ in range(5)] == [3, 1, 4, 0, 2]


def test_a_client_has_no_more_under_way_than_it_may() -> None:
    cell = Cell({b"a": 5, b"b": 5})
    cell.turns.set_client(ClientEntry("bulk", max_in_flight=3))
    assert cell.ask("bulk", b"a", requests=5) == 3
    sent = cell.turns.heads()[0]
    cell.turns.take(sent)
    assert cell.ask("bulk", b"b", requests=5) == 0  # over all connections, and those with devices count
    cell.turns.ended(sent, 5 * MS, State.FULL)
    assert cell.ask("bulk", b"b", requests=5) == 1
    assert cell.ask("camera", b"camera", requests=5) == 5


def test_a_full_queue_is_shared_by_weight() -> None:
    cell = Cell({})
    cell.turns.set_client(ClientEntry("bulk", weight=3))
    cell.ask("bulk", b"bulk", requests=60)
    cell.ask("camera", b"camera", requests=60)
    while cell.turns.waiting > 40:
        cell.turns.take_heaviest()
    camera, bulk = cell.turns.status()
    assert (camera.waiting, bulk.waiting) == (10, 30)


def test_a_changed_weight_holds_from_then_on() -> None:
    cell = Cell({b"camera": 5, b"bulk": 5})
    for name in ("camera", "bulk"):
        cell.ask(name, name.encode(), requests=200)
    for _ in range(40):
        cell.work()
    cell.turns.set_client(ClientEntry("camera", weight=4))
    turns = Counter(cell.work().name for _ in range(100))
    assert 78 <= turns["camera"] <= 82


def test_a_client_that_is_removed_leaves_nothing_behind_and_its_frames_end() -> None:
    cell = Cell({b"a": 5, b"b": 5, b"bulk": 5})
    cell.ask("camera", b"a", requests=3, size_bytes=1000)
    cell.ask("bulk", b"bulk")
    sent = cell.turns.heads()[0]
    cell.turns.take(sent)
    assert [request.arrival_ns for request in cell.turns.remove_client("camera")] == [1, 2]
    assert (cell.turns.waiting, cell.turns.waiting_bytes) == (1, 0)
    cell.turns.ended(sent, 5 * MS, State.FULL)
    assert [client.name for client in cell.turns.status()] == ["bulk"]
    cell.turns.set_client(ClientEntry("camera"))
    cell.ask("camera", b"b")
    assert {cell.work().name, cell.work().name} == {"camera", "bulk"}


def test_a_client_whose_requests_ask_other_devices_keeps_nobody_waiting_for_what_it_lags_behind() -> None:
    """Its device was slow, so it has had little; whoever comes does not wait until it has had as much."""
    cell = Cell({b"camera": 5, b"bulk": 5, b"desk": 5})
    cell.ask("camera", b"camera", requests=500)
    cell.ask("bulk", b"bulk", requests=500)
    for _ in range(200):  # of another device
        request = next(head for head in cell.turns.heads() if head.name == "bulk")
        cell.turns.take(request)
        cell.turns.ended(request, 5 * MS, State.FULL)
    cell.ask("desk", b"desk")
    assert "desk" in [cell.work().name for _ in range(100 // 5 + 2)]
