"""The rule by which one node is active: whatever is lost, late or cut, and whoever restarts, never two are."""

from __future__ import annotations

import heapq
import random
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.properties import examples

from devit_contract.wire.lease import LOOK_NS, Granter
from devit_fusion.standby.claim import ALWAYS_NS, Claim

MS = 1_000_000
LEASE_NS = 400 * MS


class Cell:
    """Nodes and devices on one virtual clock; messages take a time, or get lost, as a seed says."""

    def __init__(self, seed: int, *, devices: int, nodes: int, worst_ms: int, loss: float) -> None:
        self.random = random.Random(seed)
        self.now_ns = 10**12
        self.worst_ms, self.loss = worst_ms, loss
        self.device_names = [f"jetson{index}" for index in range(devices)]
        self.node_names = [f"node{index}" for index in range(nodes)]
        self.files = [tuple(self.device_names), (*self.device_names[1:], "newcomer")]  # by turns, as they change
        self.device_names.append("newcomer")
        self.versions = dict.fromkeys(self.node_names, 0)
        self.runs = count(1)
        self.claims = {name: self.new_claim(place) for place, name in enumerate(self.node_names)}
        self.leases = {name: Granter(self.now_ns) for name in self.device_names}
        self.cut: set[frozenset[str]] = set()
        self.paused_until_ns = dict.fromkeys(self.node_names, 0)
        self.waiting: list[tuple[int, int, tuple[str, str, int, int, int, int]]] = []
        self.order = count()
        self.active_ns = 0

    def new_claim(self, place: int) -> Claim:
        others = [name for name in self.node_names if name != self.node_names[place]]
        run_id, now_ns = next(self.runs), self.now_ns
        devices = self.files[min(self.versions.values()) % 2]  # nobody starts with a file that others do not have
        self.versions[self.node_names[place]] = min(self.versions.values())
        return Claim(run_id, devices, others, place=place, lease_ns=LEASE_NS, started_ns=now_ns)

    def send(self, source: str, target: str, *what: int) -> None:
        if frozenset((source, target)) in self.cut or self.random.random() < self.loss:
            return
        at_ns = self.now_ns + round(self.random.uniform(0, self.worst_ms) * MS)
        heapq.heappush(self.waiting, (at_ns, next(self.order), (source, target, *what)))  # type: ignore[arg-type]

    def step(self) -> None:
        """Let a millisecond pass."""
        self.now_ns += MS
        while self.waiting and self.waiting[0][0] <= self.now_ns:
            *_, (source, target, run_id, number, asked_ns, holder) = heapq.heappop(self.waiting)
            if asked_ns < 0:
                claim = self.claims[target]
                if claim.run_id == run_id:  # a reply to a former run ends with its link
                    claim.voted(source, number, holder, self.now_ns)
                continue
            lease = self.leases[target] if target in self.leases else self.claims[target].own
            self.send(target, source, run_id, number, -1, lease.ask(run_id, number, asked_ns, self.now_ns))
        for name, claim in self.claims.items():
            if claim.next_ns is not None and self.now_ns >= max(claim.next_ns, self.paused_until_ns[name]):
                lease_ns = claim.round(self.now_ns)
                for other in (*self.device_names, *self.node_names):
                    if other != name:
                        self.send(name, other, claim.run_id, claim.number, lease_ns, 0)
        active = self.active()
        assert len(active) <= 1, f"{active} at {self.now_ns}"
        self.active_ns += MS * len(active)

    def active(self) -> list[str]:
        return [name for name, claim in self.claims.items() if self.now_ns < claim.holds_until_ns]

    def disturb(self) -> None:
        """Cut or mend links, pause a node, change the devices of one, or restart somebody."""
        what, everyone = self.random.randrange(7), [*self.device_names, *self.node_names]
        if what < 2:
            side = {name for name in everyone if self.random.random() < 0.5}
            self.cut = {frozenset((one, other)) for one in side for other in everyone if other not in side}
        elif what == 2:
            self.cut = {frozenset((one, other)) for one in everyone for other in everyone if self.random.random() < 0.3}
        elif what == 3:
            self.cut = set()
        elif what == 4:
            name = self.random.choice(self.node_names)
            self.paused_until_ns[name] = self.now_ns + self.random.randrange(2000) * MS
        elif what == 5:
            name = min(self.versions, key=lambda each: self.versions[each])
            self.versions[name] += 1
            self.claims[name].know(self.files[self.versions[name] % 2])
        else:
            name = self.random.choice(everyone)
            if name in self.leases:
                self.leases[name] = Granter(self.now_ns)
            else:
                self.claims[name] = self.new_claim(self.node_names.index(name))


@examples(5)
@given(
    seed=st.integers(0, 2**32),
    devices=st.integers(1, 6),
    nodes=st.integers(2, 4),
    worst_ms=st.sampled_from((1, 20, 150, 700)),
    loss=st.sampled_from((0.0, 0.1, 0.5)),
)
def test_two_nodes_are_never_active_at_once(seed: int, devices: int, nodes: int, worst_ms: int, loss: float) -> None:
    cell = Cell(seed, devices=devices, nodes=nodes, worst_ms=worst_ms, loss=loss)
    for _ in range(8):
        for _ in range(cell.random.randrange(700)):
            cell.step()
        cell.disturb()


@examples(3)
@given(seed=st.integers(0, 2**32), devices=st.integers(1, 6), nodes=st.integers(2, 4))
def test_one_is_active_again_soon_after_all_is_well_and_stays_so(seed: int, devices: int, nodes: int) -> None:
    cell = Cell(seed, devices=devices, nodes=nodes, worst_ms=5, loss=0.0)
    for _ in range(6):
        for _ in range(cell.random.randrange(700)):
            cell.step()
        cell.disturb()
    cell.cut, cell.paused_until_ns = set(), dict.fromkeys(cell.node_names, 0)
    for _ in range(3000):
        cell.step()
    active, cell.active_ns = cell.active(), 0
    assert len(active) == 1
    for _ in range(1000):
        cell.step()
    assert (cell.active(), cell.active_ns) == (active, 1000 * MS)


def settled(**shape: int) -> Cell:
    cell = Cell(1, worst_ms=2, loss=0.0, **shape)
    for _ in range(1500):
        cell.step()
    return cell


def test_the_first_of_the_file_comes_first_and_no_other_takes_its_place_back() -> None:
    cell = settled(devices=4, nodes=3)
    assert cell.active() == ["node0"]
    cell.paused_until_ns["node0"] = cell.now_ns + 3000 * MS
    for _ in range(1000):
        cell.step()
    assert cell.active() == ["node1"]
    for _ in range(4000):
        cell.step()
    assert cell.active() == ["node1"]


@pytest.mark.parametrize(("seen_by_second", "expected"), [((0, 1), "node1"), ((2, 3), "node0")])
def test_between_two_halves_the_first_device_decides(seen_by_second: tuple[int, ...], expected: str) -> None:
    cell = settled(devices=4, nodes=2)
    assert cell.active() == ["node0"]
    cell.cut = {frozenset(("node0", "node1"))}
    for index, device in enumerate(cell.device_names):
        cell.cut.add(frozenset((device, "node0" if index in seen_by_second else "node1")))
    for _ in range(2000):
        cell.step()
    assert cell.active() == [expected]


def test_without_devices_a_node_is_active_by_all_others_and_not_alone() -> None:
    cell = settled(devices=4, nodes=2)
    everyone = [*cell.device_names, *cell.node_names]
    cell.cut = {frozenset((device, other)) for device in cell.device_names for other in everyone}
    for _ in range(2000):
        cell.step()
    assert cell.active() == ["node0"]
    cell.cut.add(frozenset(("node0", "node1")))
    for _ in range(2000):
        cell.step()
    assert cell.active() == []


def test_a_node_without_others_is_always_active() -> None:
    claim = Claim(1, ["jetson1"], [], place=0, lease_ns=LEASE_NS, started_ns=0)
    assert (claim.holds_until_ns, claim.next_ns) == (ALWAYS_NS, None)


def test_who_has_just_started_grants_nothing_for_the_time_of_a_lease() -> None:
    granter = Granter(1000)
    assert granter.ask(7, 1, LEASE_NS, 1000 + LEASE_NS - 1) == 0
    assert granter.ask(7, 2, LEASE_NS, 1000 + LEASE_NS) == 7
    assert granter.ask(8, 1, LEASE_NS, 1000 + 2 * LEASE_NS - 1) == 7
    assert granter.ask(8, 2, LEASE_NS, 1000 + 2 * LEASE_NS) == 8


def test_a_late_word_of_an_old_connection_gives_nothing_back() -> None:
    granter = Granter(0)
    assert granter.ask(7, 5, LEASE_NS, LEASE_NS) == 7
    assert granter.ask(7, 4, LOOK_NS, LEASE_NS + 1) == 7
    assert granter.ask(7, 6, LOOK_NS, LEASE_NS + 2) == 0
