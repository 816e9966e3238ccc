"""The cheapest way to part a network in two: a minimum cut, by augmenting paths (Edmonds and Karp, 1972)."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable

UNBREAKABLE = 1 << 60
"""Capacity of an edge that no cut may sever."""
_SOURCE, _SINK = "source", "sink"


class Network:
    """Points that belong to the source's side or to the sink's, and what it costs to part them."""

    def __init__(self) -> None:
        """Start without points."""
        self._left: defaultdict[Hashable, dict[Hashable, int]] = defaultdict(dict)

    def fix(self, point: Hashable, *, at_sink: bool) -> None:
        """Tie a point to one side."""
        if at_sink:
            self.connect(point, _SINK, UNBREAKABLE)
        else:
            self.connect(_SOURCE, point, UNBREAKABLE)

    def connect(self, start: Hashable, end: Hashable, cost: int) -> None:
        """Charge ``cost`` where ``start`` is on the source's side and ``end`` on the sink's."""
        self._left[start][end] = self._left[start].get(end, 0) + cost
        self._left[end].setdefault(start, 0)

    def sink_side(self) -> set[Hashable]:
        """Find the points on the sink's side of a cheapest cut, as few as can be; uses the network up."""
        while path := self._path():
            amount = min(self._left[start][end] for start, end in path)
            for start, end in path:
                self._left[start][end] -= amount
                self._left[end][start] += amount
        return self._reaching_sink()

    def _path(self) -> list[tuple[Hashable, Hashable]]:
        """Find a shortest way from source to sink that still has room; empty where there is none."""
        came_from: dict[Hashable, Hashable] = {_SOURCE: _SOURCE}
        queue: deque[Hashable] = deque([_SOURCE])
        while queue:
            point = queue.popleft()
            for end, room in self._left[point].items():
                if room and end not in came_from:
                    came_from[end] = point
                    queue.append(end)
        if _SINK not in came_from:
            return []
        path: list[tuple[Hashable, Hashable]] = [(came_from[_SINK], _SINK)]
        while (point := path[-1][0]) != _SOURCE:
            path.append((came_from[point], point))
        return path

    def _reaching_sink(self) -> set[Hashable]:
        found: set[Hashable] = {_SINK}
        queue: deque[Hashable] = deque([_SINK])
        while queue:
            end = queue.popleft()
            for start in self._left[end]:
                if self._left[start][end] and start not in found:
                    found.add(start)
                    queue.append(start)
        return found - {_SINK}
