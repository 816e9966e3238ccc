"""A minimum cut is as cheap as the best of all ways to part a network, tried one by one."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st
from tests.support.properties import examples

from devit_export.cut import UNBREAKABLE, Network

POINTS = 5
Edge = tuple[int, int, int]


def build(edges: list[Edge], at_source: set[int], at_sink: set[int]) -> Network:
    network = Network()
    for point in range(POINTS):
        network.connect(point, (point + 1) % POINTS, 0)  # every point is known
    for point in at_source:
        network.fix(point, at_sink=False)
    for point in at_sink:
        network.fix(point, at_sink=True)
    for start, end, cost in edges:
        network.connect(start, end, cost)
    return network


def cost_of(sink_side: set[int], edges: list[Edge]) -> int:
    return sum(cost for start, end, cost in edges if start not in sink_side and end in sink_side)


@examples(2)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 5)), max_size=14),
    st.sets(st.integers(0, 1)),
    st.sets(st.integers(3, 4)),
)
def test_no_way_to_part_the_points_is_cheaper_and_none_as_cheap_has_fewer_at_the_sink(
    edges: list[Edge], at_source: set[int], at_sink: set[int]
) -> None:
    found = {point for point in build(edges, at_source, at_sink).sink_side() if isinstance(point, int)}
    assert at_sink <= found
    assert not found & at_source
    free = [point for point in range(POINTS) if point not in at_source | at_sink]
    ways = [at_sink | set(some) for count in range(len(free) + 1) for some in itertools.combinations(free, count)]
    cheapest = min(cost_of(way, edges) for way in ways)
    assert cost_of(found, edges) == cheapest
    assert len(found) == min(len(way) for way in ways if cost_of(way, edges) == cheapest)


def test_an_unbreakable_edge_is_never_cut() -> None:
    network = Network()
    network.fix("half", at_sink=False)
    network.fix("full", at_sink=True)
    network.connect("half", "tied", 3)
    network.connect("tied", "full", UNBREAKABLE)
    assert network.sink_side() == {"tied", "full"}
