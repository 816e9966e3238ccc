"""Measured blocks become rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import ge, le

import numpy as np
from benchmarks.common.measure import Samples, p50, p99
from benchmarks.common.rows import Row, bootstrap

OURS, BARE = "devit", "bare cell"


@dataclass(frozen=True)
class Bound:
    """What is wanted of a ratio."""

    against: str
    sign: str
    times: float

    @property
    def wanted(self) -> str:
        """As rows say it."""
        return f"{self.sign} {self.times:g} x"

    def holds(self, ratio: float) -> bool:
        """Whether a ratio keeps it."""
        return {"<=": le, ">=": ge}[self.sign](ratio, self.times)


LATENCY = {
    "grpcio unary": Bound(OURS, ">=", 4),
    "grpcio streams": Bound(OURS, ">=", 4),
    "LitServe": Bound(OURS, ">=", 8),
    "Ray Serve": Bound(OURS, ">=", 20),
    OURS: Bound(BARE, "<=", 2.5),
}
"""Of the null cell of four, one request under way."""
RATE = {side: Bound(OURS, "<=", 0.25) for side in ("grpcio unary", "grpcio streams", "LitServe", "Ray Serve")}
"""Of the null cell of four, saturated."""


def rows(
    figure: str, unit: str, blocks: dict[str, list[Samples]], bounds: dict[str, Bound], suffix: str = ""
) -> list[Row]:
    """Compare the sides that took turns, each with ours, and ours with the bare cell.

    Args:
        figure: What was measured.
        unit: Of the numbers.
        blocks: By side; where each is one number, such as a rate, there is no p99.
        bounds: By side, what is wanted.
        suffix: Follows the figure where ours has been measured in other turns too.
    """
    medians = {side: p50(np.concatenate(found)) for side, found in blocks.items()}
    return [_row(figure, unit, side, blocks[side], medians, bounds.get(side), suffix) for side in blocks]


def _row(
    figure: str,
    unit: str,
    side: str,
    blocks: list[Samples],
    medians: dict[str, float],
    bound: Bound | None,
    suffix: str,
) -> Row:
    against = bound.against if bound else (BARE if side == OURS else OURS)
    ratio = round(medians[side] / medians[against], 3) if against in medians else None
    is_spread = max(map(len, blocks)) > 1
    return Row(
        figure=figure + (suffix if side == OURS else ""),
        side=side,
        unit=unit,
        p50=round(medians[side], 1),
        p99=round(p99(np.concatenate(blocks)), 1) if is_spread else None,
        p50_interval=_interval(blocks, p50),
        p99_interval=_interval(blocks, p99) if is_spread else None,
        samples=sum(map(len, blocks)),
        ratio=ratio,
        against=against if ratio is not None else "",
        wanted=bound.wanted if bound and ratio is not None else "",
        holds=bound.holds(ratio) if bound and ratio is not None else None,
    )


def _interval(blocks: Sequence[Samples], statistic: Callable[[Samples], float]) -> tuple[float, float]:
    low, high = bootstrap(list(blocks), statistic)
    return round(low, 1), round(high, 1)
